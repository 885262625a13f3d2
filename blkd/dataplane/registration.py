# SPDX-License-Identifier: Apache-2.0
"""Guest memory registered with each worker's io_uring.

To register memory is to pin each of its pages, and a page that is not there has to be made or
read first: with a large guest that takes seconds.  A thread fills the pages before, and workers
serve meanwhile.  What cannot be registered is served all the same.
"""

import asyncio
import contextlib
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from blkd import ring
from blkd.dataplane.workers import Answer, Workers, WorkerThread

Ready = Callable[[OSError | None], None]
"""Called on the event loop: the pages of the wanted map are there, or why they cannot be."""

FILL_LIMIT: Final = 5.0
"""Seconds to wait for the piece of memory that is just being filled."""

log = structlog.get_logger()


class Registration:
    """Has every worker register the present memory map, as soon as its pages are there."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._filler = PageFiller(self._register)
        self._is_filled = False
        self._refusal_logged = False
        workers.at_start.append(self._post_first)

    async def end(self) -> None:
        """Register nothing of the present map any more; no page of it is filled afterwards."""
        self._is_filled = False
        await self._filler.stop()

    def begin(self, memory: ring.MemoryMap) -> None:
        """Register this map, the workers' present one, soon; `end` has come before."""
        self._refusal_logged = False
        self._filler.fill(memory)

    def quit(self) -> None:
        """Fill no more than the piece that is being filled: the workers end."""
        self._filler.cancel()

    @property
    def is_complete(self) -> bool:
        """Whether every worker has the guest's memory registered."""
        registered = [thread.worker.registered == 1 for thread in self._workers]
        return bool(registered) and all(registered)

    def _register(self, error: OSError | None) -> None:
        """Have every worker register the memory that is filled now."""
        if self._workers.have_quit:
            return
        if error is not None:
            log.warning("guest memory not registered", reason=error.strerror)
            return
        self._is_filled = True
        for thread in self._workers:
            with contextlib.suppress(OSError):  # one that does not answer serves without
                self._post(thread)

    def _post_first(self, thread: WorkerThread) -> Iterable[Answer]:
        return [self._post(thread)] if self._is_filled else []

    def _post(self, thread: WorkerThread) -> Answer:
        answer = thread.answer_to(thread.worker.register_memory())
        answer.add_done_callback(functools.partial(self._log_refusal, thread.worker))
        return answer

    def _log_refusal(self, worker: ring.Worker, answer: Answer) -> None:
        """Log it, once a map, where the memory could not be registered."""
        failed = answer.cancelled() or answer.exception() is not None
        if failed or worker.registered >= 0 or self._refusal_logged:
            return
        self._refusal_logged = True
        log.warning(
            "guest memory not registered",
            reason=os.strerror(-worker.registered),
            hint="raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)",
        )


class PageFiller:
    """Fills the pages of one memory map after the other; made on a running event loop."""

    def __init__(self, ready: Ready) -> None:
        """`ready` is called once a map that is still wanted then has its pages."""
        self._loop = asyncio.get_running_loop()
        self._ready = ready
        self._wanted: ring.MemoryMap | None = None
        self._filling: asyncio.Future[None] | None = None
        self._thread: threading.Thread

    def cancel(self) -> None:
        """Fill no more than the piece that is being filled."""
        self._wanted = None

    async def stop(self) -> None:
        """Fill no more; when this returns, no page of the map is touched any more."""
        self.cancel()
        if self._filling is not None:
            await asyncio.wait([self._filling], timeout=FILL_LIMIT)

    def fill(self, memory: ring.MemoryMap) -> None:
        """Fill this map; `stop` has come before."""
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
