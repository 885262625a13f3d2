# SPDX-License-Identifier: Apache-2.0
"""The asyncio face of the data path: rings, guest memory and the workers that serve them.

The only importer of `blkd.ring`.  Whatever is handed to a worker is complete, and is kept
until the worker has answered that it no longer needs it.
"""

import asyncio
import contextlib
import errno
import mmap
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from blkd import ring
from blkd.errors import DataPlaneError, DrainTimeout, RequestRefused
from blkd.image.base import Image
from blkd.vhost_user.rings import VringSetup
from blkd.vhost_user.wire import MemoryRegion
from blkd.virtio.blk import SECTOR_BYTES, BlkDevice, Feature
from blkd.virtio.device import MAX_QUEUE_SIZE

log = structlog.get_logger()

Place = tuple[int, int, int]
"""Where a ring's descriptor table, avail ring and used ring are mapped here."""

NO_FD: Final = -1
EVENTFD: Final = "anon_inode:[eventfd]"
LAST_ADDRESS: Final = 2**63 - 1  # of a file, as off_t counts


def probe_io_uring() -> dict[str, bool]:
    """Whether this kernel's io_uring has each operation that is used, by the operation's name.

    Raises:
        DataPlaneError: There is no io_uring, or it is forbidden.
    """
    try:
        return ring.probe_io_uring()
    except OSError as error:
        raise DataPlaneError(
            f"io_uring cannot be used: {error.strerror}",
            hint="Linux 6.1 or newer is needed, and kernel.io_uring_disabled must be 0",
        ) from error


def require_eventfd(fd: int, what: str) -> None:
    """Raise RequestRefused unless `fd` is an eventfd, the only kind that cannot block us."""
    try:
        found = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError as error:
        raise RequestRefused(f"the {what} descriptor is unusable: {error.strerror}") from error
    if found != EVENTFD:
        raise RequestRefused(f"the {what} descriptor is {found}, not an eventfd")


def map_region(region: MemoryRegion, fd: int) -> ring.Mapping:
    """Map a region of the front end's memory.  Raises RequestRefused where that cannot be."""
    where = f"memory region at guest address {region.guest_address:#x}"
    end = region.mmap_offset + region.size
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RequestRefused(f"{where}: its descriptor is not a memory file")
    if region.size == 0 or end > LAST_ADDRESS:
        raise RequestRefused(f"{where}: {region.size} bytes from {region.mmap_offset:#x}")
    if end > status.st_size:
        raise RequestRefused(f"{where}: ends at {end:#x} of a file of {status.st_size:#x} bytes")
    try:
        return ring.Mapping(
            fd,
            region.mmap_offset,
            region.size,
            region.guest_address,
            region.user_address,
            max(status.st_blksize, mmap.PAGESIZE),
        )
    except OSError as error:
        raise RequestRefused(f"{where}: cannot be mapped: {error.strerror}") from error


class _Thread:
    """A worker and the futures that wait for its answers."""

    def __init__(self, name: str, longest_chain: int, on_end: Callable[[OSError], None]) -> None:
        self.worker = ring.Worker(rings=1, largest=MAX_QUEUE_SIZE, longest_chain=longest_chain)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._left = False
        self._on_end = on_end
        self.on_report: Callable[[int], None] = lambda _reason: None
        self._loop.add_reader(self.worker.answers_fd, self._hear)
        self._thread = threading.Thread(target=self._run, args=(name,), name=name, daemon=True)
        self._thread.start()

    def answer(self, ticket: int) -> asyncio.Future[int]:
        """What the worker will answer under `ticket`: a number, or DataPlaneError."""
        future: asyncio.Future[int] = self._loop.create_future()
        if self._left:
            future.cancel()
        else:
            self._waiting[ticket] = future
        return future

    def leave(self) -> None:
        """Have the thread end at once; nothing waits for it any more."""
        self._left = True
        self._loop.remove_reader(self.worker.answers_fd)
        self.worker.quit()
        for future in self._waiting.values():
            future.cancel()

    def join(self) -> None:
        """Wait for the thread to have left."""
        self._thread.join()

    def _run(self, name: str) -> None:
        try:
            self.worker.run(name)
        except OSError as error:
            self._loop.call_soon_threadsafe(self._on_end, error)

    def _hear(self) -> None:
        for ticket, _ring, result in self.worker.answers():
            if ticket == 0:
                self.on_report(-result)
                continue
            future = self._waiting.pop(ticket)
            if future.done():
                continue  # nobody waits any more
            if result < 0:
                future.set_exception(DataPlaneError(os.strerror(-result)))
            else:
                future.set_result(result)


class _Ring:
    """One virtqueue: its thread, its descriptors, and where it lies while it is started."""

    def __init__(self, index: int, thread: _Thread) -> None:
        self.index = index
        self.thread = thread
        self.worker = thread.worker
        self.setup: VringSetup | None = None
        self.fds: dict[str, int] = {}
        thread.on_report = self._report

    def place(self, memory: ring.MemoryMap | None, setup: VringSetup) -> Place | None:
        """Where the ring's three parts are mapped, or None if one of them is not."""
        parts = (
            (setup.desc, 16 * setup.size, 16),
            (setup.avail, 6 + 2 * setup.size, 2),
            (setup.used, 6 + 8 * setup.size, 4),
        )
        found = [memory.locate(at, size) if memory else 0 for at, size, _ in parts]
        aligned = all(
            at % alignment == 0 for at, (_, _, alignment) in zip(found, parts, strict=True)
        )
        return (found[0], found[1], found[2]) if all(found) and aligned else None

    async def replace_fd(self, kind: str, fd: int | None) -> None:
        """Use another kick, call or error eventfd, taken; the old one is closed when unused."""
        post = {
            "kick": self.worker.set_kick,
            "call": self.worker.set_call,
            "error": self.worker.set_error,
        }[kind]
        old = self.fds.pop(kind, None)
        if fd is not None:
            self.fds[kind] = fd
        try:
            await self.thread.answer(post(0, NO_FD if fd is None else fd))
        finally:
            if old is not None:
                os.close(old)

    def set_memory(self, memory: ring.MemoryMap | None) -> asyncio.Future[int]:
        """Serve from another memory map; done when the old one is unused."""
        place = self.place(memory, self.setup) if self.setup else None
        return self.thread.answer(self.worker.set_memory(memory, [place]))

    async def stop(self) -> int:
        """Drain and stop: the next avail index.  The kick and call eventfds are closed."""
        base = await self.thread.answer(self.worker.stop(0))
        self.setup = None
        self.close("kick", "call")
        return base

    def close(self, *kinds: str) -> None:
        """Close descriptors that the worker does not use any more."""
        for kind in kinds:
            if (fd := self.fds.pop(kind, None)) is not None:
                os.close(fd)

    def _report(self, reason: int) -> None:
        name = errno.errorcode.get(reason, str(reason))
        what = "ring lost its memory" if reason == errno.ENXIO else "ring broken by its driver"
        log.warning(what, ring=self.index, reason=name)


class DataPlane:
    """Serves the rings of one block device from one image; plays `vhost_user.rings.Rings`.

    Made on a running event loop.  Failure of a worker arrives as `failed`; a front end whose
    memory shrank while it was in use has `on_fault` called, and has to go.
    """

    def __init__(self, image: Image, device: BlkDevice, longest_chain: int) -> None:
        self._image = image
        self._device = device
        self._mappings: dict[MemoryRegion, ring.Mapping] = {}
        self._memory: ring.MemoryMap | None = None
        self._pausing: list[asyncio.Future[int]] = []
        self._left = False
        self.paused = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_fault: Callable[[], None] = lambda: None
        self._faults = ring.fault_eventfd()
        asyncio.get_running_loop().add_reader(self._faults, self._hear_fault)
        self._longest_chain = longest_chain
        self._awake: dict[int, _Ring] = {}
        self._enabled: set[int] = set()

    @property
    def _rings(self) -> Iterable[_Ring]:
        """The rings that a front end has had to do with; the others cost nothing."""
        return tuple(self._awake.values())

    async def _wake(self, index: int) -> _Ring:
        """Ring `index`, with a worker that knows all that the others know.

        Raises:
            DataPlaneError: The host has no room for one more worker, or all have ended.
        """
        if index in self._awake:
            return self._awake[index]
        if self._left:
            raise DataPlaneError("the data path has ended")
        try:
            r = _Ring(index, _Thread(f"blkd-io-{index}", self._longest_chain, self._fail))
        except (OSError, RuntimeError) as error:
            raise DataPlaneError(f"no worker can be started for ring {index}: {error}") from error
        self._awake[index] = r
        told = [self._set_limits(r), r.set_memory(self._memory)]
        told.append(r.thread.answer(r.worker.enable(0, index in self._enabled)))
        if self.paused:
            self._pausing.append(r.thread.answer(r.worker.pause()))
        await self._everywhere(told)  # all posted before anything else can be
        return r

    # ---- memory ----

    async def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; returns when nothing uses the old one."""
        try:
            mapped = {r: map_region(r, fd) for r, fd in zip(regions, fds, strict=True)}
        finally:
            close_all(fds)
        await self._use_memory(mapped)

    async def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; running rings go on."""
        try:
            mapping = map_region(region, fd)
        finally:
            os.close(fd)
        await self._use_memory({**self._mappings, region: mapping})

    async def remove_memory(self, region: MemoryRegion) -> None:
        """Remove one region; returns when no I/O uses it.  A ring inside it is broken."""
        if region not in self._mappings:
            raise RequestRefused(f"no memory region at guest address {region.guest_address:#x}")
        await self._use_memory({r: m for r, m in self._mappings.items() if r != region})

    async def _use_memory(self, mappings: dict[MemoryRegion, ring.Mapping]) -> None:
        """Hand a new map to every worker and wait until the old one is unused."""
        memory = ring.MemoryMap(list(mappings.values())) if mappings else None
        self._mappings, self._memory = mappings, memory
        await self._everywhere(r.set_memory(memory) for r in self._rings)

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
                undo.callback(os.close, fd)
                require_eventfd(fd, kind)
            r = await self._wake(index)
            undo.pop_all()
        await r.replace_fd(kind, fd)

    async def start_ring(self, index: int, setup: VringSetup) -> None:
        """Start ring `index`; what was made available before is looked at right away."""
        r = await self._wake(index)
        place = self._placed(r, setup)
        ticket = r.worker.start(
            0,
            place,
            size=setup.size,
            base=setup.base,
            event_idx=bool(setup.features & Feature.RING_EVENT_IDX),
            indirect=bool(setup.features & Feature.RING_INDIRECT_DESC),
        )
        try:
            await r.thread.answer(ticket)
        except DataPlaneError as error:
            raise RequestRefused(f"ring {index} cannot start: {error}") from error
        r.setup = setup

    async def move_ring(self, index: int, setup: VringSetup) -> None:
        """Give a running ring new addresses (SET_VRING_ADDR while started)."""
        r = await self._wake(index)
        await r.thread.answer(r.worker.move(0, self._placed(r, setup)))
        r.setup = setup

    async def enable_ring(self, index: int, *, enabled: bool) -> None:
        """Let ring `index` be served, or have it wait; it stays started."""
        (self._enabled.add if enabled else self._enabled.discard)(index)
        if (r := self._awake.get(index)) is not None:
            await r.thread.answer(r.worker.enable(0, enabled))

    async def stop_ring(self, index: int) -> int:
        """Drain ring `index` and stop it: the next avail index to serve.

        Every request already fetched is completed to the guest before it returns, as
        GET_VRING_BASE asks, so guest memory may then be unmapped.
        """
        return await (await self._wake(index)).stop()

    async def reset(self) -> None:
        """Drain and stop every ring, close its descriptors and unmap the guest's memory."""
        if self._left:
            return
        await self._everywhere(r.stop() for r in self._rings if r.setup is not None)
        for r in self._rings:
            for kind in ("kick", "call", "error"):
                await r.replace_fd(kind, None)
            await self.enable_ring(r.index, enabled=False)
        self._enabled.clear()
        await self._use_memory({})

    def _placed(self, r: _Ring, setup: VringSetup) -> Place:
        place = r.place(self._memory, setup)
        if place is None:
            raise RequestRefused(
                f"ring {r.index} lies outside the memory table or is not aligned: descriptors at"
                f" {setup.desc:#x}, avail at {setup.avail:#x}, used at {setup.used:#x}"
            )
        return place

    # ---- the device as a whole ----

    async def refresh(self) -> None:
        """Hand the device's present parameters (capacity, cache mode) to the data path."""
        await self._everywhere(self._set_limits(r) for r in self._rings)

    def _set_limits(self, r: _Ring) -> asyncio.Future[int]:
        device, limits = self._device, self._image.limits
        return r.thread.answer(
            r.worker.set_limits(
                fd=self._image.fd,
                capacity=device.capacity * SECTOR_BYTES,
                block_size=limits.logical_block_size,
                memory_alignment=limits.memory_alignment,
                max_discard_sectors=device.max_discard_sectors,
                max_zero_sectors=device.max_write_zeroes_sectors,
                max_ranges=device.max_write_zeroes_segments,
                read_only=device.read_only,
                write_through=not device.write_back,
                serial=device.serial,
            )
        )

    async def pause(self, deadline: float) -> None:
        """Fetch nothing more and wait for what is in flight.

        Raises:
            DrainTimeout: Requests are still in flight after `deadline` seconds, and the rings
                stay paused and go on draining; or `resume` came meanwhile.
        """
        if not self.paused:
            self.paused = True
            self._pausing = [r.thread.answer(r.worker.pause()) for r in self._rings]
        pausing = self._pausing
        if unfinished := [future for future in pausing if not future.done()]:
            await asyncio.wait(unfinished, timeout=deadline)
        if not all(map(succeeded, pausing)):
            raise DrainTimeout(f"{self.in_flight} requests in flight after {deadline:g} seconds")

    async def resume(self) -> None:
        """Fetch again; requests that waited are served now.  A pause under way is off."""
        if not self.paused:
            return
        pausing, self._pausing, self.paused = self._pausing, [], False
        await self._everywhere(r.thread.answer(r.worker.resume()) for r in self._rings)
        await asyncio.gather(*pausing, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        """Requests fetched and not answered yet."""
        return sum(r.worker.in_flight for r in self._rings)

    def counters(self, index: int) -> dict[str, int]:
        """The counters of ring `index`, by name; empty while nobody has used it."""
        r = self._awake.get(index)
        return {} if r is None else {**r.worker.counters(0), "in_flight": r.worker.in_flight}

    @property
    def broken_rings(self) -> tuple[int, ...]:
        """The rings that their driver broke."""
        return tuple(r.index for r in self._rings if r.worker.ring_state(0)["broken"])

    def leave(self) -> None:
        """End the workers at once; requests in flight are abandoned."""
        if self._left:
            return
        self._left = True
        asyncio.get_running_loop().remove_reader(self._faults)
        for r in self._rings:
            r.thread.leave()

    def close(self) -> None:
        """End the workers and release what belongs to them; `reset` has come before."""
        self.leave()
        for r in self._rings:
            r.thread.join()
            r.close("kick", "call", "error")

    async def _everywhere(self, answers: Iterable[Awaitable[int]]) -> None:
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


def succeeded(future: asyncio.Future[int]) -> bool:
    """Whether a future has a result, neither an exception nor a cancellation."""
    return future.done() and not future.cancelled() and future.exception() is None


def close_all(fds: Iterable[int]) -> None:
    """Close every one of `fds`."""
    for fd in fds:
        os.close(fd)
