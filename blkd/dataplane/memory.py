# SPDX-License-Identifier: Apache-2.0
"""The guest's memory: the front end's memory table, mapped, and the map that the workers use."""

import contextlib
from collections.abc import Iterable, Sequence

from blkd import ring
from blkd.dataplane.placement import Place, place
from blkd.dataplane.registration import Registration
from blkd.dataplane.shared_files import map_region, require_local
from blkd.dataplane.workers import Answer, Workers, WorkerThread
from blkd.errors import RequestRefused
from blkd.host.fds import close_foreign, wait_closed
from blkd.vhost_user.channel import Fds
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import MemoryRegion


class SharedRegion:
    """A region of the front end's memory: mapped, and its descriptor kept for an upgrade."""

    def __init__(self, region: MemoryRegion, fd: int) -> None:
        """Map it; takes the descriptor.  Raises RequestRefused where that cannot be."""
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, [fd])
            self.mapping = map_region(region, fd)
            undo.pop_all()
        self.fd = fd


class GuestMemory:
    """Owns the regions that the front end has shared, and their mappings.

    A change takes three steps: the new table is mapped, every worker gets it, and once no worker
    uses the old one, what is only in that is unmapped and closed.
    """

    def __init__(self, workers: Workers, *, register: bool) -> None:
        """`register` says whether it is registered with the workers' io_uring, too."""
        self._workers = workers
        self._regions: dict[MemoryRegion, SharedRegion] = {}
        self._map: ring.MemoryMap | None = None
        workers.at_start.append(self._post)
        self.registration = Registration(workers)
        self._registers = register

    @property
    def fds(self) -> dict[MemoryRegion, int]:
        """The descriptor behind each region, borrowed."""
        return {region: shared.fd for region, shared in self._regions.items()}

    async def set_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; returns when nothing uses the old one."""
        with Fds(fds) as owned:
            await require_local(owned, "memory table")
            shared = share_all(regions, owned.take())
        await self._use(shared)

    async def add(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; running vrings go on."""
        with Fds([fd]) as owned:
            await require_local(owned, f"memory region at guest address {region.guest_address:#x}")
            shared = SharedRegion(region, owned.take_one())
        await self._use({**self._regions, region: shared})

    async def remove(self, region: MemoryRegion) -> None:
        """Remove one region; returns when no I/O uses it.  A vring inside it is broken."""
        if region not in self._regions:
            raise RequestRefused(f"no memory region at guest address {region.guest_address:#x}")
        await self._use({r: shared for r, shared in self._regions.items() if r != region})

    async def clear(self) -> None:
        """Remove all regions; returns when no I/O uses them."""
        await self._use({})

    def place(self, index: int, setup: VringSetup) -> Place:
        """Where vring `index` is mapped.  Raises RequestRefused where it is not, or not whole."""
        where = place(self._map, setup)
        if where is None:
            raise RequestRefused(
                f"ring {index} lies outside the memory table or is not aligned: descriptors at"
                f" {setup.desc:#x}, avail at {setup.avail:#x}, used at {setup.used:#x}"
            )
        return where

    @property
    def map(self) -> ring.MemoryMap | None:
        """The present map; None where nothing is shared."""
        return self._map

    def pieces(self, user_address: int, size: int) -> list[tuple[int, int]]:
        """Where a range of the front end's own addresses is mapped: (address, size) each.

        Empty where not all of it is.
        """
        return self._map.pieces(user_address, size) if self._map else []

    def close(self) -> None:
        """Close the descriptors, whatever is mapped: the workers have ended."""
        close_foreign(self.fds.values())
        self._regions = {}

    async def _use(self, regions: dict[MemoryRegion, SharedRegion]) -> None:
        mappings = [shared.mapping for shared in regions.values()]
        memory = ring.MemoryMap(mappings) if mappings else None
        gone = list(set(self._regions.values()) - set(regions.values()))
        self._regions, self._map = regions, memory
        async with contextlib.AsyncExitStack() as afterwards:
            afterwards.push_async_callback(wait_closed, [shared.fd for shared in gone], gone)
            # The front end may soon use the old memory otherwise: no page of it is filled then.
            afterwards.push_async_callback(self.registration.end)
            await self._workers.post(lambda thread: thread.set_memory(memory))
        if self._registers and memory is not None:
            self.registration.begin(memory)

    def _post(self, thread: WorkerThread) -> Iterable[Answer]:
        return [thread.set_memory(self._map)]


def share_all(
    regions: Sequence[MemoryRegion], fds: Sequence[int]
) -> dict[MemoryRegion, SharedRegion]:
    """Map each of `regions`, whose descriptors are taken: all, or RequestRefused and none."""
    left, shared = list(fds), dict[MemoryRegion, SharedRegion]()
    try:
        for region in regions:
            shared[region] = SharedRegion(region, left.pop(0))
    except BaseException:
        close_foreign([*left, *(s.fd for s in shared.values())], list(shared.values()))
        raise
    return shared
