# SPDX-License-Identifier: Apache-2.0
"""A driver of virtio-net for the scripted front end, and the frames that it sends.

Written from virtio 1.3, 5.1, again: nothing of blkd's is used.
"""

import enum
import struct
from dataclasses import dataclass

from harness.frontend import DESC_WRITE, Feature, FrontEnd, Ring

RECEIVE, TRANSMIT = 0, 1
HEADER = struct.Struct("<BBHHHHH")  # flags, gso type, and the lengths; then num_buffers
LEGACY_HEADER_BYTES = 10
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_ECN = 0, 1, 3, 4, 0x80
PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 0)
SHORTEST = 14
OK, ERROR = 0, 1


class NetFeature(enum.IntFlag):
    """Feature bits of a network device (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22


OF_RINGS = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
USUAL = int(OF_RINGS) | (sum(NetFeature) & ~int(NetFeature.MQ | NetFeature.MAC | NetFeature.MTU))


@dataclass(frozen=True, slots=True)
class Received:
    """A packet that the device has given to the driver."""

    header: tuple[int, ...]
    """The fields of HEADER."""
    frame: bytes

    @property
    def buffers(self) -> int:
        return self.header[6]


class NetDriver:
    """The driver of one pair of vrings, `pair`."""

    def __init__(self, front_end: FrontEnd, pair: int = 0, *, size: int = 128) -> None:
        self.front_end = front_end
        self.mergeable = bool(front_end.features & NetFeature.MRG_RXBUF)
        self.receive = front_end.start_ring(2 * pair + RECEIVE, size)
        self.transmit = front_end.start_ring(2 * pair + TRANSMIT, size)
        self.buffers: dict[int, tuple[int, int]] = {}
        self.came: list[tuple[int, int]] = []
        """Buffers that the device has given back, and that belong to no packet yet."""

    @classmethod
    def negotiate(
        cls, front_end: FrontEnd, *, packed: bool = False, features: int | None = None
    ) -> "NetDriver":
        """From a fresh connection to running rings: all that is offered of `features`."""
        wanted = USUAL if features is None else features
        wanted |= int(Feature.RING_PACKED) if packed else 0
        front_end.prepare(wanted & front_end.offered() | (wanted & int(Feature.RING_PACKED)))
        return cls(front_end)

    @property
    def header_bytes(self) -> int:
        whole = int(Feature.VERSION_1) | int(NetFeature.MRG_RXBUF)
        return HEADER.size if self.front_end.features & whole else LEGACY_HEADER_BYTES

    def send(self, *frames: bytes, header: bytes = PLAIN) -> list[int]:
        """Send frames in one go: their heads."""
        header = header[: self.header_bytes]
        heads = [
            self.transmit.add([(header, len(header), 0), (frame, len(frame), 0)])
            if frame
            else self.transmit.add([(header, max(len(header), 1), 0)])
            for frame in frames
        ]
        self.transmit.publish(*heads)
        self.transmit.notify()
        return heads

    def sent(self, count: int) -> None:
        """Wait until the device has given back `count` chains."""
        while count > 0:
            used = self.transmit.wait_used()
            assert used, f"{count} chains more"
            count -= len(used)

    def offer(self, count: int = 1, size: int = 2048) -> None:
        """Offer buffers to receive into."""
        heads = []
        for _ in range(count):
            at = self.front_end.memory.alloc(size)
            head = self.receive.add([(at, size, DESC_WRITE)])
            self.buffers[head] = at, size
            heads.append(head)
        self.receive.publish(*heads)
        self.receive.notify()

    def received(self, count: int = 1) -> list[Received]:
        """The next `count` packets; those cut short have ended the test."""
        return [self._next() for _ in range(count)]

    def nothing_comes(self, timeout: float = 0.2) -> bool:
        self.came += self.receive.wait_used(timeout)
        return not self.came

    def _next(self) -> Received:
        first = self._take()
        header = HEADER.unpack(first[: HEADER.size].ljust(HEADER.size, b"\0"))
        more = header[6] - 1 if self.header_bytes == HEADER.size else 0
        packet = first + b"".join(self._take() for _ in range(more))
        return Received(header, packet[self.header_bytes :])

    def _take(self) -> bytes:
        while not self.came:
            self.came = self.receive.wait_used()
            assert self.came, "no packet"
        head, written = self.came.pop(0)
        at, size = self.buffers.pop(head)
        data = self.front_end.memory.read(at, written)
        self.front_end.memory.free(at, size)
        return data


class ControlDriver:
    """The driver of a control queue that the front end has handed over."""

    def __init__(self, front_end: FrontEnd, index: int) -> None:
        self.front_end = front_end
        self.ring: Ring = front_end.start_ring(index, 16)

    def command(self, kind: int, command: int, value: bytes = b"") -> int:
        """Send a command: its answer."""
        ack = self.front_end.memory.alloc(1)
        self.front_end.memory.write(ack, b"\x7f")
        words = bytes([kind, command]) + value
        head = self.ring.add([(words, len(words), 0), (ack, 1, DESC_WRITE)])
        self.ring.publish(head)
        self.ring.notify()
        assert self.ring.wait_used() == [(head, 1)]
        return self.front_end.memory.read(ack, 1)[0]


def frame(payload: bytes | int = 64, *, number: int = 0) -> bytes:
    """A frame of a protocol that nobody knows, so that no kernel answers it."""
    body = bytes(number + n & 0xFF for n in range(payload)) if isinstance(payload, int) else payload
    return b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + body


def is_ours(data: bytes) -> bool:
    """Whether a frame is one of `frame`."""
    return data[12:14] == b"\x88\xb5"


def tcp_segment(payload: bytes, *, source: int = 1, to: int = 2) -> bytes:
    """A TCP packet over IPv4, 10.9.0.`source` to 10.9.0.`to`, its TCP checksum left to others."""
    ethernet = b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x08\0"
    length = 40 + len(payload)
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, length, 1, 0x4000, 64, 6, 0, bytes([10, 9, 0, source]), bytes([10, 9, 0, to])),
    )
    ip = ip[:10] + checksum(ip) + ip[12:]
    pseudo = ip[12:20] + struct.pack("!BBH", 0, 6, 20 + len(payload))
    partial = struct.pack("!H", ~int.from_bytes(checksum(pseudo), "big") & 0xFFFF)
    tcp = struct.pack("!HHIIBBH2sH", 1000, 2000, 1, 1, 0x50, 0x10, 512, partial, 0)
    return ethernet + ip + tcp + payload


def checksum(data: bytes) -> bytes:
    """The Internet's checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
