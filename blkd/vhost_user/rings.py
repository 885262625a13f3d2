# SPDX-License-Identifier: Apache-2.0
"""The role that a data plane plays for a vhost-user connection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.wire import LogBase, MemoryRegion, VirtioFeature

DESC_BYTES = 16  # of a descriptor, in both layouts (virtio 1.3, 2.7.5 and 2.8.13)
EVENT_BYTES = 4  # of a packed ring's event suppression structure (2.8.14)

Part = tuple[int, int, int]
"""Address, size and alignment of a part of a ring, in bytes."""


@dataclass(frozen=True, slots=True)
class VringSetup:
    """All that a ring needs to start, as negotiated; addresses are the front end's own."""

    size: int
    """Descriptors; a power of two where the ring is split."""
    desc: int
    avail: int
    """The avail ring, or the driver's event suppression structure of a packed ring."""
    used: int
    """The used ring, or the device's event suppression structure of a packed ring."""
    base: int
    """What to serve first, as SET_VRING_BASE gave it."""
    features: int
    """The virtio features in force: the ring's layout and notifications depend on them."""
    logged_at: int | None = None
    """The guest address under which writes to `used` are logged; None if writes to the ring's
    own areas are not."""

    @property
    def packed(self) -> bool:
        """Whether it is a packed virtqueue (2.8), not a split one (2.7)."""
        return bool(self.features & VirtioFeature.RING_PACKED)

    @property
    def event_idx(self) -> bool:
        """Whether both sides say at which index they want to be notified."""
        return bool(self.features & VirtioFeature.EVENT_IDX)

    @property
    def indirect(self) -> bool:
        """Whether chains may stand in tables of their own."""
        return bool(self.features & VirtioFeature.INDIRECT_DESC)

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """Descriptors, the driver's area and the device's area (2.7, 2.8.10.1)."""
        desc = (self.desc, DESC_BYTES * self.size, DESC_BYTES)
        if self.packed:
            return desc, (self.avail, EVENT_BYTES, 4), (self.used, EVENT_BYTES, 4)
        return desc, (self.avail, 6 + 2 * self.size, 2), (self.used, 6 + 8 * self.size, 4)


@dataclass(frozen=True, slots=True)
class HeldInflight:
    """The in-flight region that the data path writes.  The descriptor stays with it."""

    region: Inflight
    packed: bool
    """Whether it is laid out for packed rings."""
    fd: int


@dataclass(frozen=True, slots=True)
class HeldRing:
    """What the data path has of a ring, at rest.  The descriptors stay with it."""

    index: int
    base: int = 0
    """What `stop_ring` would answer."""
    broken: bool = False
    lost: bool = False
    """Whether it lies in no memory."""
    fds: Mapping[str, int] = field(default_factory=dict)
    """Of "kick", "call" and "error", those that there are."""
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GivenRing:
    """A ring that another process has served so far.  The descriptors are given with it."""

    index: int
    fds: Mapping[str, int]
    setup: VringSetup | None
    """None for a ring that is not started."""
    enabled: bool
    broken: bool
    counters: Mapping[str, int]


class Rings(Protocol):
    """What a connection drives.  All descriptors passed in are taken: the callee closes them.

    Every method raises RequestRefused when the request cannot be done as asked and
    leaves the rings as they were.
    """

    async def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; returns when nothing uses the old one."""

    async def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; running rings go on."""

    async def remove_memory(self, region: MemoryRegion) -> None:
        """Remove one region; returns when no I/O uses it."""

    async def make_inflight(self, region: Inflight) -> int:
        """Make an in-flight region: its descriptor, which is the caller's."""

    async def use_inflight(self, region: Inflight, fd: int, *, packed: bool) -> None:
        """Record what is in flight in this region, from the next ring that is started on."""

    async def set_log(self, log: LogBase | None, fd: int | None) -> None:
        """Mark in another dirty log, or in none; the old one is unused afterwards."""

    async def log_data(self, *, on: bool) -> None:
        """Mark what requests write into guest memory; rings' own areas as their setup says."""

    async def set_kick(self, index: int, fd: int | None) -> None:
        """Give ring `index` its kick eventfd; None means that the front end has none."""

    async def set_call(self, index: int, fd: int | None) -> None:
        """Give ring `index` its call eventfd; None means that it polls the used ring."""

    async def set_error(self, index: int, fd: int | None) -> None:
        """Give ring `index` its error eventfd."""

    async def start_ring(self, index: int, setup: VringSetup) -> None:
        """Start ring `index`: it is served once it is enabled too."""

    async def move_ring(self, index: int, setup: VringSetup) -> None:
        """Give a running ring new addresses (SET_VRING_ADDR while started)."""

    async def enable_ring(self, index: int, *, enabled: bool) -> None:
        """Let ring `index` be served, or have it wait; it stays started."""

    async def stop_ring(self, index: int) -> int:
        """Drain and stop ring `index`, dropping its kick and call: the base to go on from."""

    async def refresh(self) -> None:
        """Hand the device's present parameters (capacity, cache mode) to the data path."""

    async def reset(self) -> None:
        """Drain and stop every ring, close its descriptors and unmap the guest's memory."""
