# SPDX-License-Identifier: Apache-2.0
"""A vring as a session knows it: what the front end has said of it so far."""

from dataclasses import dataclass

from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import VirtioFeature, VringAddr

PACKED_START = 0x80008000  # avail and used at 0, both wrap counters 1 (virtio 1.3, 2.8.1)


@dataclass(slots=True)
class SessionVring:
    """What a front end has set of one vring, and which state it is in.

    It is started once it has all that it needs, and served while it is enabled, too (vhost-user,
    "Ring states").
    """

    index: int
    size: int = 0
    """Descriptors; 0 until SET_VRING_NUM."""
    addresses: VringAddr | None = None
    """None until SET_VRING_ADDR."""
    base: int | None = None
    """Where it starts or has stopped, as SET_VRING_BASE has it; None for its beginning."""
    has_kick: bool = False
    """Whether SET_VRING_KICK has come since it stopped."""
    started: bool = False
    enabled: bool = False

    def setup(self, features: int) -> VringSetup | None:
        """All that it takes to start it with these virtio features; None while some is missing."""
        if not (self.size and self.addresses and self.has_kick):
            return None
        where, base = self.addresses, self.position(features)
        return VringSetup(
            self.size, where.desc, where.avail, where.used, base, features, where.logged_at
        )

    @property
    def is_logged(self) -> bool:
        """Whether writes to its used ring are marked in the dirty log."""
        return self.addresses is not None and self.addresses.logged_at is not None

    def position(self, features: int) -> int:
        """Its base, or where none was set that of a fresh vring."""
        if self.base is not None:
            return self.base
        return PACKED_START if features & VirtioFeature.RING_PACKED else 0
