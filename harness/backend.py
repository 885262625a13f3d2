# SPDX-License-Identifier: Apache-2.0
"""A scripted vhost-user-blk back end with a disk in memory: the other side of `blkd bench`.

It shares nothing with blkd on purpose, as harness/frontend.py.  It is slow and obedient; a
test makes it misbehave by a function in `on_request`, `on_kick` or `on_status`.

    with BackEnd(tmp_path / "disk.sock") as backend:
        bench(str(backend.path), Workload(limit=...))
"""

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from harness.frontend import (
    DISCARD,
    FLUSH,
    HEADER,
    IN,
    NEED_REPLY,
    OK,
    OUT,
    REPLY,
    UNSUPP,
    VERSION,
    Feature,
    Protocol,
    Request,
)
from harness.vring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE

FEATURES = (
    Feature.BLK_SIZE
    | Feature.FLUSH
    | Feature.DISCARD
    | Feature.MQ
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.PROTOCOL_FEATURES
    | Feature.VERSION_1
    | Feature.RING_PACKED
)
PROTOCOL = Protocol.MQ | Protocol.REPLY_ACK | Protocol.CONFIG
AVAIL, USED = 1 << 7, 1 << 15  # flags of packed descriptors
NO_INTERRUPT = NO_NOTIFY = 1
ENABLE, DISABLE, AT_DESC = 0, 1, 2  # flags of packed event structures

Piece = tuple[int, int, bool]
"""Guest address, length, whether the device writes."""


@dataclass(slots=True)
class Ring:
    """One ring; what it has seen and how often the driver wanted to be called."""

    backend: "BackEnd"
    index: int
    size: int = 0
    base: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    kick: int = -1
    error: int = -1
    kicks: int = 0
    calls_wanted: int = 0
    next_used: int = 0
    chain: dict[int, int] = field(default_factory=dict)
    """Descriptors of a packed ring that each request took."""

    @property
    def packed(self) -> bool:
        return bool(self.backend.accepted & Feature.RING_PACKED)

    @property
    def event_idx(self) -> bool:
        return bool(self.backend.accepted & Feature.EVENT_IDX)

    def u16(self, address: int) -> int:
        return int.from_bytes(self.backend.read(address, 2), "little")

    def put(self, address: int, value: int, size: int = 2) -> None:
        self.backend.write(address, value.to_bytes(size, "little"))

    def take(self) -> Iterator[tuple[int, list[Piece]]]:
        """Every request that is available: its id and its pieces."""
        return self._take_packed() if self.packed else self._take_split()

    def give(self, number: int, written: int) -> None:
        """Answer a request, and note whether the driver wants to be called for it."""
        (self._give_packed if self.packed else self._give_split)(number, written)

    def rearm(self) -> bool:
        """Ask for a kick at the next request: whether there is one already."""
        if self.packed:
            where = self.base % self.size | ((not self.base // self.size & 1) << 15)
            self.put(self.used, where if self.event_idx else 0)
            self.put(self.used + 2, AT_DESC if self.event_idx else ENABLE)
            return self._is_available()
        if self.event_idx:
            self.put(self.used + 4 + 8 * self.size, self.base & 0xFFFF)
        else:
            self.put(self.used, 0)
        return self.u16(self.avail + 2) != self.base & 0xFFFF

    def hush(self) -> None:
        """Ask for no kicks."""
        if self.packed:
            self.put(self.used + 2, DISABLE)
        elif self.event_idx:
            self.put(self.used + 4 + 8 * self.size, self.base - 1 & 0xFFFF)
        else:
            self.put(self.used, NO_NOTIFY)

    # Split rings (virtio 1.3, 2.7); `base` and `next_used` count all that ever was

    def _take_split(self) -> Iterator[tuple[int, list[Piece]]]:
        while self.u16(self.avail + 2) != self.base & 0xFFFF:
            head = self.u16(self.avail + 4 + 2 * (self.base % self.size))
            self.base += 1
            yield head, self._walk(self.desc, head)

    def _walk(self, table: int, at: int) -> list[Piece]:
        pieces = []
        while True:
            address, length, flags, following = struct.unpack(
                "<QIHH", self.backend.read(table + 16 * at, 16)
            )
            if flags & DESC_INDIRECT:
                assert self.backend.accepted & Feature.INDIRECT_DESC
                assert flags == DESC_INDIRECT
                return self._walk(address, 0)
            pieces.append((address, length, bool(flags & DESC_WRITE)))
            if not flags & DESC_NEXT:
                return pieces
            at = following

    def _give_split(self, number: int, written: int) -> None:
        place = self.used + 4 + 8 * (self.next_used % self.size)
        self.backend.write(place, struct.pack("<II", number, written))
        self.next_used += 1
        self.put(self.used + 2, self.next_used & 0xFFFF)
        if self.event_idx:
            self.calls_wanted += self.u16(self.avail + 4 + 2 * self.size) == (
                self.next_used - 1 & 0xFFFF
            )
        else:
            self.calls_wanted += not self.u16(self.avail) & NO_INTERRUPT

    # Packed rings (virtio 1.3, 2.8)

    def _flags(self) -> int:
        return self.u16(self.desc + 16 * (self.base % self.size) + 14)

    def _is_available(self) -> bool:
        wrap = not self.base // self.size & 1
        flags = self._flags()
        return bool(flags & AVAIL) == wrap and bool(flags & USED) != wrap

    def _take_packed(self) -> Iterator[tuple[int, list[Piece]]]:
        while self._is_available():
            pieces, took, more = [], 0, True
            while more:
                assert self._is_available(), "a chain that is not whole"
                address, length, number, flags = struct.unpack(
                    "<QIHH", self.backend.read(self.desc + 16 * (self.base % self.size), 16)
                )
                self.base += 1
                took += 1
                more = bool(flags & DESC_NEXT)
                if flags & DESC_INDIRECT:
                    for at in range(address, address + length, 16):
                        entry = struct.unpack("<QIHH", self.backend.read(at, 16))
                        pieces.append((entry[0], entry[1], bool(entry[3] & DESC_WRITE)))
                else:
                    pieces.append((address, length, bool(flags & DESC_WRITE)))
            self.chain[number] = took
            yield number, pieces

    def _give_packed(self, number: int, written: int) -> None:
        wrap = not self.next_used // self.size & 1
        place = self.desc + 16 * (self.next_used % self.size)
        self.backend.write(place + 8, struct.pack("<IH", written, number))
        self.put(place + 14, (AVAIL | USED if wrap else 0) | DESC_WRITE)
        self.next_used += self.chain.pop(number, 1)
        self.calls_wanted += self.u16(self.avail + 2) != DISABLE


class BackEnd:
    """A back end that listens at `path` and serves one front end, on a thread of its own."""

    def __init__(
        self,
        path: Path,
        *,
        features: int = FEATURES,
        protocol: int = PROTOCOL,
        sectors: int = 2048,
        config: dict[int, bytes] | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.features = features | (Feature.RO if read_only else 0)
        self.protocol = protocol
        self.disk = bytearray(sectors * 512)
        space = bytearray(60)
        struct.pack_into("<QII", space, 0, sectors, 0, 0)
        struct.pack_into("<I", space, 20, 512)
        struct.pack_into("<III", space, 36, sectors, 1, 1)
        for offset, data in (config or {}).items():
            space[offset : offset + len(data)] = data
        self.config = bytes(space)
        self.accepted = 0
        self.acked = False
        self.rings: dict[int, Ring] = {}
        self.requests: list[Request] = []
        self.seen: list[tuple[int, int, int]] = []
        """Type, sector and bytes of every request."""
        self.on_request: Callable[[Request, bytes], bytes | None] = lambda *_: None
        """May answer a message in the place of the back end."""
        self.on_kick: Callable[[Ring], None] = self.serve
        self.on_status: Callable[[int, int], int] = lambda _kind, status: status
        self.error: BaseException | None = None
        self._memory: list[tuple[int, int, mmap.mmap]] = []
        self._stack = contextlib.ExitStack()
        self._stop = os.eventfd(0)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listener.close()
        self._stack.close()
        os.close(self._stop)
        if kind is None and self.error:
            raise self.error

    # Guest memory, by guest address, which is the user address too

    def _find(self, address: int, size: int) -> tuple[mmap.mmap, int]:
        for start, length, memory in self._memory:
            if start <= address and address + size <= start + length:
                return memory, address - start
        raise AssertionError(f"{size} bytes at {address:#x} are not shared")

    def read(self, address: int, size: int) -> bytes:
        memory, at = self._find(address, size)
        return memory[at : at + size]

    def write(self, address: int, data: bytes) -> None:
        memory, at = self._find(address, len(data))
        memory[at : at + len(data)] = data

    # The thread

    def _run(self) -> None:
        try:
            self._serve_connection()
        except (ConnectionError, EOFError):
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the context ends
            self.error = error

    def _serve_connection(self) -> None:
        ready = readable(self._listener, self._stop)
        if self._stop in ready:
            return
        self.sock, _ = self._listener.accept()
        with self.sock:
            while True:
                kicks = {ring.kick: ring for ring in self.rings.values() if ring.kick >= 0}
                ready = readable(self.sock, self._stop, *kicks)
                if self._stop in ready:
                    return
                for fd in kicks.keys() & set(ready):
                    kicks[fd].kicks += os.eventfd_read(fd)
                    self.on_kick(kicks[fd])
                if self.sock in ready:
                    self._answer()

    def _answer(self) -> None:
        head, fds, _, _ = socket.recv_fds(self.sock, HEADER.size, 8)
        for fd in fds:
            self._stack.callback(os.close, fd)
        if not head:
            raise EOFError
        number, flags, size = HEADER.unpack(head)
        payload = self.sock.recv(size, socket.MSG_WAITALL) if size else b""
        request = Request(number)
        self.requests.append(request)
        reply = self.on_request(request, payload)
        if reply is None:
            reply = self.answer(request, payload, fds)
        if reply is None and flags & NEED_REPLY:
            reply = bytes(8)
        if reply is not None:
            self.sock.sendall(HEADER.pack(number, VERSION | REPLY, len(reply)) + reply)

    def answer(self, request: Request, payload: bytes, fds: list[int]) -> bytes | None:
        """Do what a message asks, as the specification has it."""
        number = int.from_bytes(payload[:8], "little")
        match request:
            case Request.GET_FEATURES:
                return self.features.to_bytes(8, "little")
            case Request.GET_PROTOCOL_FEATURES:
                return int(self.protocol).to_bytes(8, "little")
            case Request.GET_QUEUE_NUM:
                return (4).to_bytes(8, "little")
            case Request.GET_CONFIG:
                return payload[:12] + self.config[: len(payload) - 12]
            case Request.SET_FEATURES:
                assert number & ~self.features == 0
                self.accepted = number
            case Request.SET_MEM_TABLE:
                self._map(payload[8:40], fds)
            case Request.ADD_MEM_REG:
                self._map(payload[8:40], fds)
            case _:
                return self._answer_ring(request, payload, fds)
        return None

    def _map(self, region: bytes, fds: list[int]) -> None:
        address, size, user, offset = struct.unpack("=QQQQ", region)
        assert (address, len(fds)) == (user, 1)
        self._memory.append((address, size, mmap.mmap(fds[0], size, offset=offset)))

    def _answer_ring(self, request: Request, payload: bytes, fds: list[int]) -> bytes | None:
        if not request.name.startswith(("SET_VRING", "GET_VRING")):
            return None
        index = payload[0]
        ring = self.rings.setdefault(index, Ring(self, index))
        second = int.from_bytes(payload[4:8], "little")
        match request:
            case Request.SET_VRING_NUM:
                ring.size = second
            case Request.SET_VRING_BASE:
                assert second == (0x8000_8000 if ring.packed else 0)
            case Request.SET_VRING_ADDR:
                _, _, ring.desc, ring.used, ring.avail, _ = struct.unpack("=IIQQQQ", payload)
            case Request.SET_VRING_KICK:
                ring.kick = fds[0]
            case Request.SET_VRING_ERR:
                ring.error = fds[0]
            case Request.SET_VRING_ENABLE if second:
                ring.rearm()
        return None

    # The disk

    def serve(self, ring: Ring) -> None:
        """Answer all that is available, and ask for a kick at what comes next."""
        while True:
            for number, pieces in ring.take():
                ring.give(number, self.carry_out(pieces))
            if not ring.rearm():
                return

    def carry_out(self, pieces: list[Piece]) -> int:
        """Do one request: the bytes written to guest memory."""
        kind, _, sector = struct.unpack("<IIQ", self.read(pieces[0][0], 16))
        data, written, at = pieces[1:-1], 1, sector * 512
        assert self.read(pieces[-1][0], 1) == b"\xff", "the status was not set before"
        self.seen.append((kind, sector, sum(length for _, length, _ in data)))
        status = OK
        for address, length, writes in data:
            if kind in {IN, OUT}:
                assert writes == (kind == IN)
                assert at + length <= len(self.disk)
            if kind == IN:
                self.write(address, bytes(self.disk[at : at + length]))
                written += length
            elif kind == OUT:
                self.disk[at : at + length] = self.read(address, length)
            elif kind == DISCARD:
                start, count, flags = struct.unpack("<QII", self.read(address, 16))
                assert flags == 0
                self.disk[start * 512 : (start + count) * 512] = bytes(count * 512)
            at += length
        if kind not in {IN, OUT, FLUSH, DISCARD}:
            status = UNSUPP
        self.write(pieces[-1][0], bytes([self.on_status(kind, status)]))
        return written


def readable(*files: socket.socket | int) -> list[socket.socket | int]:
    """Those of `files` that can be read, as soon as one can."""
    return select.select(files, [], [])[0]
