# SPDX-License-Identifier: Apache-2.0
"""The role that a data plane plays for a vhost-user connection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from blkd.vhost_user.wire import MemoryRegion


@dataclass(frozen=True, slots=True)
class VringSetup:
    """All that a ring needs to start, as negotiated; addresses are the front end's own."""

    size: int
    """Descriptors, a power of two."""
    desc: int
    avail: int
    used: int
    base: int
    """The avail index (split) to serve first, as SET_VRING_BASE gave it."""
    features: int
    """The virtio features in force: the ring's layout and notifications depend on them."""


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
        """Drain and stop ring `index`, dropping its kick and call: the next index to serve."""

    async def refresh(self) -> None:
        """Hand the device's present parameters (capacity, cache mode) to the data path."""

    async def reset(self) -> None:
        """Drain and stop every ring, close its descriptors and unmap the guest's memory."""
