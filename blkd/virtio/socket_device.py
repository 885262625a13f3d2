# SPDX-License-Identifier: Apache-2.0
"""The virtio socket device as its driver sees it: features and configuration space.

Section numbers are those of virtio 1.3.  Packets are the data path's affair.
"""

import struct
from collections.abc import Callable, Mapping
from enum import IntFlag
from typing import Final

from blkd.errors import ConfigError, RequestRefused
from blkd.virtio.device import MAX_QUEUE_SIZE
from blkd.virtio.flaws import OF_DEVICE

HOST_CID: Final = 2
FIRST_CID: Final = 3
LAST_CID: Final = 0xFFFFFFFE
"""The others are reserved (5.10.4)."""

FLAWS: Final[Mapping[int, str]] = {
    OF_DEVICE: "packet: a buffer of {value} bytes to be written has no room for more than a header"
    " of {limit}",
}
"""What breaks a vring since no packet can be given, numbered as in `src/vsock/to_guest.pxd`."""


class Feature(IntFlag):
    """Feature bits that blkd knows for a socket device (5.10.3, 6)."""

    STREAM = 1 << 0
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34


class VsockDevice:
    """One socket device; plays `virtio.device.Device`."""

    queues = 3
    """For what the guest receives, what it sends, and events.  QEMU keeps the last to itself."""
    queue_size = MAX_QUEUE_SIZE
    generation = 0
    changing = range(0)
    flaws = FLAWS
    features = int(sum(Feature))
    protocol_features = 0

    def __init__(self, cid: int) -> None:
        """Raise ConfigError on a CID that no guest can have."""
        if not FIRST_CID <= cid <= LAST_CID:
            raise ConfigError(
                f"a guest cannot have the CID {cid}",
                hint=f"CIDs from {FIRST_CID} to {LAST_CID} are guests'",
            )
        self.cid = cid
        self.chosen = 0
        """The features that the driver has chosen."""
        self.epoch = 0
        """Rises whenever the device is reset, or its front end has left."""
        self.on_reset: Callable[[], None] = lambda: None

    def config(self, offset: int, size: int) -> bytes:
        """The guest's CID, zero-padded (5.10.4)."""
        return struct.pack("<Q", self.cid)[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, _data: bytes) -> None:
        """Refuse: nothing can be written."""
        raise RequestRefused(f"the configuration of a socket device at {offset} is read-only")

    def accept(self, features: int) -> None:
        """Take the driver's choice of features."""
        if features & ~self.features:
            raise RequestRefused(f"features {features & ~self.features:#x} were never offered")
        self.chosen = features

    def reset(self) -> None:
        """Forget the driver's choices, and all its connections."""
        self.chosen = 0
        self.epoch += 1
        self.on_reset()
