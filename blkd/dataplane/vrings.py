# SPDX-License-Identifier: Apache-2.0
"""The vrings of a device, as the event loop sees them: their descriptors, starts and stops.

What is in a vring is its worker's affair; here is what a front end has given for it.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from blkd import ring
from blkd.dataplane.areas import Areas
from blkd.dataplane.memory import GuestMemory
from blkd.dataplane.placement import Place, Unplaceable, place, place_translated
from blkd.dataplane.recording import NOT_RECORDED, InflightPart, Recording
from blkd.dataplane.shared_files import require_eventfd
from blkd.dataplane.workers import Answer, Workers, WorkerThread, wait_all
from blkd.errors import DataPlaneError, RequestRefused
from blkd.host.fds import close_foreign
from blkd.vhost_user.data_path import RestoredVring, VringSnapshot
from blkd.vhost_user.iotlb import Access, IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import ADDRESS_SPACE
from blkd.virtio.flaws import Flaw, FlawKind

log = structlog.get_logger()

NO_FD: Final = -1

WAITS: Final = "reset the device or reboot the guest: until then its requests wait"
DAMAGED: Final = ("in-flight region damaged: what was in flight is not known", WAITS)
EVENTS: Final[Mapping[int, tuple[str, str]]] = {
    FlawKind.INFLIGHT_POSITION: DAMAGED,
    FlawKind.INFLIGHT_FREE_LIST: DAMAGED,
    FlawKind.INFLIGHT_CHAIN: DAMAGED,
    FlawKind.INFLIGHT_COUNT: DAMAGED,
    FlawKind.POSITION_UNKNOWN: (
        "packed ring served before, its front end does not know how far",
        WAITS,
    ),
    FlawKind.LOG: (
        "ring broken: it writes beyond the dirty log",
        "its front end has no log for that memory: cancel, and reboot the guest",
    ),
    FlawKind.KICK: ("ring broken by its front end", WAITS),
    FlawKind.MEMORY: (
        "ring lost its memory",
        "it is served again once its front end has memory there",
    ),
}
"""What to log of a vring that is served no more, and what helps, by its flaw's kind."""
BROKEN_BY_DRIVER: Final = ("ring broken by its driver", WAITS)


class Vrings:
    """The vrings of one device; one that no front end has used costs nothing.

    `before_first_start` may refuse that any vring is started, by RequestRefused.  `on_miss` is
    called with what is not known of where a vring lies: a page of IOVAs, and what it is needed for.
    """

    def __init__(
        self,
        workers: Workers,
        memory: GuestMemory,
        recording: Recording,
        device_flaws: Mapping[int, str],
        *,
        before_first_start: Callable[[], Awaitable[None]],
        on_miss: Callable[[int, Access], None],
    ) -> None:
        self._workers = workers
        self._memory = memory
        self._recording = recording
        self._device_flaws = device_flaws
        self._before_first_start = before_first_start
        self._on_miss = on_miss
        self._used: dict[int, Vring] = {}
        self._enabled: set[int] = set()

    def __iter__(self) -> Iterator["Vring"]:
        """Those that a front end has used."""
        return iter(tuple(self._used.values()))

    @property
    def enabled(self) -> frozenset[int]:
        """The indices of those that are enabled."""
        return frozenset(self._enabled)

    async def use(self, index: int) -> "Vring":
        """Vring `index`, with a worker that knows all that the others know.

        Raises:
            DataPlaneError: The host has no room for one more worker, or all have ended.
        """
        if index in self._used:
            return self._used[index]
        thread, number, answers = self._workers.worker_for(index)
        vring = self._used[index] = Vring(index, thread, number, self._device_flaws)
        answers.append(vring.enable(enabled=index in self._enabled))
        await wait_all(answers)  # all were posted before anything else could be
        return vring

    async def replace_fd(self, index: int, kind: str, fd: int | None) -> None:
        """Give a vring another kick, call or error eventfd, taken, or none."""
        with contextlib.ExitStack() as undo:
            if fd is not None:
                undo.callback(close_foreign, [fd])
                require_eventfd(fd, kind)
            vring = await self.use(index)
            undo.pop_all()
        try:
            await vring.replace_fd(kind, fd)
        except DataPlaneError as error:
            raise RequestRefused(f"ring {index} cannot use its {kind} eventfd: {error}") from error

    async def start(self, index: int, setup: VringSetup) -> None:
        """Start a vring; what was made available before is served right away."""
        vring = await self.use(index)
        where = self._place(index, setup)
        try:
            part = self._recording.part(index, setup)
            if not self._workers.have_vrings:
                await self._before_first_start()
            await vring.start(where, setup, part)
        except DataPlaneError as error:
            raise RequestRefused(f"ring {index} cannot start: {error}") from error
        self._ask(vring)

    def _place(self, index: int, setup: VringSetup) -> Place | None:
        """Where a vring that is to start lies: None as long as its addresses are not translated.

        Raises RequestRefused where there can be no vring.
        """
        if not setup.translated:
            return self._memory.place(index, setup)
        if any(at + size > ADDRESS_SPACE for at, size, _ in setup.parts):
            raise RequestRefused(f"ring {index} wraps around the end of all addresses")
        return None

    def _ask(self, vring: "Vring") -> None:
        for iova, access in vring.missing:
            self._on_miss(iova, access)

    async def move(self, index: int, setup: VringSetup) -> None:
        """Give a running vring new addresses."""
        vring = await self.use(index)
        where = self._place(index, setup)
        if where is not None:
            await vring.move(where, setup)
        else:
            await vring.move_areas(setup, self._memory.map)
            self._ask(vring)

    async def learn(self, entry: IotlbEntry) -> None:
        """Take in what the front end says of some IOVAs: vrings that lie there are served."""
        for vring in self:
            if await vring.learn(entry, self._memory.map):
                self._ask(vring)

    async def forget(self, iova: int, size: int) -> None:
        """Forget some IOVAs: vrings there are not served until they are translated again.

        Returns when nothing that has begun touches what was there, be it a vring or a buffer.
        """
        lying = [vring for vring in self if vring.forget(iova, size)]
        await wait_all(
            [
                thread.invalidate(iova, size, [v.number for v in lying if v.thread is thread])
                for thread in self._workers
            ]
        )
        for vring in lying:
            self._ask(vring)

    def note_denied(self, iova: int) -> None:
        """Log that a vring lies where there is no translation."""
        for vring in self:
            if any(page == iova for page, _ in vring.missing):
                log.warning("ring without a translation", ring=vring.index, iova=iova, hint=WAITS)

    async def enable(self, index: int, *, enabled: bool) -> None:
        """Let a vring be served, or have it wait; it stays started."""
        (self._enabled.add if enabled else self._enabled.discard)(index)
        if (vring := self._used.get(index)) is not None:
            await vring.enable(enabled=enabled)

    async def stop(self, index: int) -> int:
        """Drain a vring and stop it: the base to go on from."""
        return await (await self.use(index)).stop()

    async def stop_all(self) -> None:
        """Drain and stop every vring that is started."""
        await wait_all([vring.stop() for vring in self if vring.setup is not None])

    async def reset(self) -> None:
        """Disable every vring and close its descriptors; all are stopped."""
        async with contextlib.AsyncExitStack() as steps:
            steps.callback(self._enabled.clear)
            steps.push_async_callback(wait_all, [self._reset_one(vring) for vring in self])

    async def _reset_one(self, vring: "Vring") -> None:
        async with contextlib.AsyncExitStack() as steps:
            steps.push_async_callback(self.enable, vring.index, enabled=False)
            for kind in ("error", "call", "kick"):
                steps.push_async_callback(vring.replace_fd, kind, None)

    async def restore(self, rings: Sequence[RestoredVring]) -> None:
        """Go on with vrings of another process, within the memory already set."""
        if any(given.setup for given in rings):
            await self._before_first_start()
        answers: list[Answer] = []
        for given in rings:
            with contextlib.ExitStack() as undo:
                undo.callback(close_foreign, list(given.fds.values()))
                for kind, fd in given.fds.items():
                    require_eventfd(fd, kind)
                vring = await self.use(given.index)
                where = self._place(given.index, given.setup) if given.setup else None
                part = NOT_RECORDED
                if given.setup:
                    part = self._recording.part(given.index, given.setup)
                undo.pop_all()
            if given.enabled:
                self._enabled.add(given.index)
            answers += vring.restore(given, where, part)
        await wait_all(answers)
        for vring in self:
            self._ask(vring)

    def counters(self, index: int) -> dict[str, int]:
        """The counters of a vring, by name; empty while nobody has used it."""
        vring = self._used.get(index)
        return {} if vring is None else vring.counters()

    def close(self) -> None:
        """Close every descriptor: the workers have ended."""
        for vring in self:
            vring.close()


class Vring:
    """One virtqueue: its worker, its descriptors, and how it was started.

    `index` is the device's number of the vring, `number` its worker's.
    """

    def __init__(
        self, index: int, thread: WorkerThread, number: int, device_flaws: Mapping[int, str]
    ) -> None:
        self.index = index
        self.fds: dict[str, int] = {}
        self.thread = thread
        self.number = number
        self._device_flaws = device_flaws
        self._areas: Areas | None = None  # of one that is started, and lies at IOVAs
        self._is_placed = False  # such a one
        self._replaced: list[int] = []  # to be closed once the worker has ended
        self._replacing: dict[str, Answer] = {}  # the latest answer of each kind
        self._stopping: Answer | None = None  # what `stop` waits for
        self._before: Mapping[str, int] = {}  # counters of the process that served it before
        thread.reports[number] = self.report
        thread.places[number] = self.place_in

    @property
    def _worker(self) -> ring.Worker:
        return self.thread.worker

    @property
    def setup(self) -> VringSetup | None:
        """How it was started; None while it is stopped."""
        return self.thread.setups.get(self.number)

    @setup.setter
    def setup(self, setup: VringSetup | None) -> None:
        if setup is None:
            self.thread.setups.pop(self.number, None)
        else:
            self.thread.setups[self.number] = setup

    async def replace_fd(self, kind: str, fd: int | None) -> None:
        """Use another kick, call or error eventfd, taken; the old one is closed when unused."""
        if (before := self._replacing.get(kind)) is not None and not before.done():
            await asyncio.wait([before])  # whoever asked for that has been cancelled
        answer = self._replacing[kind] = self._post_fd(kind, fd)
        old = self.fds.pop(kind, None)
        if fd is not None:
            self.fds[kind] = fd
        if old is not None:
            answer.add_done_callback(functools.partial(self._retire, old))
        await asyncio.shield(answer)  # cancelled or not: the old one is in use until the answer

    def _post_fd(self, kind: str, fd: int | None) -> Answer:
        post = {
            "kick": self._worker.set_kick,
            "call": self._worker.set_call,
            "error": self._worker.set_error,
        }[kind]
        return self.thread.answer_to(post(self.number, NO_FD if fd is None else fd))

    def _retire(self, fd: int, answer: Answer) -> None:
        """Close a descriptor that was replaced, unless the worker ended without an answer."""
        if answer.cancelled():
            self._replaced.append(fd)
        else:
            close_foreign([fd])

    # ---- where it lies ----

    def place_in(self, memory: ring.MemoryMap | None) -> Place | None:
        """Where it lies in a map, as far as that is known; None where it lies nowhere."""
        if self.setup is None:
            return None
        if self._areas is None:
            return place(memory, self.setup)
        try:
            return place_translated(memory, self.setup, self._areas)
        except Unplaceable as error:
            log.warning("ring not served", ring=self.index, reason=str(error), hint=WAITS)
            return None

    @property
    def missing(self) -> list[tuple[int, Access]]:
        """What is not known of where it lies: the IOVA of a page, and what it is needed for."""
        return self._areas.missing if self._areas else []

    async def learn(self, entry: IotlbEntry, memory: ring.MemoryMap | None) -> bool:
        """Take in what some IOVAs mean: it is served as soon as all of its own are known.

        Whether it is not any more, for they are not what they were.
        """
        return bool(self._areas and self._areas.learn(entry)) and await self._place_areas(memory)

    def forget(self, iova: int, size: int) -> bool:
        """Forget what some IOVAs mean: whether it lies there; who calls has the worker know."""
        lies_there = self._areas is not None and self._areas.forget(iova, size)
        self._is_placed = self._is_placed and not lies_there
        return lies_there

    async def move_areas(self, setup: VringSetup, memory: ring.MemoryMap | None) -> None:
        """Go on at other IOVAs, once they are known, or have writes to the same ones logged."""
        before, self._areas, self.setup = self._areas, Areas(setup), setup
        for entry in before.entries if before else ():
            self._areas.learn(entry)
        await self._place_areas(memory)

    async def _place_areas(self, memory: ring.MemoryMap | None) -> bool:
        """Have the worker know where it lies: whether that was known, and is not any more."""
        where = self.place_in(memory)
        was_placed, self._is_placed = self._is_placed, where is not None
        if where is not None:
            await self.thread.answer_to(self._worker.move(self.number, where))
        elif was_placed and self.setup is not None:
            at, size, _ = self.setup.parts[0]
            await self.thread.invalidate(at, size, [self.number])
        return was_placed and not self._is_placed

    # ---- starting and stopping ----

    async def start(self, where: Place | None, setup: VringSetup, part: InflightPart) -> None:
        """Start at a place, or without one; what was made available before is served at once.

        What its part of the in-flight region says to be in flight is done first.
        """
        answer = self._start(where, setup, part)
        self.setup = setup  # if this is cancelled, the worker starts it all the same
        self._areas = Areas(setup) if setup.translated else None
        self._is_placed = False
        answer.add_done_callback(self._check_started)
        await asyncio.shield(answer)

    def _check_started(self, answer: Answer) -> None:
        if not answer.cancelled() and answer.exception() is not None:
            self.setup = self._areas = None

    def _start(
        self,
        where: Place | None,
        setup: VringSetup,
        part: InflightPart,
        *,
        taken_over: bool = False,
        broken: bool = False,
    ) -> Answer:
        return self.thread.answer_to(
            self._worker.start(
                self.number,
                where,
                index=self.index,
                size=setup.size,
                base=setup.base,
                packed=setup.packed,
                event_idx=setup.event_idx,
                indirect=setup.indirect,
                inflight=part[0],
                entries=part[1],
                is_lent=part[2],
                taken_over=taken_over,
                broken=broken,
            )
        )

    def snapshot(self) -> VringSnapshot:
        """What another process must know to go on with it; its descriptors are borrowed."""
        state = self._worker.ring_state(self.number)
        broken, lost = bool(state["broken"]), bool(state["lost"])
        counters = self.counters()
        del counters["in_flight"]
        return VringSnapshot(self.index, state["base"], broken, lost, self.fds, counters)

    def restore(
        self, given: RestoredVring, where: Place | None, part: InflightPart
    ) -> list[Answer]:
        """Go on with a vring of another process; takes its descriptors."""
        self.fds, self._before, self.setup = dict(given.fds), given.counters, given.setup
        answers = [self._post_fd(kind, self.fds.get(kind)) for kind in ("kick", "call", "error")]
        if given.setup is not None:
            self._areas = Areas(given.setup) if given.setup.translated else None
            answers.append(
                self._start(where, given.setup, part, taken_over=True, broken=given.broken)
            )
        return [*answers, self.enable(enabled=given.enabled)]

    async def move(self, where: Place, setup: VringSetup) -> None:
        """Go on at another place."""
        await self.thread.answer_to(self._worker.move(self.number, where))
        self.setup = setup

    def enable(self, *, enabled: bool) -> Answer:
        """Let the vring be served, or have it wait."""
        return self.thread.answer_to(self._worker.enable(self.number, enabled))

    async def stop(self) -> int:
        """Drain and stop: the next base.  The kick and call eventfds are closed.

        One that is stopping already, for somebody who was cancelled, is waited for.
        """
        if self._stopping is None or self._stopping.done():
            self._stopping = self.thread.answer_to(self._worker.stop(self.number))
        base = await asyncio.shield(self._stopping)
        self.setup = self._areas = None
        self._close("kick", "call")
        return base

    def close(self) -> None:
        """Close every descriptor: the worker has ended."""
        self._close("kick", "call", "error")
        close_foreign(self._replaced)

    def _close(self, *kinds: str) -> None:
        close_foreign([self.fds.pop(kind) for kind in kinds if kind in self.fds])

    def counters(self) -> dict[str, int]:
        """The counters, and how many requests are in flight."""
        in_flight = self._worker.ring_state(self.number)["in_flight"]
        own = self._worker.counters(self.number)
        total = {name: count + self._before.get(name, 0) for name, count in own.items()}
        return {**total, "in_flight": in_flight}

    @property
    def is_broken(self) -> bool:
        """Whether its driver broke it, or its memory was taken away."""
        return bool(self._worker.ring_state(self.number)["broken"])

    def report(self, result: int) -> None:
        """Log what its worker reports of it, as `ring.Worker.answers` has it."""
        if result >= ring.RECOVERED:
            log.info("requests recovered", ring=self.index, requests=result - ring.RECOVERED)
            return
        flaw = self._flaw()
        event, hint = EVENTS.get(flaw.kind, BROKEN_BY_DRIVER)
        log.warning(event, ring=self.index, reason=flaw.describe(self._device_flaws), hint=hint)

    @property
    def reason(self) -> str:
        """Why it is broken, as a sentence."""
        return self._flaw().describe(self._device_flaws)

    def _flaw(self) -> Flaw:
        return Flaw(*self._worker.flaw(self.number))
