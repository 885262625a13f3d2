# SPDX-License-Identifier: Apache-2.0
"""Guest memory made ready to be registered, by a thread of its own.

To register memory is to pin each of its pages, and a page that is not there has to be made or
read first: with a large guest that takes seconds.  Workers serve meanwhile.
"""

import asyncio
import contextlib
import errno
import functools
import threading
from collections.abc import Callable
from typing import Final

from blkd import ring

Ready = Callable[[OSError | None], None]
"""Called on the event loop: the pages of the wanted map are there, or why they cannot be."""

LEAVE_LIMIT: Final = 5.0
"""Seconds to wait for the piece of memory that is just being filled."""


class Registration:
    """Fills one memory map after the other; made on a running event loop."""

    def __init__(self, ready: Ready) -> None:
        """`ready` is called once a map that is still wanted then has its pages."""
        self._loop = asyncio.get_running_loop()
        self._ready = ready
        self._wanted: ring.MemoryMap | None = None
        self._filling: asyncio.Future[None] | None = None
        self._thread: threading.Thread

    def forget(self) -> None:
        """Fill no more than the piece that is being filled."""
        self._wanted = None

    async def leave(self) -> None:
        """Fill no more; when this returns, nothing of the map is touched any more."""
        self.forget()
        if self._filling is not None:
            await asyncio.wait([self._filling], timeout=LEAVE_LIMIT)

    def want(self, memory: ring.MemoryMap) -> None:
        """Fill this map; `leave` has come before."""
        self._wanted = memory
        if self._filling is not None:
            self._ready(OSError(errno.EBUSY, "memory of before is still being filled"))
            return
        self._filling = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._fill, args=(memory,), name="blkd-memory", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._filling = None
            self._ready(OSError(errno.EAGAIN, "no thread can be started"))

    def _fill(self, memory: ring.MemoryMap) -> None:
        error = None
        try:
            memory.populate(lambda: self._wanted is memory)
        except OSError as failure:
            error = failure
        end = functools.partial(self._end, error, wanted=self._wanted is memory)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(end)

    def _end(self, error: OSError | None, *, wanted: bool) -> None:
        self._thread.join()  # that was its last step; with it the map is let go
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.set_result(None)
        if wanted and self._wanted is not None:
            self._ready(error)
