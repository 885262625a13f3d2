# SPDX-License-Identifier: Apache-2.0
"""The role of the data path in a vhost-user connection, and what goes in and out of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.iotlb import Access, IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import LogBase, MemoryRegion


@dataclass(frozen=True, slots=True)
class InflightFile:
    """The in-flight region that the data path writes, and the file that it lies in.

    The descriptor is the data path's; others borrow it.
    """

    region: Inflight
    packed: bool
    """Whether it is laid out for packed rings."""
    fd: int
    is_lent: bool = True
    """Whether the front end keeps it for whoever serves it next; else it is of our own making."""


@dataclass(frozen=True, slots=True)
class VringSnapshot:
    """A vring as the data path has it while nothing is in flight.

    Descriptors are the data path's; others borrow them.
    """

    index: int
    base: int = 0
    """What `stop_vring` would return."""
    broken: bool = False
    """Whether it is not served any more because of what its driver or front end did."""
    lost: bool = False
    """Whether the front end has taken away the memory that it lies in."""
    fds: Mapping[str, int] = field(default_factory=dict)
    """Of "kick", "call" and "error", those that there are."""
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestoredVring:
    """A vring that another process has served so far, for the data path to go on with.

    Descriptors are the data path's once it has been passed this.
    """

    index: int
    fds: Mapping[str, int]
    """Of "kick", "call" and "error", those that there are."""
    setup: VringSetup | None
    """None for a vring that is not started."""
    enabled: bool
    broken: bool
    counters: Mapping[str, int]
    """What the other process has counted so far."""


class DataPath(Protocol):
    """What serves the vrings of a connection's device; `dataplane.DataPlane` is one.

    Every descriptor passed in is taken: the data path closes it.  Each method raises
    RequestRefused where it cannot do what it is called for, and then leaves the vrings as they
    were.
    """

    on_miss: Callable[[int, Access], None]
    """Called on the loop with an IOVA whose translation is missing, and what it is needed for.

    Nothing waits for it but what needs it; it may be called again while that is so.
    """

    async def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; returns when nothing uses the old one."""

    async def add_memory(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; running vrings go on."""

    async def remove_memory(self, region: MemoryRegion) -> None:
        """Remove one region; returns when no I/O uses it."""

    async def translate_addresses(self, *, on: bool) -> None:
        """Take addresses of descriptors and vrings for IOVAs, or not any more; no vring runs.

        Nothing is known of any IOVA then.
        """

    async def update_iotlb(self, entry: IotlbEntry) -> None:
        """Translate by this entry from now on, whatever was known of its range."""

    async def invalidate_iotlb(self, iova: int, size: int) -> None:
        """Forget what is known of a range; returns when nothing in flight touches its memory."""

    async def deny_iotlb(self, iova: int, access: Access) -> None:
        """Fail each request that waits for this, as `on_miss` has it: there is no translation."""

    async def make_inflight(self, region: Inflight) -> int:
        """Make an in-flight region: its descriptor, which is the caller's."""

    async def use_inflight(self, region: Inflight, fd: int, *, packed: bool) -> None:
        """Record what is in flight in this region, from the next vring that is started on."""

    async def set_log(self, log: LogBase | None, fd: int | None) -> None:
        """Mark in another dirty log, or in none; nothing uses the old one when it returns."""

    async def log_data(self, *, on: bool) -> None:
        """Mark what requests write into guest memory; vrings' own areas as their setup says."""

    async def set_kick(self, index: int, fd: int | None) -> None:
        """Give vring `index` its kick eventfd; None means that the front end has none."""

    async def set_call(self, index: int, fd: int | None) -> None:
        """Give vring `index` its call eventfd; None means that it polls the used ring."""

    async def set_error(self, index: int, fd: int | None) -> None:
        """Give vring `index` its error eventfd."""

    async def start_vring(self, index: int, setup: VringSetup) -> None:
        """Start vring `index`: it is served once it is enabled too."""

    async def move_vring(self, index: int, setup: VringSetup) -> None:
        """Give a running vring new addresses (SET_VRING_ADDR while started)."""

    async def enable_vring(self, index: int, *, enabled: bool) -> None:
        """Let vring `index` be served, or have it wait; it stays started."""

    async def stop_vring(self, index: int) -> int:
        """Drain and stop vring `index`, dropping its kick and call: the base to go on from."""

    def announce(self, mac: bytes) -> None:
        """Have the network learn that the guest of this MAC address is here now."""

    async def configure(self) -> None:
        """Serve with the device's present parameters, such as capacity and cache mode."""

    async def reset(self) -> None:
        """Drain and stop every vring, close its descriptors and unmap the guest's memory."""
