# SPDX-License-Identifier: Apache-2.0
"""How a vring is set up: what a data path must know to start it."""

from dataclasses import dataclass

from blkd.vhost_user.wire import VirtioFeature

DESC_BYTES = 16  # of a descriptor, in both layouts (virtio 1.3, 2.7.5 and 2.8.13)
EVENT_BYTES = 4  # of a packed ring's event suppression structure (2.8.14)

Part = tuple[int, int, int]
"""Address, size and alignment of a part of a vring, in bytes."""


@dataclass(frozen=True, slots=True)
class VringSetup:
    """All that a vring needs to start, as negotiated.

    Addresses are the front end's own, or IOVAs (`translated`).
    """

    size: int
    """Descriptors; a power of two where the vring is split."""
    desc: int
    avail: int
    """The avail ring, or the driver's event suppression structure of a packed ring."""
    used: int
    """The used ring, or the device's event suppression structure of a packed ring."""
    base: int
    """What to serve first, as SET_VRING_BASE gave it."""
    features: int
    """The negotiated virtio features: layout and notifications depend on them."""
    logged_at: int | None = None
    """The guest address under which writes to `used` are logged; None if not.

    Where addresses are IOVAs, it only says that they are: QEMU gives an IOVA here too."""

    @property
    def packed(self) -> bool:
        """Whether it is a packed virtqueue (2.8), not a split one (2.7)."""
        return bool(self.features & VirtioFeature.RING_PACKED)

    @property
    def translated(self) -> bool:
        """Whether its addresses, and those of its descriptors, are IOVAs."""
        return bool(self.features & VirtioFeature.ACCESS_PLATFORM)

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
