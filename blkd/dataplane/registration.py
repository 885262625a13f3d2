# SPDX-License-Identifier: Apache-2.0
"""Guest memory made ready to be registered, by a thread of its own.

To register memory is to pin each of its pages, and a page that is not there has to be made or
read first: with a large guest that takes seconds.  Workers serve meanwhile.
"""

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable

from blkd import ring

Ready = Callable[[OSError | None], None]
"""Called on the event loop: the pages of the wanted map are there, or why they cannot be."""


class Registration:
    """Fills the latest of the maps that are wanted, one at a time; made on a running event loop."""

    def __init__(self, ready: Ready) -> None:
        """`ready` is called once a map that is still wanted then has its pages."""
        self._loop = asyncio.get_running_loop()
        self._ready = ready
        self._wanted: ring.MemoryMap | None = None
        self._is_filling = False

    def want(self, memory: ring.MemoryMap | None) -> None:
        """Fill this map instead of any other, or none."""
        self._wanted = memory
        if memory is not None and not self._is_filling:
            self._start(memory)

    def _start(self, memory: ring.MemoryMap) -> None:
        thread = threading.Thread(
            target=self._fill, args=(memory,), name="blkd-memory", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._ready(OSError(errno.EAGAIN, "no thread can be started"))
        else:
            self._is_filling = True

    def _fill(self, memory: ring.MemoryMap) -> None:
        error = None
        try:
            memory.populate()
        except OSError as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._end, memory, error)

    def _end(self, memory: ring.MemoryMap, error: OSError | None) -> None:
        self._is_filling = False
        if memory is self._wanted:
            self._ready(error)
        elif self._wanted is not None:
            self._start(self._wanted)
