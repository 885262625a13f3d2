# SPDX-License-Identifier: Apache-2.0
"""vhost-user on the wire: numbers and byte layouts, to and from frozen dataclasses.

They are those of the vhost-user document ("Message Specification", "Front-end message types",
"Back-end message types"), in the machine's own byte order.  Sizes and offsets are in bytes.  A
`decode` raises ProtocolError on bytes that do not fit the layout, and nothing else.
"""

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from blkd.errors import ProtocolError

VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8
KNOWN_FLAGS = VERSION_MASK | REPLY | NEED_REPLY

MAX_FDS = 8  # VHOST_MEMORY_BASELINE_NREGIONS: no message carries more
MAX_REGIONS = 8  # of one SET_MEM_TABLE, likewise
MAX_CONFIG = 4096  # bytes; the largest configuration access of any front end known (rust-vmm)

LOG_PAGE = 0x1000  # VHOST_LOG_PAGE: bytes of guest memory that a bit of the dirty log stands for

ADDRESS_SPACE = 1 << 64
LARGEST_OFFSET = 1 << 63  # off_t is signed


class Request(enum.IntEnum):
    """The requests of a front end, without VHOST_USER_."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(enum.IntEnum):
    """The requests of a back end on the back-end channel, without VHOST_USER_BACKEND_."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8


class ProtocolFeature(enum.IntFlag):
    """Extensions of the protocol, without VHOST_USER_PROTOCOL_F_ ("Protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class VirtioFeature(enum.IntFlag):
    """Feature bits that belong to no one kind of device (virtio 1.3, 6).

    LOG_ALL and PROTOCOL_FEATURES are not virtio's, but vhost's and vhost-user's.
    """

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41


def exactly(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """The fields of a payload.  Raises ProtocolError unless it is as long as `layout`."""
    if len(payload) != layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes, not {layout.size}")
    return layout.unpack(payload)


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes every payload, in both directions and on both channels ("Header")."""

    LAYOUT: ClassVar = struct.Struct("=III")

    request: int
    flags: int
    size: int
    """Bytes of payload that follow."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a header, which is of this version of the protocol."""
        header = cls(*exactly(cls.LAYOUT, data))
        if header.flags & VERSION_MASK != VERSION:
            raise ProtocolError(f"protocol version {header.flags & VERSION_MASK}, not {VERSION}")
        if header.flags & ~KNOWN_FLAGS:
            raise ProtocolError(f"unknown header flags {header.flags:#x}")
        return header

    def encode(self) -> bytes:
        """The header's 12 bytes."""
        return self.LAYOUT.pack(self.request, self.flags, self.size)

    @property
    def is_reply(self) -> bool:
        """Whether this answers an earlier request."""
        return bool(self.flags & REPLY)

    @property
    def needs_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement (VHOST_USER_PROTOCOL_F_REPLY_ACK)."""
        return bool(self.flags & NEED_REPLY)


def reply(request: int, payload: bytes) -> bytes:
    """A whole reply.  No other flag is set: QEMU accepts only this value of `flags`."""
    return Header(request, VERSION | REPLY, len(payload)).encode() + payload


class Payload(Protocol):
    """A layout of what follows a header."""

    LONGEST: ClassVar[int]
    """Bytes."""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a whole payload.  Raises ProtocolError."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload."""

    LONGEST: ClassVar = 0

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Check that there is nothing."""
        if payload:
            raise ProtocolError(f"a payload of {len(payload)} bytes, not 0")
        return cls()


@dataclass(frozen=True, slots=True)
class Unread:
    """A payload that is not read, since its request is always refused."""

    LONGEST: ClassVar = 0

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Accept any bytes."""
        del payload
        return cls()


@dataclass(frozen=True, slots=True)
class U64:
    """A number ("A single 64-bit integer")."""

    LAYOUT: ClassVar = struct.Struct("=Q")
    LONGEST: ClassVar = LAYOUT.size

    value: int

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a number."""
        return cls(*exactly(cls.LAYOUT, payload))

    def encode(self) -> bytes:
        """The number's 8 bytes."""
        return self.LAYOUT.pack(self.value)


@dataclass(frozen=True, slots=True)
class VringState:
    """A vring and a number, such as its size or base ("A vring state description")."""

    LAYOUT: ClassVar = struct.Struct("=II")
    LONGEST: ClassVar = LAYOUT.size

    index: int
    num: int

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a vring's state."""
        return cls(*exactly(cls.LAYOUT, payload))

    def encode(self) -> bytes:
        """The state's 8 bytes."""
        return self.LAYOUT.pack(self.index, self.num)


@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where a vring lies, in the front end's virtual addresses ("A vring address description")."""

    LAYOUT: ClassVar = struct.Struct("=IIQQQQ")
    LONGEST: ClassVar = LAYOUT.size
    LOG: ClassVar = 1  # VHOST_VRING_F_LOG, as a mask

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int
    """A guest physical address; it counts only with the flag LOG."""

    @property
    def logged_at(self) -> int | None:
        """The guest address that `used` has in the dirty log; None where it is not logged."""
        return self.log if self.flags & self.LOG else None

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a vring's addresses."""
        return cls(*exactly(cls.LAYOUT, payload))

    def encode(self) -> bytes:
        """The addresses' 40 bytes."""
        return self.LAYOUT.pack(self.index, self.flags, self.desc, self.used, self.avail, self.log)


@dataclass(frozen=True, slots=True)
class VringFd:
    """A vring, and whether an eventfd comes with the message (VHOST_USER_SET_VRING_KICK)."""

    LAYOUT: ClassVar = struct.Struct("=Q")
    LONGEST: ClassVar = LAYOUT.size
    INDEX: ClassVar = 0xFF
    NO_FD: ClassVar = 0x100

    index: int
    has_fd: bool

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a vring's number and flag."""
        (word,) = exactly(cls.LAYOUT, payload)
        if word & ~(cls.INDEX | cls.NO_FD):
            raise ProtocolError(f"unknown flags in {word:#x}")
        return cls(word & cls.INDEX, not word & cls.NO_FD)

    def encode(self) -> bytes:
        """The number's 8 bytes."""
        return self.LAYOUT.pack(self.index | (0 if self.has_fd else self.NO_FD))


@dataclass(frozen=True, slots=True)
class LogBase:
    """A dirty log in the file that comes with the message ("Log description")."""

    LAYOUT: ClassVar = struct.Struct("=QQ")
    LONGEST: ClassVar = LAYOUT.size

    size: int
    offset: int
    """Where it begins in its file."""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a log's size and place."""
        return cls(*exactly(cls.LAYOUT, payload))

    def encode(self) -> bytes:
        """The log's 16 bytes."""
        return self.LAYOUT.pack(self.size, self.offset)

    @property
    def covered(self) -> int:
        """The end of the guest addresses that it has bits for: from 0 on."""
        return self.size * 8 * LOG_PAGE


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A part of guest memory in three address spaces ("Memory region description")."""

    LAYOUT: ClassVar = struct.Struct("=QQQQ")

    guest_address: int
    """Where it begins for the guest; descriptors have such addresses."""
    size: int
    user_address: int
    """Where it begins for the front end; `VringAddr` has such addresses."""
    mmap_offset: int
    """Where it begins in its file."""

    def check(self) -> None:
        """Raise ProtocolError where it is empty, or does not fit into an address space."""
        if not self.size:
            raise ProtocolError(f"an empty memory region at {self.guest_address:#x}")
        for start, end in (
            (self.guest_address, ADDRESS_SPACE),
            (self.user_address, ADDRESS_SPACE),
            (self.mmap_offset, LARGEST_OFFSET),
        ):
            if start + self.size > end:
                raise ProtocolError(f"a memory region of {self.size} bytes at {start:#x} wraps")

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a region; it is checked."""
        region = cls(*exactly(cls.LAYOUT, payload))
        region.check()
        return region

    def encode(self) -> bytes:
        """The region's 32 bytes."""
        return self.LAYOUT.pack(self.guest_address, self.size, self.user_address, self.mmap_offset)

    def overlaps(self, other: Self) -> bool:
        """Whether some guest address lies in both."""
        return (
            self.guest_address < other.guest_address + other.size
            and other.guest_address < self.guest_address + self.size
        )

    def is_same(self, other: Self) -> bool:
        """Whether REM_MEM_REG of one removes the other; the mmap offset does not count."""
        return (self.guest_address, self.size, self.user_address) == (
            other.guest_address,
            other.size,
            other.user_address,
        )


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """A region after padding ("Single memory region description")."""

    PADDING: ClassVar = 8
    LONGEST: ClassVar = PADDING + MemoryRegion.LAYOUT.size

    region: MemoryRegion

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a padded region."""
        if len(payload) != cls.LONGEST:
            raise ProtocolError(f"a payload of {len(payload)} bytes, not {cls.LONGEST}")
        return cls(MemoryRegion.decode(payload[cls.PADDING :]))

    def encode(self) -> bytes:
        """The padded region's 40 bytes."""
        return bytes(self.PADDING) + self.region.encode()


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """All of guest memory ("Multiple Memory regions description")."""

    COUNT: ClassVar = struct.Struct("=II")  # and padding
    LONGEST: ClassVar = COUNT.size + MAX_REGIONS * MemoryRegion.LAYOUT.size

    regions: tuple[MemoryRegion, ...]

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a table whose length agrees with its count."""
        head, body = payload[: cls.COUNT.size], payload[cls.COUNT.size :]
        count, _ = exactly(cls.COUNT, head)
        if not 1 <= count <= MAX_REGIONS:
            raise ProtocolError(f"{count} memory regions, not 1 to {MAX_REGIONS}")
        step = MemoryRegion.LAYOUT.size
        if len(body) != count * step:
            raise ProtocolError(f"{len(body)} bytes for {count} memory regions of {step}")
        return cls(
            tuple(MemoryRegion.decode(body[at : at + step]) for at in range(0, len(body), step))
        )

    def encode(self) -> bytes:
        """The table, as long as its regions need."""
        head = self.COUNT.pack(len(self.regions), 0)
        return head + b"".join(region.encode() for region in self.regions)


@dataclass(frozen=True, slots=True)
class Config:
    """A part of the configuration space, read or written ("Virtio device config space")."""

    HEAD: ClassVar = struct.Struct("=III")  # offset, size, flags
    LONGEST: ClassVar = HEAD.size + MAX_CONFIG

    offset: int
    flags: int
    data: bytes

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read an access whose length agrees with its size."""
        head, data = payload[: cls.HEAD.size], payload[cls.HEAD.size :]
        offset, size, flags = exactly(cls.HEAD, head)
        if len(data) != size:
            raise ProtocolError(f"{len(data)} bytes for {size} bytes of configuration")
        return cls(offset, flags, data)

    def encode(self) -> bytes:
        """The access, its data included."""
        return self.HEAD.pack(self.offset, len(self.data), self.flags) + self.data


class ConfigWrite(Config):
    """A part of the configuration space to be written."""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a write.  Bytes beyond its size are ignored: DPDK always sends the whole space."""
        _, size, _ = exactly(cls.HEAD, payload[: cls.HEAD.size])
        return super().decode(payload[: cls.HEAD.size + size])
