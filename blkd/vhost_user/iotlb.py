# SPDX-License-Identifier: Apache-2.0
"""The device IOTLB in messages: what a front end's IOMMU says of I/O virtual addresses.

With ACCESS_PLATFORM, descriptors and vrings have I/O virtual addresses (IOVAs).  A back end asks
for each translation that it lacks, and a front end takes back those that hold no more (vhost-user,
"An IOTLB message", "IOMMU support").
"""

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from blkd.errors import ProtocolError
from blkd.vhost_user.wire import ADDRESS_SPACE, exactly


class Access(enum.IntFlag):
    """What a device may do to memory, or wants to ("permissions flags")."""

    READ = 1
    WRITE = 2


class IotlbKind(enum.IntEnum):
    """What an IOTLB message is about ("IOTLB message type")."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


@dataclass(frozen=True, slots=True)
class IotlbEntry:
    """A translation: `size` bytes from `iova` on lie at `user_address`."""

    iova: int
    size: int
    user_address: int
    """In the front end's address space, as `MemoryRegion.user_address`."""
    access: Access


@dataclass(frozen=True, slots=True)
class IotlbMessage:
    """An IOTLB message, of either channel; which fields count depends on its kind.

    It comes as the document describes it, or with the padding of a C structure, as QEMU's do.
    """

    LAYOUT: ClassVar = struct.Struct("=QQQBB")
    PADDED: ClassVar = struct.Struct("=QQQBB6x")
    LONGEST: ClassVar = PADDED.size

    iova: int
    size: int
    user_address: int
    access: Access
    kind: IotlbKind

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a message of either length; its access and kind are known ones."""
        is_short = len(payload) == cls.LAYOUT.size
        iova, size, user_address, access, kind = exactly(
            cls.LAYOUT if is_short else cls.PADDED, payload
        )
        if access > Access.READ | Access.WRITE:
            raise ProtocolError(f"unknown permissions {access:#x}")
        try:
            return cls(iova, size, user_address, Access(access), IotlbKind(kind))
        except ValueError:
            raise ProtocolError(f"an IOTLB message of the unknown type {kind}") from None

    def encode(self) -> bytes:
        """The message's 32 bytes, padding included."""
        return self.PADDED.pack(self.iova, self.size, self.user_address, self.access, self.kind)

    @property
    def entry(self) -> IotlbEntry:
        """The translation that an UPDATE brings."""
        return IotlbEntry(self.iova, self.size, self.user_address, self.access)

    @property
    def end(self) -> int:
        """The end of the range of IOVAs, which is no longer than all that there are.

        QEMU means all of them by 0 bytes at 0, for there the size has wrapped.
        """
        return min(self.iova + self.size, ADDRESS_SPACE) if self.size else ADDRESS_SPACE
