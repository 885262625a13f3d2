# SPDX-License-Identifier: Apache-2.0
"""A scripted vhost-user front end with a virtio-blk driver: the other side of every test.

It shares nothing with blkd on purpose: layouts and numbers are written down again from the
specifications, so that an error in ours cannot hide behind the same error here.  It is
synchronous, and each wait has a time limit.  Sizes are bytes, sectors are 512 bytes.

    with FrontEnd.connect("demo.sock") as front_end:
        disk = front_end.disk()                     # negotiate, share memory, start a ring
        assert disk.write(0, b"x" * 512) == 0
        status, data = disk.read(0, 512)
"""

import enum
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

from harness.disk import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNSUPP,
    WRITE_ZEROES,
    Disk,
)
from harness.packed_vring import START, PackedVring
from harness.vring import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    GuestMemory,
    Region,
    Vring,
    wait_readable,
)

if TYPE_CHECKING:
    from harness.iommu import Iommu

__all__ = [
    "DESC_INDIRECT",
    "DESC_NEXT",
    "DESC_WRITE",
    "DISCARD",
    "FLUSH",
    "GET_ID",
    "IN",
    "IOERR",
    "OK",
    "OUT",
    "UNSUPP",
    "WRITE_ZEROES",
    "Disk",
    "FrontEnd",
    "GuestMemory",
    "Vring",
]

Ring = Vring | PackedVring

SECTOR = 512

VERSION, REPLY, NEED_REPLY = 0x1, 0x4, 0x8
NO_FD = 0x100  # bit 8 of SET_VRING_KICK, CALL and ERR
HEADER = struct.Struct("=III")  # request, flags, size
INFLIGHT = struct.Struct("=QQHH")  # mmap size, mmap offset, queues, queue size


class Request(enum.IntEnum):
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
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class Protocol(enum.IntFlag):
    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class Feature(enum.IntFlag):
    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34


WANTED_PROTOCOL = sum(Protocol) & ~(Protocol.PAGEFAULT | Protocol.BACKEND_SEND_FD)
WANTED_FEATURES = sum(Feature) & ~(Feature.LOG_ALL | Feature.ACCESS_PLATFORM | Feature.RING_PACKED)

CONFIG_CHANGE_MSG = 2  # the one request that a back end sends us


class DisconnectedError(ConnectionError):
    """The back end closed the connection."""


class FrontEnd:
    """One connection to a back end; leaving the context closes everything."""

    def __init__(self, sock: socket.socket, timeout: float = 5) -> None:
        self.sock, self.timeout = sock, timeout
        sock.settimeout(timeout)
        self.features = Feature(0)
        self.protocol_features = Protocol(0)
        self.queues = 1
        self.max_mem_slots = 8
        self.backend_requests: socket.socket | None = None
        self.iommu: Iommu | None = None
        """Where there is one, it is what a driver's addresses are for."""
        self.lock = threading.RLock()
        """For one who sends a message and waits for its reply: an IOMMU may do so by a thread."""
        self.rings: dict[int, Ring] = {}
        self.inflight: tuple[bytes, int] | None = None
        """The in-flight region: how messages describe it, and its descriptor."""
        self._memory: GuestMemory | None = None
        self._fds: list[int] = []

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = 5) -> Self:
        """Connect to a back end that may only be about to listen."""
        return cls(cls._connected(path, timeout), timeout)

    @staticmethod
    def _connected(path: str | os.PathLike[str], timeout: float) -> socket.socket:
        deadline = time.monotonic() + timeout
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(os.fspath(path))
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if time.monotonic() > deadline:
                    raise
                select.poll().poll(10)
            else:
                sock.settimeout(timeout)
                return sock

    def resume(self, path: str | os.PathLike[str], base: int | None = None) -> None:
        """Go on with another back end, as QEMU does: all it knows is what the guest was given.

        It goes from the used index of a split ring, as it was read then or is now, and forgets
        where a packed one was.
        """
        with self.lock:
            self.sock.close()
            self.resume_on(self._connected(path, self.timeout), base)

    def resume_on(self, sock: socket.socket, base: int | None = None) -> None:
        """The same on a socket that is connected already, and is taken."""
        self.sock.close()
        self.sock = sock
        features, self.protocol_features = self.features, Protocol(0)
        self.negotiate(features)
        if self.inflight:
            payload, fd = self.inflight
            self.set(Request.SET_INFLIGHT_FD, payload, [fd])
        self.share_memory()
        for index, ring in self.rings.items():
            known = START if isinstance(ring, PackedVring) else ring.used_idx
            self.start_ring(index, ring=ring, base=known if base is None else base)

    def track_inflight(self, queues: int = 1, queue_size: int = 128) -> None:
        """Have the back end make an in-flight region, and record in it."""
        self.get_inflight(queues, queue_size)
        assert self.inflight
        payload, fd = self.inflight
        self.set(Request.SET_INFLIGHT_FD, payload, [fd])

    def track_inflight_as_of_old(self, *, packed: bool) -> None:
        """Have requests recorded in a region as blkd made it once: for two rings of 128."""
        part = 4160 if packed else 2112
        fd = os.memfd_create("region")
        self._fds.append(fd)
        os.ftruncate(fd, 2 * part)
        self.inflight = INFLIGHT.pack(2 * part, 0, 2, 128), fd
        self.set(Request.SET_INFLIGHT_FD, self.inflight[0], [fd])

    def get_inflight(self, queues: int, queue_size: int, padding: int = 4) -> None:
        """Ask for a region as QEMU does, which sends a whole C structure."""
        request = INFLIGHT.pack(0, 0, queues, queue_size) + bytes(padding)
        with self.lock:
            self.send(Request.GET_INFLIGHT_FD, request)
            answer, flags, payload, fds = self.receive()
        assert (answer, flags) == (Request.GET_INFLIGHT_FD, VERSION | REPLY), (answer, flags)
        assert len(payload) == len(request)
        self.inflight = (payload, fds[0]) if fds else None

    @classmethod
    def from_socket(cls, sock: socket.socket, timeout: float = 5) -> Self:
        return cls(sock, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Vanish as a killed front end does: nothing is said to the back end."""
        self.sock.close()
        if self.backend_requests:
            self.backend_requests.close()
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
        if self._memory:
            self._memory.close()
        while self._fds:
            os.close(self._fds.pop())

    @property
    def memory(self) -> GuestMemory:
        """Guest memory, made at the first use; assign another before that if wanted."""
        if self._memory is None:
            self._memory = GuestMemory()
        return self._memory

    @memory.setter
    def memory(self, memory: GuestMemory) -> None:
        self._memory = memory

    # Messages

    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Iterable[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        flags = VERSION | (NEED_REPLY if need_reply else 0)
        message = HEADER.pack(request, flags, len(payload)) + payload
        with self.lock:
            socket.send_fds(self.sock, [message], list(fds))

    def receive(self) -> tuple[int, int, bytes, list[int]]:
        """The next message: request, flags, payload and descriptors, which we close later."""
        return self._receive(self.sock)

    def receive_request(self) -> tuple[int, int, bytes, list[int]]:
        """The next request of the back end, likewise."""
        assert self.backend_requests
        return self._receive(self.backend_requests)

    def _receive(self, sock: socket.socket) -> tuple[int, int, bytes, list[int]]:
        fds: list[int] = []
        request, flags, size = HEADER.unpack(self._read(sock, HEADER.size, fds))
        payload = self._read(sock, size, fds)
        self._fds += fds
        return request, flags, payload, fds

    @staticmethod
    def _read(sock: socket.socket, size: int, fds: list[int]) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece, got, _, _ = socket.recv_fds(
                    sock, size - len(data), 8, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError as error:
                raise DisconnectedError("the back end reset the connection") from error
            fds += got
            if not piece:
                raise DisconnectedError("the back end closed the connection")
            data += piece
        return data

    def call(self, request: int, payload: bytes = b"", fds: Iterable[int] = ()) -> bytes:
        """Send a request that has a reply of its own: the reply's payload."""
        with self.lock:
            self.send(request, payload, fds)
            answer, flags, reply, _ = self.receive()
        assert (answer, flags) == (request, VERSION | REPLY), (answer, flags)
        return reply

    def call_u64(self, request: int) -> int:
        return int.from_bytes(self.call(request), "little")

    def ack(self, request: int, payload: bytes = b"", fds: Iterable[int] = ()) -> int:
        """Send a request with NEED_REPLY: 0 for done, anything else for refused."""
        with self.lock:
            self.send(request, payload, fds, need_reply=True)
            answer, flags, reply, _ = self.receive()
        assert (answer, flags, len(reply)) == (request, VERSION | REPLY, 8), (answer, flags, reply)
        return int.from_bytes(reply, "little")

    def set(self, request: int, payload: bytes = b"", fds: Iterable[int] = ()) -> None:
        """Send a request without a reply of its own; it must not fail."""
        if self.protocol_features & Protocol.REPLY_ACK:
            assert self.ack(request, payload, fds) == 0, Request(request).name
        else:
            self.send(request, payload, fds)

    def wait_closed(self, timeout: float = 5) -> bool:
        """Whether the back end closes the connection; what it still says is dropped."""
        deadline = time.monotonic() + timeout
        while wait_readable(self.sock.fileno(), deadline - time.monotonic()):
            try:
                if not self.sock.recv(4096):
                    return True
            except ConnectionResetError:
                return True
        return False

    # The steps of a front end

    def negotiate(
        self, features: int | None = None, protocol_features: int | None = None
    ) -> Feature:
        """Agree on features as QEMU does: what is wanted and offered, or exactly what is given."""
        offered = self.call_u64(Request.GET_FEATURES)
        if offered & Feature.PROTOCOL_FEATURES and protocol_features != 0:
            known = self.call_u64(Request.GET_PROTOCOL_FEATURES)
            wanted = WANTED_PROTOCOL & known if protocol_features is None else protocol_features
            self.send(Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", wanted))
            self.protocol_features = Protocol(wanted)
            if wanted & Protocol.MQ:
                self.queues = self.call_u64(Request.GET_QUEUE_NUM)
            if wanted & Protocol.CONFIGURE_MEM_SLOTS:
                self.max_mem_slots = self.call_u64(Request.GET_MAX_MEM_SLOTS)
            if wanted & Protocol.BACKEND_REQ:
                self.open_backend_channel()
        self.set(Request.SET_OWNER)
        self.features = Feature(WANTED_FEATURES & offered if features is None else features)
        if self.iommu:
            self.features |= Feature.ACCESS_PLATFORM
        self.set_features()
        return self.features

    def offered(self) -> int:
        """The features offered, but for the two that a driver must mean to use."""
        return self.call_u64(Request.GET_FEATURES) & ~(
            Feature.RING_PACKED | Feature.ACCESS_PLATFORM
        )

    def set_features(self) -> None:
        self.set(Request.SET_FEATURES, struct.pack("=Q", self.features))

    def open_backend_channel(self) -> None:
        """Send one end of a socket pair; the other is `backend_requests`."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.set(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        if self.backend_requests:
            self.backend_requests.close()
        self.backend_requests = ours
        ours.settimeout(self.timeout)

    def answer_backend(self, *, fetch: int | None = 60, result: int = 0) -> tuple[int, bytes]:
        """Serve one back-end request as QEMU does, reading `fetch` bytes of config first.

        The request and the configuration read.
        """
        assert self.backend_requests
        request, flags, _, _ = self.receive_request()
        config = self.config(0, fetch) if fetch else b""
        if flags & NEED_REPLY:
            answer = HEADER.pack(request, VERSION | REPLY, 8) + struct.pack("=Q", result)
            self.backend_requests.sendall(answer)
        return request, config

    def share_memory(self, *, table: bool | None = None) -> None:
        """Share guest memory: one table, or region by region where that is negotiated."""
        if table is None:
            table = not self.protocol_features & Protocol.CONFIGURE_MEM_SLOTS
        regions = self.memory.regions
        if table:
            payload = struct.pack("=II", len(regions), 0) + b"".join(r.pack() for r in regions)
            self.set(Request.SET_MEM_TABLE, payload, [r.fd for r in regions])
        else:
            for region in regions:
                self.add_region(region)

    def add_region(self, region: Region) -> None:
        self.set(Request.ADD_MEM_REG, bytes(8) + region.pack(), [region.fd])

    def remove_region(self, region: Region) -> None:
        self.set(Request.REM_MEM_REG, bytes(8) + region.pack())

    def config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space."""
        request = struct.pack("=III", offset, size, 0) + bytes(size)
        return self.call(Request.GET_CONFIG, request)[12:]

    def write_config(self, offset: int, data: bytes) -> None:
        self.set(Request.SET_CONFIG, struct.pack("=III", offset, len(data), 0) + data)

    def capacity(self) -> int:
        """The disk's size in sectors, as the configuration space says now."""
        return int.from_bytes(self.config(0, 8), "little")

    def ring_state(self, request: int, index: int, num: int) -> None:
        self.set(request, struct.pack("=II", index, num))

    def ring_fd(self, request: int, index: int, fd: int | None) -> None:
        self.set(
            request,
            struct.pack("=Q", index | (NO_FD if fd is None else 0)),
            [] if fd is None else [fd],
        )

    def ring_addresses(self, ring: Ring, log: int | None = None) -> bytes:
        """The payload of SET_VRING_ADDR; writes to the used ring are logged at `log`, if given."""
        find = self.iommu.iova if self.iommu else self.memory.user_address
        where = [find(at) for at in (ring.desc, ring.used, ring.avail)]
        flags = 0 if log is None else 1
        return struct.pack("=IIQQQQ", ring.index, flags, *where, log or 0)

    def start_ring(
        self,
        index: int = 0,
        size: int = 128,
        *,
        ring: Ring | None = None,
        base: int | None = None,
        enable: bool = True,
    ) -> Ring:
        """Start ring `index` in QEMU's order: a new one, or `ring` as it stands."""
        if ring is None:
            layout = PackedVring if self.features & Feature.RING_PACKED else Vring
            ring = layout(self.memory, size, event_idx=bool(self.features & Feature.EVENT_IDX))
        ring.index = index
        self.rings[index] = ring
        self.ring_fd(Request.SET_VRING_CALL, index, ring.call_fd)
        self.ring_fd(Request.SET_VRING_ERR, index, ring.err_fd)
        self.ring_state(Request.SET_VRING_NUM, index, ring.size)
        self.ring_state(Request.SET_VRING_BASE, index, ring.base if base is None else base)
        self.set(Request.SET_VRING_ADDR, self.ring_addresses(ring))
        self.ring_fd(Request.SET_VRING_KICK, index, ring.kick_fd)
        if enable and self.features & Feature.PROTOCOL_FEATURES:
            self.enable(index, on=True)
        return ring

    def enable(self, index: int, *, on: bool) -> None:
        self.ring_state(Request.SET_VRING_ENABLE, index, int(on))

    def stop_ring(self, index: int = 0) -> int:
        """Stop ring `index`: the base that the back end would go on from."""
        reply = self.call(Request.GET_VRING_BASE, struct.pack("=II", index, 0))
        answered, base = struct.unpack("=II", reply)
        assert answered == index
        return int(base)

    def disk(
        self,
        index: int = 0,
        size: int = 128,
        *,
        features: int | None = None,
        packed: bool = False,
    ) -> Disk:
        """From a fresh connection to a driver on a running ring."""
        self.prepare(features, packed=packed)
        return self.make_disk(index, size)

    def make_disk(self, index: int = 0, size: int = 128) -> Disk:
        """Start a ring and drive it."""
        return Disk(self, self.start_ring(index, size))

    def disks(self, count: int, size: int = 128, *, packed: bool = False) -> Iterator[Disk]:
        """The same with several rings."""
        self.prepare(packed=packed)
        for index in range(count):
            yield self.make_disk(index, size)

    def prepare(self, features: int | None = None, *, packed: bool = False) -> None:
        """Negotiate and share memory; `packed` asks for that layout as well."""
        if packed:
            features = (self.offered() & WANTED_FEATURES) if features is None else features
            features |= Feature.RING_PACKED
        self.negotiate(features)
        self.share_memory()
