# SPDX-License-Identifier: Apache-2.0
"""The data path of one device, as one thing: a short face over its parts."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import structlog

from blkd.dataplane import inflight_region
from blkd.dataplane.dirty_log import DirtyLog
from blkd.dataplane.memory import GuestMemory
from blkd.dataplane.memory_faults import MemoryFaults
from blkd.dataplane.pausing import Pausing
from blkd.dataplane.recording import Recording
from blkd.dataplane.served import ServedDevice
from blkd.dataplane.translating import Translating
from blkd.dataplane.vrings import Vrings
from blkd.dataplane.workers import WorkerPlan, Workers
from blkd.errors import DataPlaneError
from blkd.statistics.area import Area
from blkd.vhost_user.data_path import InflightFile, RestoredVring, VringSnapshot
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.iotlb import Access, IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import LogBase, MemoryRegion

JOIN_LIMIT: Final = 0.4
"""Seconds that the workers may take to end; half a second is all that is left of the process."""

log = structlog.get_logger()


class DataPlane:
    """Serves the vrings of one device; plays `vhost_user.data_path.DataPath`.

    Made on a running event loop.  `failed` completes when a worker fails.  `on_fault` is called
    when the front end's memory has shrunk while it was in use: its connection has to end.
    `before_first_start` is awaited before a vring starts while none is started, and may refuse
    that.  `after_migration` is awaited when the last vring has stopped while data is logged: the
    guest may go on elsewhere.  `before_configuring` is awaited before the workers serve with the
    device's present parameters, and may refuse them; `after_enabling` when a vring was enabled or
    disabled.  `on_announce` is called with the MAC address of a guest that has come here.
    Workers count and measure in `area`, which is borrowed, if it is given.
    """

    def __init__(self, served: ServedDevice, plan: WorkerPlan, area: Area | None = None) -> None:
        self._served = served
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_fault: Callable[[], None] = lambda: None
        self.on_miss: Callable[[int, Access], None] = lambda _iova, _access: None
        self.before_first_start: Callable[[], Awaitable[None]] = _do_nothing
        self.after_migration: Callable[[], Awaitable[None]] = _do_nothing
        self.before_configuring: Callable[[], Awaitable[None]] = _do_nothing
        self.after_enabling: Callable[[], Awaitable[None]] = _do_nothing
        self.on_announce: Callable[[bytes], None] = lambda _mac: None
        self._faults = MemoryFaults(self._report_fault)
        self._workers = Workers(served, plan, area, on_failure=self._fail, on_miss=self._miss)
        # A new worker is sent what these have for it, in this order.
        self._pausing = Pausing(self._workers)
        self._workers.at_start.append(lambda thread: [thread.configure()])
        self._dirty_log = DirtyLog(self._workers)
        self._memory = GuestMemory(self._workers, register=plan.register_memory)
        self._recording = Recording(
            self._workers, served.device.queues, served.device.queue_size, self._make_region
        )
        self._vrings = Vrings(
            self._workers,
            self._memory,
            self._recording,
            served.device.flaws,
            before_first_start=self._prepare_first_start,
            on_miss=self._miss,
        )
        self._spare: inflight_region.SpareFiles | None = None
        self._translating = Translating(self._workers, self._memory, self._vrings)

    # ---- guest memory ----

    async def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; returns when nothing uses the old one."""
        await self._memory.set_table(regions, fds)

    async def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; running vrings go on."""
        await self._memory.add(region, fd)

    async def remove_memory(self, region: MemoryRegion) -> None:
        """Remove one region; returns when no I/O uses it.  A vring inside it is broken."""
        await self._memory.remove(region)

    @property
    def memory_is_registered(self) -> bool:
        """Whether every worker has the guest's memory registered."""
        return self._memory.registration.is_complete

    # ---- addresses behind an IOMMU ----

    async def translate_addresses(self, *, on: bool) -> None:
        """Take addresses of chains and vrings for IOVAs, of which nothing is known, or not."""
        await self._translating.switch(on=on)

    async def update_iotlb(self, entry: IotlbEntry) -> None:
        """Translate by an entry from now on, whatever was known of its range."""
        await self._translating.update(entry)

    async def invalidate_iotlb(self, iova: int, size: int) -> None:
        """Forget a range; returns when nothing that has begun touches its memory."""
        await self._translating.invalidate(iova, size)

    async def deny_iotlb(self, iova: int, access: Access) -> None:
        """Fail each request that waits for a translation, for there is none."""
        await self._translating.deny(iova, access)

    # ---- requests in flight, and the dirty log ----

    async def make_inflight(self, region: Inflight) -> int:
        """Make an in-flight region: its descriptor, which is the caller's."""
        return self._make_region(region)

    def _make_region(self, region: Inflight) -> int:
        return (self._spare or inflight_region).make(region)

    def require_record(self) -> None:
        """Record what is in flight also where no front end keeps a region for that."""
        self._recording.is_required = True

    async def use_inflight(
        self, region: Inflight, fd: int, *, packed: bool, is_lent: bool = True
    ) -> None:
        """Record what is in flight in this region, from the next vring on that is started.

        It is the front end's if it `is_lent`, else one that the process before has made.
        """
        note = await self._recording.use(region, fd, packed=packed, is_lent=is_lent)
        if note is not None:
            self._served.recall(note)
            await self.configure()

    async def set_log(self, log: LogBase | None, fd: int | None) -> None:
        """Mark in another dirty log, or in none; the old one is unused afterwards."""
        await self._dirty_log.set(log, fd)

    async def log_data(self, *, on: bool) -> None:
        """Mark what requests write into guest memory; vrings' own areas as their setup says."""
        await self._dirty_log.log_data(on=on)

    # ---- vrings ----

    async def set_kick(self, index: int, fd: int | None) -> None:
        """Give vring `index` its kick eventfd; None means that the front end has none."""
        await self._vrings.replace_fd(index, "kick", fd)

    async def set_call(self, index: int, fd: int | None) -> None:
        """Give vring `index` its call eventfd; None means that it polls the used ring."""
        await self._vrings.replace_fd(index, "call", fd)

    async def set_error(self, index: int, fd: int | None) -> None:
        """Give vring `index` its error eventfd."""
        await self._vrings.replace_fd(index, "error", fd)

    async def start_vring(self, index: int, setup: VringSetup) -> None:
        """Start vring `index`; what was made available before is served right away."""
        await self._vrings.start(index, setup)

    async def move_vring(self, index: int, setup: VringSetup) -> None:
        """Give a running vring new addresses (SET_VRING_ADDR while started)."""
        await self._vrings.move(index, setup)

    async def enable_vring(self, index: int, *, enabled: bool) -> None:
        """Let vring `index` be served, or have it wait; it stays started."""
        await self._vrings.enable(index, enabled=enabled)
        await self.after_enabling()

    @property
    def enabled_vrings(self) -> frozenset[int]:
        """The vrings that are served once they are started."""
        return self._vrings.enabled

    async def stop_vring(self, index: int) -> int:
        """Drain vring `index` and stop it: the base to go on from, as GET_VRING_BASE has it.

        Every request already fetched is completed to the guest before it returns, as
        GET_VRING_BASE asks, so guest memory may then be unmapped.
        """
        base = await self._vrings.stop(index)
        await self._end_migration()
        return base

    async def reset(self) -> None:
        """Drain and stop every vring, close its descriptors and unmap the guest's memory."""
        if self._workers.have_quit:
            return
        async with contextlib.AsyncExitStack() as steps:  # all, whatever becomes of one: last first
            steps.push_async_callback(self._memory.clear)
            steps.push_async_callback(self._dirty_log.clear)
            steps.callback(self._recording.clear)
            steps.push_async_callback(self._translating.clear)
            steps.push_async_callback(self._vrings.reset)
            steps.push_async_callback(self._stop_all)

    async def _stop_all(self) -> None:
        had_vrings = self._workers.have_vrings
        await self._vrings.stop_all()
        if had_vrings:
            await self._end_migration()

    async def _end_migration(self) -> None:
        """Call `after_migration` if the guest is being migrated and nothing serves it any more."""
        if self._dirty_log.is_marking_data and not self._workers.have_vrings:
            await self.after_migration()

    def counters(self, index: int) -> dict[str, int]:
        """The counters of vring `index`, by name; empty while nobody has used it."""
        return self._vrings.counters(index)

    @property
    def broken_vrings(self) -> dict[int, str]:
        """The vrings that are served no more, and why."""
        return {vring.index: vring.reason for vring in self._vrings if vring.is_broken}

    # ---- given to another process, and taken from one ----

    @property
    def memory_fds(self) -> dict[MemoryRegion, int]:
        """The descriptor behind each region, borrowed."""
        return self._memory.fds

    @property
    def inflight_file(self) -> InflightFile | None:
        """The in-flight region, if there is one that anything can be recorded in."""
        return self._recording.file

    @property
    def log_fd(self) -> int | None:
        """The descriptor behind the dirty log, borrowed."""
        return self._dirty_log.fd

    def vring_snapshots(self) -> list[VringSnapshot]:
        """Each vring that a front end has used, as it stands; nothing may be in flight."""
        return [vring.snapshot() for vring in self._vrings]

    async def prepare(self, rings: Iterable[int]) -> None:
        """Start the workers of these vrings; they fetch nothing before `resume`."""
        self._pausing.begin()
        for index in rings:
            await self._vrings.use(index)

    async def restore_vrings(self, rings: Sequence[RestoredVring]) -> None:
        """Go on with vrings of another process, within the memory already set.

        Their descriptors are taken.  Raises RequestRefused where a vring cannot be served.
        """
        await self._vrings.restore(rings)

    # ---- the device as a whole ----

    async def start_workers(self) -> None:
        """Start all workers now, and not when a vring needs them; returns once they serve.

        Likewise files for in-flight regions.  Raises DataPlaneError where the host has no room.
        """
        if self._spare is None:
            device = self._served.device
            self._spare = inflight_region.SpareFiles(device.queues, device.queue_size)
        try:
            await self._workers.start_all()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.failed.done() and not (task is not None and task.cancelling()):
                self.failed.result()  # a worker that fails has its answers cancelled: raises why
            raise

    @property
    def is_restricted(self) -> bool:
        """Whether the io_uring of each worker that was started does only what it was made for."""
        return self._workers.are_restricted

    async def configure(self) -> None:
        """Serve with the device's present parameters, such as capacity and cache mode."""
        await self.before_configuring()
        await self.post_configuration()

    async def post_configuration(self) -> None:
        """`configure` where what stands behind the device needs no preparation."""
        if (note := self._served.note) is not None:
            self._recording.write_note(note)
        await self._workers.post(lambda thread: thread.configure())

    def announce(self, mac: bytes) -> None:
        """Have the network learn that the guest of this MAC address is here now."""
        self.on_announce(mac)

    async def pause(self, deadline: float) -> None:
        """Fetch nothing more and wait for what is in flight.

        Raises:
            DrainTimeout: Requests are still in flight after `deadline` seconds, and the vrings
                stay paused and go on draining; or `resume` came meanwhile.
        """
        await self._pausing.pause(deadline)

    async def resume(self) -> None:
        """Fetch again; requests that waited are served now.  A pause under way ends."""
        await self._pausing.resume()

    async def retry(self, count: int) -> None:
        """Have each worker begin up to `count` requests again that its device holds."""
        await self._workers.post(lambda thread: thread.answer_to(thread.worker.retry(count)))

    @property
    def in_flight(self) -> int:
        """Requests fetched and not answered yet."""
        return self._workers.in_flight

    def quit(self) -> None:
        """End the workers at once; requests in flight are abandoned."""
        if self._workers.have_quit:
            return
        self._workers.quit()
        self._memory.registration.quit()
        self._faults.quit()

    def abandon(self) -> None:
        """End the workers at once; what is in flight reaches the guest's memory no more.

        A worker that is stuck in a system call may still write there until that ends.
        """
        self.quit()
        if self._workers.join(JOIN_LIMIT):
            self._workers.cut_off()

    @property
    def has_abandoned(self) -> bool:
        """Whether somebody who cannot be stopped is still at what was in flight."""
        return self._workers.have_abandoned

    def close(self) -> None:
        """End the workers and release what belongs to them; `reset` has come before.

        Where a worker is stuck in a system call, what it may still use stays open: the process
        ends.
        """
        self.quit()
        if not self._workers.join(JOIN_LIMIT):
            log.warning("worker stuck", device=self._served.name)
            return
        self._workers.cut_off()
        self._vrings.close()
        self._recording.close()
        if self._spare is not None:
            self._spare.close()
        self._memory.close()
        self._dirty_log.close()

    def _report_fault(self) -> None:
        self.on_fault()

    def _miss(self, iova: int, access: Access) -> None:
        self.on_miss(iova, access)

    async def _prepare_first_start(self) -> None:
        await self.before_first_start()

    def _fail(self, error: OSError) -> None:
        self.quit()
        if not self.failed.done():
            self.failed.set_exception(DataPlaneError(f"a worker failed: {error.strerror}"))


async def _do_nothing() -> None:
    """The hook of a data path that nobody hooks into."""
