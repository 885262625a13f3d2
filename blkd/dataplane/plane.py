# SPDX-License-Identifier: Apache-2.0
"""The data path of one device: its rings, guest memory and the workers that serve them."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from blkd import ring
from blkd.dataplane import inflight_region
from blkd.dataplane.inflight_region import InflightRegion
from blkd.dataplane.memory import (
    Shared,
    map_log,
    require_eventfd,
    require_local,
    share_all,
)
from blkd.dataplane.registration import Registration
from blkd.dataplane.served import ServedDevice
from blkd.dataplane.workers import (
    NOT_RECORDED,
    LiveRing,
    Place,
    Record,
    WorkerThread,
    place,
)
from blkd.errors import DataPlaneError, DrainTimeout, RequestRefused
from blkd.host.fds import close_foreign, wait_closed
from blkd.vhost_user.channel import Fds
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.rings import GivenRing, HeldInflight, HeldRing, VringSetup
from blkd.vhost_user.wire import LogBase, MemoryRegion

log = structlog.get_logger()

NANOSECONDS = 1000  # of a microsecond
SEEN_LIMIT = 1.0  # seconds for workers to take a command, whatever is in flight
JOIN_LIMIT = 0.4  # seconds that the workers may take to end; half a second is all that is left


@dataclass(frozen=True, slots=True)
class Crew:
    """How many workers serve an export, where they run, and how long they look on."""

    workers: int
    """Ring I belongs to worker I modulo this."""
    cpus: tuple[int, ...] = ()
    """Worker I is pinned to the I-th of these, starting over behind the last; none: to none."""
    poll_us: int = 0
    """Microseconds to look on before a sleep, at the most; 0 for never."""
    register_memory: bool = False
    """Whether each worker registers guest memory with its io_uring."""

    def cpu(self, worker: int) -> int | None:
        """The CPU that a worker is pinned to."""
        return self.cpus[worker % len(self.cpus)] if self.cpus else None


class DataPlane:
    """Serves the rings of one device; plays `vhost_user.rings.Rings`.

    Made on a running event loop.  Failure of a worker arrives as `failed`; a front end whose
    memory shrank while it was in use has `on_fault` called, and has to go.  Before the first
    ring starts, `before_first` may refuse that; after the last one of a front end that logs data
    has stopped, the guest may go on elsewhere, and `after_migration` is awaited.
    """

    def __init__(self, served: ServedDevice, crew: Crew) -> None:
        self._served = served
        self._device = served.device
        self._crew = crew
        self._registration = Registration(self._register)
        self._registrable = False
        self._shared: dict[MemoryRegion, Shared] = {}
        self._memory: ring.MemoryMap | None = None
        self._inflight: InflightRegion | None = None
        self._written_to: list[InflightRegion] = []  # mapped until the workers have ended
        self._said_unrecorded = False
        self._log: ring.Mapping | None = None
        self._log_fd: int | None = None
        self._logs_data = False
        self._pausing: list[asyncio.Future[int]] = []
        self._left = False
        self.paused = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_fault: Callable[[], None] = lambda: None
        self.before_first: Callable[[], Awaitable[None]] = _nothing
        self.after_migration: Callable[[], Awaitable[None]] = _nothing
        self._faults = ring.fault_eventfd()
        asyncio.get_running_loop().add_reader(self._faults, self._hear_fault)
        self._threads: dict[int, WorkerThread] = {}
        self._awake: dict[int, LiveRing] = {}
        self._enabled: set[int] = set()

    @property
    def _rings(self) -> Iterable[LiveRing]:
        """The rings that a front end has had to do with; the others cost nothing."""
        return tuple(self._awake.values())

    @property
    def _crew_awake(self) -> Iterable[WorkerThread]:
        """The workers that have such a ring."""
        return tuple(self._threads.values())

    async def _wake(self, index: int) -> LiveRing:
        """Ring `index`, with a worker that knows all that the others know.

        Raises:
            DataPlaneError: The host has no room for one more worker, or all have ended.
        """
        if index in self._awake:
            return self._awake[index]
        if self._left:
            raise DataPlaneError("the data path has ended")
        told: list[asyncio.Future[int]] = []
        number, worker = divmod(index, self._crew.workers)
        if worker not in self._threads:
            self._threads[worker] = self._hire(worker, index)
            told += self._brief(self._threads[worker])
        r = self._awake[index] = LiveRing(index, self._threads[worker], number)
        told.append(r.enable(enabled=index in self._enabled))
        await self._everywhere(told)  # all posted before anything else can be
        if len(told) > 1:  # a worker was hired
            self._tell_unregistered()
        return r

    def _hire(self, worker: int, index: int) -> WorkerThread:
        rings = len(range(worker, self._device.queues, self._crew.workers))
        try:
            return WorkerThread(
                worker,
                rings,
                self._served,
                self._crew.poll_us * NANOSECONDS,
                self._crew.cpu(worker),
                on_end=self._fail,
            )
        except (OSError, RuntimeError) as error:
            raise DataPlaneError(f"no worker can be started for ring {index}: {error}") from error

    def _brief(self, thread: WorkerThread) -> list[asyncio.Future[int]]:
        """Tell a new worker what the others know."""
        if self.paused:
            self._pausing.append(thread.answer(thread.worker.pause()))
        return [
            thread.configure(),
            self._set_log(thread),
            thread.set_memory(self._memory),
            *([thread.answer(thread.worker.register_memory())] if self._registrable else []),
        ]

    # ---- memory ----

    async def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; returns when nothing uses the old one."""
        with Fds(fds) as owned:
            await require_local(owned, "memory table")
            shared = share_all(regions, owned.take())
        await self._use_memory(shared)

    async def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; running rings go on."""
        with Fds([fd]) as owned:
            await require_local(owned, f"memory region at guest address {region.guest_address:#x}")
            shared = Shared(region, owned.take_one())
        await self._use_memory({**self._shared, region: shared})

    async def remove_memory(self, region: MemoryRegion) -> None:
        """Remove one region; returns when no I/O uses it.  A ring inside it is broken."""
        if region not in self._shared:
            raise RequestRefused(f"no memory region at guest address {region.guest_address:#x}")
        await self._use_memory({r: m for r, m in self._shared.items() if r != region})

    async def _use_memory(self, shared: dict[MemoryRegion, Shared]) -> None:
        """Hand a new map to every worker, wait until the old one is unused, and give that up."""
        memory = ring.MemoryMap([s.mapping for s in shared.values()]) if shared else None
        gone = list(set(self._shared.values()) - set(shared.values()))
        self._shared, self._memory, self._registrable = shared, memory, False
        async with contextlib.AsyncExitStack() as afterwards:
            afterwards.push_async_callback(wait_closed, [shared.fd for shared in gone], gone)
            # The front end may soon use the old memory otherwise: no page of it is filled then.
            afterwards.push_async_callback(self._registration.leave)
            await self._everywhere(thread.set_memory(memory) for thread in self._crew_awake)
        if self._crew.register_memory and memory is not None:
            self._registration.want(memory)

    def _register(self, error: OSError | None) -> None:
        """Have every worker register the present memory, if its pages are there."""
        if self._left:
            return
        if error is not None:
            log.warning("guest memory not registered", reason=error.strerror)
            return
        self._registrable = True
        told = []
        with contextlib.suppress(OSError):  # one that does not answer goes on without
            told = [thread.answer(thread.worker.register_memory()) for thread in self._crew_awake]
        if told:
            done = asyncio.gather(*told, return_exceptions=True)
            done.add_done_callback(lambda _: self._tell_unregistered())

    def _tell_unregistered(self) -> None:
        """Log it where guest memory could not be registered as told; it is served all the same."""
        refused = [t.worker.registered for t in self._crew_awake if t.worker.registered < 0]
        if refused:
            log.warning(
                "guest memory not registered",
                reason=os.strerror(-refused[0]),
                hint="raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)",
            )

    @property
    def memory_is_registered(self) -> bool:
        """Whether every worker has the guest's memory registered."""
        return bool(self._threads) and all(t.worker.registered == 1 for t in self._crew_awake)

    # ---- requests in flight ----

    async def make_inflight(self, region: Inflight) -> int:
        """Make an in-flight region: its descriptor, which is the caller's."""
        return inflight_region.make(region)

    async def use_inflight(self, region: Inflight, fd: int, *, packed: bool) -> None:
        """Record what is in flight in this region, from the next ring that is started on."""
        largest = self._device.queue_size
        with Fds([fd]) as owned:
            await require_local(owned, "in-flight region")
            adopted = InflightRegion.adopt(region, owned.take_one(), largest, packed=packed)
        self._replace_inflight(adopted)
        if adopted.note is not None:
            self._served.recall(adopted.note)
            await self.refresh()

    def _replace_inflight(self, region: InflightRegion | None) -> None:
        old, self._inflight = self._inflight, region
        self._said_unrecorded = False
        if old is None:
            return
        old.close()
        if self._is_serving:  # a ring could not be stopped, and may still write there
            self._written_to.append(old)

    def _record(self, index: int, setup: VringSetup) -> Record:
        """Where a ring is recorded.  One that cannot be is served all the same, which is said once.

        A refusal would cost a guest its disk, now; this costs it requests, if blkd ever dies.
        """
        if self._inflight is None:
            return NOT_RECORDED
        record = self._inflight.part(index, setup)
        if record is None and not self._said_unrecorded:
            self._said_unrecorded = True
            log.warning(
                "requests in flight not recorded",
                ring=index,
                size=setup.size,
                reason=str(self._inflight),
                hint="if blkd is killed they are lost: reset the guest then",
            )
        return record or NOT_RECORDED

    # ---- the dirty log ----

    async def set_log(self, log: LogBase | None, fd: int | None) -> None:
        """Mark in another dirty log, or in none; the old one is unused afterwards."""
        mapping: ring.Mapping | None = None
        if log is not None and fd is not None:
            with Fds([fd]) as owned:
                await require_local(owned, "dirty log")
                mapping = map_log(log, fd)
                owned.take()
        await self._log_in(mapping, fd, of_data=self._logs_data)

    async def log_data(self, *, on: bool) -> None:
        """Mark what requests write into guest memory; rings' own areas as their setup says."""
        await self._log_in(self._log, self._log_fd, of_data=on)

    async def _log_in(self, mapping: ring.Mapping | None, fd: int | None, *, of_data: bool) -> None:
        old = [] if mapping is self._log else [self._log]
        old_fd = [] if self._log_fd in (None, fd) else [self._log_fd]
        self._log, self._log_fd, self._logs_data = mapping, fd, of_data
        try:
            await self._everywhere(self._set_log(thread) for thread in self._crew_awake)
        finally:
            await wait_closed(old_fd, old)

    @property
    def _is_migrating(self) -> bool:
        """Whether the front end has data logged; some accept LOG_ALL and give no log."""
        return self._logs_data and self._log is not None

    def _set_log(self, thread: WorkerThread) -> asyncio.Future[int]:
        return thread.answer(thread.worker.set_log(self._log, self._logs_data))

    # ---- rings ----

    async def set_kick(self, index: int, fd: int | None) -> None:
        """Give ring `index` its kick eventfd; None means that the front end has none."""
        await self._replace_fd(index, "kick", fd)

    async def set_call(self, index: int, fd: int | None) -> None:
        """Give ring `index` its call eventfd; None means that it polls the used ring."""
        await self._replace_fd(index, "call", fd)

    async def set_error(self, index: int, fd: int | None) -> None:
        """Give ring `index` its error eventfd."""
        await self._replace_fd(index, "error", fd)

    async def _replace_fd(self, index: int, kind: str, fd: int | None) -> None:
        with contextlib.ExitStack() as undo:
            if fd is not None:
                undo.callback(close_foreign, [fd])
                require_eventfd(fd, kind)
            r = await self._wake(index)
            undo.pop_all()
        try:
            await r.replace_fd(kind, fd)
        except DataPlaneError as error:
            raise RequestRefused(f"ring {index} cannot use its {kind} eventfd: {error}") from error

    async def start_ring(self, index: int, setup: VringSetup) -> None:
        """Start ring `index`; what was made available before is looked at right away."""
        r = await self._wake(index)
        where, record = self._placed(r, setup), self._record(index, setup)
        if not self._is_serving:
            await self.before_first()
        try:
            await r.start(where, setup, record)
        except DataPlaneError as error:
            raise RequestRefused(f"ring {index} cannot start: {error}") from error

    async def move_ring(self, index: int, setup: VringSetup) -> None:
        """Give a running ring new addresses (SET_VRING_ADDR while started)."""
        r = await self._wake(index)
        await r.move(self._placed(r, setup), setup)

    async def enable_ring(self, index: int, *, enabled: bool) -> None:
        """Let ring `index` be served, or have it wait; it stays started."""
        (self._enabled.add if enabled else self._enabled.discard)(index)
        if (r := self._awake.get(index)) is not None:
            await r.enable(enabled=enabled)

    async def stop_ring(self, index: int) -> int:
        """Drain ring `index` and stop it: the base to go on from, as GET_VRING_BASE has it.

        Every request already fetched is completed to the guest before it returns, as
        GET_VRING_BASE asks, so guest memory may then be unmapped.
        """
        base = await (await self._wake(index)).stop()
        if self._is_migrating and not self._is_serving:
            await self.after_migration()
        return base

    async def reset(self) -> None:
        """Drain and stop every ring, close its descriptors and unmap the guest's memory."""
        if self._left:
            return
        async with contextlib.AsyncExitStack() as steps:  # all, whatever becomes of one: last first
            steps.push_async_callback(self._use_memory, {})
            steps.push_async_callback(self._log_in, None, None, of_data=False)
            steps.callback(self._replace_inflight, None)
            steps.callback(self._enabled.clear)
            steps.push_async_callback(self._forget_rings)
            steps.push_async_callback(self._stop_all)

    async def _stop_all(self) -> None:
        """Stop every ring; with the last of a guest that migrates, the image's lock goes."""
        was_serving = self._is_serving
        await self._everywhere(r.stop() for r in self._rings if r.setup is not None)
        if self._is_migrating and was_serving:  # not if one may still write
            await self.after_migration()

    async def _forget_rings(self) -> None:
        """Disable every ring and close its descriptors."""
        await self._everywhere(self._forget(r) for r in self._rings)

    async def _forget(self, r: LiveRing) -> None:
        async with contextlib.AsyncExitStack() as steps:
            steps.push_async_callback(self.enable_ring, r.index, enabled=False)
            for kind in ("error", "call", "kick"):
                steps.push_async_callback(r.replace_fd, kind, None)

    @property
    def _is_serving(self) -> bool:
        """Whether a ring is started."""
        return any(r.setup is not None for r in self._rings)

    def _placed(self, r: LiveRing, setup: VringSetup) -> Place:
        where = place(self._memory, setup)
        if where is None:
            raise RequestRefused(
                f"ring {r.index} lies outside the memory table or is not aligned: descriptors at"
                f" {setup.desc:#x}, avail at {setup.avail:#x}, used at {setup.used:#x}"
            )
        return where

    # ---- handed to another process, and taken from one ----

    def held_memory(self) -> dict[MemoryRegion, int]:
        """The descriptor behind each region, borrowed."""
        return {region: shared.fd for region, shared in self._shared.items()}

    def held_inflight(self) -> HeldInflight | None:
        """The in-flight region, if there is one that anything can be recorded in."""
        if self._inflight is None or not self._inflight.entries:
            return None
        return self._inflight.held

    def held_log(self) -> int | None:
        """The descriptor behind the dirty log, borrowed."""
        return self._log_fd

    def held_rings(self) -> list[HeldRing]:
        """The rings that a front end has had to do with; nothing may be in flight."""
        return [r.held() for r in self._rings]

    async def prepare(self, rings: Iterable[int]) -> None:
        """Start the workers of `rings`, which then wait: for `adopt_rings` and `resume`."""
        self.paused = True
        for index in rings:
            await self._wake(index)

    async def adopt_rings(self, rings: Sequence[GivenRing]) -> None:
        """Go on with rings of another process, within the memory already set."""
        if any(given.setup for given in rings):
            await self.before_first()
        told: list[asyncio.Future[int]] = []
        for given in rings:
            with contextlib.ExitStack() as undo:
                undo.callback(close_foreign, list(given.fds.values()))
                for kind, fd in given.fds.items():
                    require_eventfd(fd, kind)
                r = await self._wake(given.index)
                where = self._placed(r, given.setup) if given.setup else None
                record = self._record(r.index, given.setup) if given.setup else NOT_RECORDED
                undo.pop_all()
            if given.enabled:
                self._enabled.add(given.index)
            told += r.adopt(given, where, record)
        await self._everywhere(told)

    # ---- the device as a whole ----

    async def refresh(self) -> None:
        """Hand the device's present parameters (capacity, cache mode) to the data path."""
        if self._inflight is not None and (note := self._served.note) is not None:
            self._inflight.write_note(note)
        await self._everywhere(thread.configure() for thread in self._crew_awake)

    async def pause(self, deadline: float) -> None:
        """Fetch nothing more and wait for what is in flight.

        Raises:
            DrainTimeout: Requests are still in flight after `deadline` seconds, and the rings
                stay paused and go on draining; or `resume` came meanwhile.
        """
        if not self.paused:
            self.paused = True
            self._pausing = [t.answer(t.worker.pause()) for t in self._crew_awake]
        pausing = self._pausing
        if unfinished := [future for future in pausing if not future.done()]:
            _, late = await asyncio.wait(unfinished, timeout=deadline)
            if late:  # a worker that answers anything else has seen the pause and fetches no more
                seen = [thread.configure() for thread in self._crew_awake]
                await asyncio.wait(seen, timeout=SEEN_LIMIT)
        if not all(map(succeeded, pausing)):
            raise DrainTimeout(f"{self.in_flight} requests in flight after {deadline:g} seconds")

    async def resume(self) -> None:
        """Fetch again; requests that waited are served now.  A pause under way is off."""
        if not self.paused:
            return
        pausing, self._pausing, self.paused = self._pausing, [], False
        await self._everywhere(t.answer(t.worker.resume()) for t in self._crew_awake)
        await asyncio.gather(*pausing, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        """Requests fetched and not answered yet."""
        return sum(thread.worker.in_flight for thread in self._crew_awake)

    def counters(self, index: int) -> dict[str, int]:
        """The counters of ring `index`, by name; empty while nobody has used it."""
        r = self._awake.get(index)
        return {} if r is None else r.counters()

    @property
    def broken_rings(self) -> tuple[int, ...]:
        """The rings that their driver broke."""
        return tuple(r.index for r in self._rings if r.is_broken)

    def leave(self) -> None:
        """End the workers at once; requests in flight are abandoned."""
        if self._left:
            return
        self._left = True
        self._registration.forget()
        asyncio.get_running_loop().remove_reader(self._faults)
        for thread in self._crew_awake:
            thread.leave()

    def close(self) -> None:
        """End the workers and release what belongs to them; `reset` has come before.

        Where a worker is stuck in the disk, what it may still use stays open: the process ends.
        """
        self.leave()
        patience = time.monotonic() + JOIN_LIMIT
        if not all(t.join(patience - time.monotonic()) for t in self._crew_awake):
            log.warning("worker stuck", device=self._served.name)
            return
        for r in self._rings:
            r.close_all()
        self._written_to.clear()
        close_foreign([shared.fd for shared in self._shared.values()])
        self._shared = {}
        self._replace_inflight(None)
        if self._log_fd is not None:
            close_foreign([self._log_fd])
            self._log_fd = None

    async def _everywhere(self, answers: Iterable[Awaitable[object]]) -> None:
        """Wait for all of `answers`, whatever becomes of one of them."""
        results = await asyncio.gather(*answers, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _hear_fault(self) -> None:
        os.eventfd_read(self._faults)
        self.on_fault()

    def _fail(self, error: OSError) -> None:
        self.leave()
        if not self.failed.done():
            self.failed.set_exception(DataPlaneError(f"a worker failed: {error.strerror}"))


async def _nothing() -> None:
    """Nobody wants to know."""


def succeeded(future: asyncio.Future[int]) -> bool:
    """Whether a future has a result, neither an exception nor a cancellation."""
    return future.done() and not future.cancelled() and future.exception() is None
