# SPDX-License-Identifier: Apache-2.0
"""One worker thread and the rings that it serves, as the event loop sees them.

Whatever is handed to a worker is complete, and is kept until the worker has answered that
it no longer needs it.
"""

import asyncio
import errno
import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from blkd import ring
from blkd.dataplane.served import ServedDevice
from blkd.errors import DataPlaneError
from blkd.host.fds import close_foreign
from blkd.vhost_user.rings import GivenRing, HeldRing, VringSetup

log = structlog.get_logger()

Place = tuple[int, int, int, tuple[int, int] | None]
"""Where a ring's descriptors, its driver's and its device's area are mapped here; and where our
writes to the first and the last are logged, None for nowhere."""

Record = tuple[int, int]
"""Where a ring's part of the in-flight region is mapped, and its entries."""

NOT_RECORDED: Final[Record] = (0, 0)
NO_FD: Final = -1

WAITS: Final = "reset the device or reboot the guest: until then its requests wait"
REPORTS: Final = {
    errno.EBADMSG: ("in-flight region damaged: what was in flight is not known", WAITS),
    errno.ESTALE: ("packed ring served before, its front end does not know how far", WAITS),
    errno.ENOSPC: (
        "ring broken: it writes beyond the dirty log",
        "its front end has no log for that memory: cancel, and reboot the guest",
    ),
}
"""What to log of a ring that stands still, and what helps, by the errno that says why."""


class WorkerThread:
    """A worker with room for `rings` rings, and the futures that wait for its answers."""

    def __init__(
        self,
        number: int,
        rings: int,
        served: ServedDevice,
        longest_poll: int,
        cpu: int | None,
        *,
        on_end: Callable[[OSError], None],
    ) -> None:
        """Start it.  `longest_poll` is in nanoseconds, 0 for never; `on_end` says that it failed.

        Raises OSError or RuntimeError where the host has no room for another.
        """
        self.number = number
        self.worker = served.make_worker(rings, longest_poll)
        self.rings: dict[int, LiveRing] = {}
        """Those that a front end has had to do with, by the worker's own numbers."""

        self._room = rings
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._left = False
        self._on_end = on_end
        self._served = served
        self._reports = served.reports(self.worker)
        self._loop.add_reader(self.worker.answers_fd, self._hear)
        name = f"blkd-io-{number}"
        self._thread = threading.Thread(target=self._run, args=(name, cpu), name=name, daemon=True)
        self._thread.start()

    def answer(self, ticket: int) -> asyncio.Future[int]:
        """What the worker will answer under `ticket`: a number, or DataPlaneError."""
        future: asyncio.Future[int] = self._loop.create_future()
        if self._left:
            future.cancel()
        else:
            self._waiting[ticket] = future
        return future

    def configure(self) -> asyncio.Future[int]:
        """Serve the device as it is now."""
        return self.answer(self._served.configure(self.worker, self.number))

    def set_memory(self, memory: ring.MemoryMap | None) -> asyncio.Future[int]:
        """Serve from another memory map; done when the old one is unused."""
        places: list[Place | None] = [None] * self._room
        for number, live in self.rings.items():
            if live.setup is not None:
                places[number] = place(memory, live.setup)
        return self.answer(self.worker.set_memory(memory, places))

    def leave(self) -> None:
        """Have the thread end at once; nothing waits for it any more."""
        self._left = True
        self._reports.close()
        self._loop.remove_reader(self.worker.answers_fd)
        self.worker.quit()
        for future in self._waiting.values():
            future.cancel()

    def join(self, limit: float) -> bool:
        """Wait up to `limit` seconds for the thread to have left: whether it has."""
        self._thread.join(max(0.0, limit))
        return not self._thread.is_alive()

    def _run(self, name: str, cpu: int | None) -> None:
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})  # 0: this thread
            self.worker.run(name)
        except OSError as error:
            self._loop.call_soon_threadsafe(self._on_end, error)

    def _hear(self) -> None:
        for ticket, number, result in self.worker.answers():
            if ticket == 0 and result >= ring.RECOVERED:
                self.rings[number].report_recovered(result - ring.RECOVERED)
                continue
            if ticket == 0 and result > 0:
                self._reports.report(result)
                continue
            if ticket == 0:
                self.rings[number].report(-result)
                continue
            future = self._waiting.pop(ticket)
            if future.done():
                continue  # nobody waits any more
            if result < 0:
                future.set_exception(DataPlaneError(os.strerror(-result)))
            else:
                future.set_result(result)


class LiveRing:
    """One virtqueue: its worker, its descriptors, and where it lies while it is started.

    `index` is the device's number of the ring, `number` its worker's.
    """

    def __init__(self, index: int, thread: WorkerThread, number: int) -> None:
        self.index = index
        self.thread = thread
        self.number = number
        self.setup: VringSetup | None = None
        self.fds: dict[str, int] = {}
        self._unused: list[int] = []  # once the worker has ended
        self._replacing: dict[str, asyncio.Future[int]] = {}  # the latest answer of each kind
        self._stopping: asyncio.Future[int] | None = None  # what `stop` waits for
        self._before: Mapping[str, int] = {}  # counters of the process that served it before
        thread.rings[number] = self

    @property
    def _worker(self) -> ring.Worker:
        return self.thread.worker

    async def replace_fd(self, kind: str, fd: int | None) -> None:
        """Use another kick, call or error eventfd, taken; the old one is closed when unused."""
        post = {
            "kick": self._worker.set_kick,
            "call": self._worker.set_call,
            "error": self._worker.set_error,
        }[kind]
        if (before := self._replacing.get(kind)) is not None and not before.done():
            await asyncio.wait([before])  # whoever asked for that has been cancelled
        ticket = post(self.number, NO_FD if fd is None else fd)
        old = self.fds.pop(kind, None)
        if fd is not None:
            self.fds[kind] = fd
        answer = self._replacing[kind] = self.thread.answer(ticket)
        if old is not None:
            answer.add_done_callback(functools.partial(self._retire, old))
        await asyncio.shield(answer)  # cancelled or not: the old one is in use until the answer

    def _retire(self, fd: int, answer: asyncio.Future[int]) -> None:
        """Close a descriptor that was replaced, unless the worker left without an answer."""
        if answer.cancelled():
            self._unused.append(fd)
        else:
            close_foreign([fd])

    async def start(self, where: Place, setup: VringSetup, record: Record) -> None:
        """Start at a place; what was made available before is looked at right away.

        What the record says to be in flight is carried out first.
        """
        answer = self._start(where, setup, record)
        self.setup = setup  # if this is cancelled, the worker starts it all the same
        answer.add_done_callback(self._check_started)
        await asyncio.shield(answer)

    def _check_started(self, answer: asyncio.Future[int]) -> None:
        if not answer.cancelled() and answer.exception() is not None:
            self.setup = None

    def _start(
        self,
        where: Place,
        setup: VringSetup,
        record: Record,
        *,
        taken_over: bool = False,
        broken: bool = False,
    ) -> asyncio.Future[int]:
        return self.thread.answer(
            self._worker.start(
                self.number,
                where,
                size=setup.size,
                base=setup.base,
                packed=setup.packed,
                event_idx=setup.event_idx,
                indirect=setup.indirect,
                inflight=record[0],
                entries=record[1],
                taken_over=taken_over,
                broken=broken,
            )
        )

    def held(self) -> HeldRing:
        """All that another process must know of it to go on."""
        state = self._worker.ring_state(self.number)
        broken, lost = bool(state["broken"]), bool(state["lost"])
        counters = self.counters()
        del counters["in_flight"]
        return HeldRing(self.index, state["base"], broken, lost, self.fds, counters)

    def adopt(
        self, given: GivenRing, where: Place | None, record: Record
    ) -> list[asyncio.Future[int]]:
        """Go on with a ring of another process; takes its descriptors."""
        worker, number = self._worker, self.number
        self.fds, self._before, self.setup = dict(given.fds), given.counters, given.setup
        told = [
            self.thread.answer(post(number, self.fds.get(kind, NO_FD)))
            for kind, post in (
                ("kick", worker.set_kick),
                ("call", worker.set_call),
                ("error", worker.set_error),
            )
        ]
        if where is not None and given.setup is not None:
            told.append(
                self._start(where, given.setup, record, taken_over=True, broken=given.broken)
            )
        return [*told, self.enable(enabled=given.enabled)]

    async def move(self, where: Place, setup: VringSetup) -> None:
        """Go on at another place."""
        await self.thread.answer(self._worker.move(self.number, where))
        self.setup = setup

    def enable(self, *, enabled: bool) -> asyncio.Future[int]:
        """Let the ring be served, or have it wait."""
        return self.thread.answer(self._worker.enable(self.number, enabled))

    async def stop(self) -> int:
        """Drain and stop: the next base.  The kick and call eventfds are closed.

        One that is stopping already, for somebody who was cancelled, is waited for.
        """
        if self._stopping is None or self._stopping.done():
            self._stopping = self.thread.answer(self._worker.stop(self.number))
        base = await asyncio.shield(self._stopping)
        self.setup = None
        self.close("kick", "call")
        return base

    def close(self, *kinds: str) -> None:
        """Close descriptors that the worker does not use any more."""
        close_foreign([self.fds.pop(kind) for kind in kinds if kind in self.fds])

    def close_all(self) -> None:
        """Close every descriptor: the worker has ended."""
        self.close("kick", "call", "error")
        close_foreign(self._unused)

    def counters(self) -> dict[str, int]:
        """The counters, and how many requests are in flight."""
        in_flight = self._worker.ring_state(self.number)["in_flight"]
        own = self._worker.counters(self.number)
        told = {name: count + self._before.get(name, 0) for name, count in own.items()}
        return {**told, "in_flight": in_flight}

    @property
    def is_broken(self) -> bool:
        """Whether its driver broke it, or its memory was taken away."""
        return bool(self._worker.ring_state(self.number)["broken"])

    def report_recovered(self, count: int) -> None:
        """Log how many requests another back end has left in flight, which are done now."""
        log.info("requests recovered", ring=self.index, requests=count)

    def report(self, reason: int) -> None:
        """Log that the worker stopped fetching from the ring."""
        if reason in REPORTS:
            what, hint = REPORTS[reason]
            log.warning(what, ring=self.index, hint=hint)
            return
        name = errno.errorcode.get(reason, str(reason))
        what = "ring lost its memory" if reason == errno.ENXIO else "ring broken by its driver"
        log.warning(what, ring=self.index, reason=name)


def place(memory: ring.MemoryMap | None, setup: VringSetup) -> Place | None:
    """Where a ring's three parts are mapped, or None if one of them is not, or is misaligned."""
    found = [memory.locate(at, size) if memory else 0 for at, size, _ in setup.parts]
    aligned = all(
        at % alignment == 0 for at, (_, _, alignment) in zip(found, setup.parts, strict=True)
    )
    if memory is None or not (all(found) and aligned):
        return None
    log = None if setup.logged_at is None else (memory.guest_address(setup.desc), setup.logged_at)
    return found[0], found[1], found[2], log
