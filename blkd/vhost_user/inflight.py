# SPDX-License-Identifier: Apache-2.0
"""The in-flight region: memory that the front end keeps for the back end that serves it next.

It has one part for each vring, which the data path writes (`src/inflight/region.pxd`; vhost-user,
"Inflight I/O tracking").
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from blkd.vhost_user.wire import LARGEST_OFFSET, exactly

VERSION = 1
"""Of what is written there; 0 in a region that nobody has used."""

HEAD = struct.Struct("=QHH")  # of each ring's part: features, version, entries
ALIGNMENT = 64  # bytes, of a ring's part: rings of two workers share no cache line
SPLIT_BYTES = (16, 16)  # of a part's head, and of an entry
PACKED_BYTES = (32, 32)


@dataclass(frozen=True, slots=True)
class Inflight:
    """An in-flight region as messages describe it ("Inflight description"); sizes are in bytes."""

    LAYOUT: ClassVar = struct.Struct("=QQHH")
    PADDED: ClassVar = struct.Struct("=QQHH4x")
    LONGEST: ClassVar = PADDED.size

    mmap_size: int
    mmap_offset: int
    queues: int
    queue_size: int
    """Descriptors of each ring, as the front end has it: its rings may be larger.

    QEMU 10 names its `queue-size` here, and has rings of 1024 whatever that is."""
    padded: bool = False
    """Whether the message has the padding of a C structure, as QEMU's do."""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a description of either length."""
        padded = len(payload) == cls.PADDED.size
        size, offset, queues, queue_size = exactly(cls.PADDED if padded else cls.LAYOUT, payload)
        return cls(size, offset, queues, queue_size, padded)

    def encode(self) -> bytes:
        """The description's 20 or 24 bytes."""
        layout = self.PADDED if self.padded else self.LAYOUT
        return layout.pack(self.mmap_size, self.mmap_offset, self.queues, self.queue_size)

    @property
    def fits_a_file(self) -> bool:
        """Whether a file can have it at this offset, aligned so that words can be written."""
        return (
            self.mmap_offset % ALIGNMENT == 0
            and self.mmap_offset + self.mmap_size <= LARGEST_OFFSET
        )


def part_bytes(entries: int, *, packed: bool) -> int:
    """Bytes of a ring's part of the region: an entry for each descriptor."""
    head, entry = PACKED_BYTES if packed else SPLIT_BYTES
    return -(-(head + entry * entries) // ALIGNMENT) * ALIGNMENT


def part_entries(region: Inflight, largest: int, *, packed: bool) -> int:
    """Entries of each ring's part, found by the region's size; 0 for a size that blkd never made.

    A part has room for the `largest` ring that is served.  In a region that an older blkd
    made, or another back end, it has room for a ring of `queue_size`.
    """
    sizes = (region.queue_size, largest)
    fits = (n for n in sizes if region.mmap_size == region.queues * part_bytes(n, packed=packed))
    return next(fits, 0)
