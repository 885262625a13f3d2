# SPDX-License-Identifier: Apache-2.0
"""A scripted virtio-vsock driver: packets in and out, and connections on top that keep credit.

Layouts and numbers are written down again from the specification.  It is synchronous, and each
wait has a time limit.  Nothing is checked of what is sent: hostile packets are wanted.
"""

import enum
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from harness.frontend import DESC_WRITE, Feature, FrontEnd, Ring, Vring

HEADER = struct.Struct("<QQIIIHHIII")
HOST = 2
RX, TX, EVENT = 0, 1, 2
STREAM, SEQPACKET = 1, 2
EOM, EOR = 1, 2
RECEIVE, SEND = 1, 2  # flags of SHUTDOWN
BUF_ALLOC = 1 << 18  # as Linux has it
MOST_PAYLOAD = 1 << 16
BUFFER = 4096  # payload of one of the driver's buffers, as Linux has it
VSOCK = 0b111  # the device's own features: STREAM, SEQPACKET, NO_IMPLIED_STREAM
FEATURES = (
    Feature.VERSION_1
    | Feature.PROTOCOL_FEATURES
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | VSOCK
)


class Op(enum.IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of either direction; `length` is what it says of its payload."""

    op: int
    src_cid: int = 3
    dst_cid: int = HOST
    src_port: int = 1024
    dst_port: int = 80
    type: int = STREAM
    flags: int = 0
    buf_alloc: int = BUF_ALLOC
    fwd_cnt: int = 0
    payload: bytes = b""
    length: int | None = None

    def pack(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return (
            HEADER.pack(
                self.src_cid,
                self.dst_cid,
                self.src_port,
                self.dst_port,
                length,
                self.type,
                self.op,
                self.flags,
                self.buf_alloc,
                self.fwd_cnt,
            )
            + self.payload
        )

    @classmethod
    def unpack(cls, data: bytes) -> "Packet":
        fields = HEADER.unpack_from(data)
        src_cid, dst_cid, src_port, dst_port, length, kind, op, flags, buf_alloc, fwd_cnt = fields
        payload = data[HEADER.size :]
        assert length == len(payload), (length, len(payload))
        addresses = src_cid, dst_cid, src_port, dst_port
        return cls(Op(op), *addresses, kind, flags, buf_alloc, fwd_cnt, payload)


class VsockDriver:
    """The driver of a socket device's vrings, with buffers to receive into always offered."""

    def __init__(
        self,
        front_end: FrontEnd,
        *,
        cid: int = 3,
        packed: bool = False,
        recorded: bool = False,
        size: int = 128,
        events: bool = True,
        features: int = FEATURES,
        offer: bool = True,
        indirect: bool = False,
        buffer: int = BUFFER,
    ) -> None:
        """`buffer` is the payload that each buffer to receive into has room for."""
        self.front_end, self.cid, self.indirect = front_end, cid, indirect
        self.buffer = buffer
        front_end.prepare(features | (Feature.RING_PACKED if packed else 0))
        if recorded:
            front_end.track_inflight(queues=3, queue_size=size)
        self.rx: Ring = front_end.start_ring(RX, size)
        self.tx: Ring = front_end.start_ring(TX, size)
        self.event: Ring | None = None
        self.events: dict[int, int] = {}
        if events:
            self.event = front_end.start_ring(EVENT, 8)
            self.offer_events(4)
        self.buffers: dict[int, int] = {}
        self.waiting: deque[Packet] = deque()
        self.connections: dict[tuple[int, int, int], Connection] = {}
        if offer:
            self.offer(size // 2)

    def offer(self, count: int) -> None:
        """Offer buffers of a header and its payload in two pieces, as Linux does."""
        heads = []
        for _ in range(count):
            at = self.front_end.memory.alloc(HEADER.size + self.buffer)
            heads.append(self._offer_one(at))
        self.rx.publish(*heads)
        self.rx.notify()

    def _offer_one(self, at: int) -> int:
        chain = [(at, HEADER.size, DESC_WRITE), (at + HEADER.size, self.buffer, DESC_WRITE)]
        head = self.rx.add_indirect(chain) if self.indirect else self.rx.add(chain)
        self.buffers[head] = at
        return head

    def offer_events(self, count: int) -> None:
        assert self.event
        for _ in range(count):
            at = self.front_end.memory.alloc(4)
            head = self.event.add([(at, 4, DESC_WRITE)])
            self.events[head] = at
            self.event.publish(head)
        self.event.notify()

    def event_ids(self, timeout: float = 5) -> list[int]:
        """The events that come next."""
        assert self.event
        return [
            int.from_bytes(self.front_end.memory.read(self.events.pop(head), 4), "little")
            for head, written in self.event.wait_used(timeout)
            if written
        ]

    # Packets

    def send(self, *packets: Packet | bytes, timeout: float = 5) -> None:
        """Send packets; returns once all are in the ring."""
        deadline = time.monotonic() + timeout
        for packet in packets:
            data = packet.pack() if isinstance(packet, Packet) else packet
            pieces = filter(None, (data[: HEADER.size], data[HEADER.size :]))
            chain: list[tuple[int | bytes, int, int]] = [(it, len(it), 0) for it in pieces]
            while self._room() < len(chain):
                self.tx.notify()
                if not self.tx.take_used():
                    left = deadline - time.monotonic()
                    assert self.tx.wait_used(left), "the device takes nothing"
            head = self.tx.add_indirect(chain) if self.indirect else self.tx.add(chain)
            self.tx.publish(head)
        self.tx.notify()

    def _room(self) -> int:
        """Descriptors of the tx vring that are free."""
        return len(self.tx.spare) if isinstance(self.tx, Vring) else self.tx.room

    def flush(self, timeout: float = 5) -> None:
        """Wait until the device has taken all that was sent."""
        deadline = time.monotonic() + timeout
        while self.tx.chains:
            if not self.tx.take_used():
                assert self.tx.wait_used(deadline - time.monotonic()), "the device takes nothing"

    def poll(self, timeout: float = 5) -> list[Packet]:
        """What the device gives next; buffers are offered again."""
        taken = []
        heads = []
        for head, written in self.rx.wait_used(timeout):
            at = self.buffers.pop(head)
            if written:
                taken.append(Packet.unpack(self.front_end.memory.read(at, written)))
            heads.append(self._offer_one(at))
        if heads:
            self.rx.publish(*heads)
            self.rx.notify()
        self.tx.take_used()
        return taken

    def receive(self, timeout: float = 5) -> Packet:
        """The next packet, of whatever connection."""
        deadline = time.monotonic() + timeout
        while not self.waiting:
            packets = self.poll(deadline - time.monotonic())
            assert packets or time.monotonic() < deadline, "no packet has come"
            self.waiting.extend(packets)
        return self.waiting.popleft()

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for a moment."""
        self.waiting.extend(self.poll(seconds))
        return not self.waiting

    # Connections

    def request(
        self,
        port: int,
        *,
        src_port: int = 1024,
        cid: int = HOST,
        kind: int = STREAM,
        buf_alloc: int = BUF_ALLOC,
    ) -> "Connection":
        """Ask for a connection; the answer is still to come."""
        connection = Connection(self, cid, port, src_port, kind, buf_alloc)
        self.connections[connection.key] = connection
        connection.send(Op.REQUEST)
        return connection

    def connect(self, port: int, **how: int) -> "Connection":
        """Connect to a port of the host, or of a sibling."""
        connection = self.request(port, **how)
        connection.wait(lambda: connection.is_open or connection.is_reset)
        assert connection.is_open, "it was refused"
        return connection

    def accept(self, buf_alloc: int = BUF_ALLOC) -> "Connection":
        """Answer the next request of the other side."""
        while True:
            packet = self.receive()
            if packet.op != Op.REQUEST:
                self.dispatch(packet)
                continue
            connection = Connection(
                self, packet.src_cid, packet.src_port, packet.dst_port, packet.type, buf_alloc
            )
            self.connections[connection.key] = connection
            connection.take(packet)
            connection.is_open = True
            connection.send(Op.RESPONSE)
            return connection

    def dispatch(self, packet: Packet) -> None:
        """Bring a packet to its connection."""
        key = packet.src_cid, packet.src_port, packet.dst_port
        assert key in self.connections, f"of no connection: {packet}"
        self.connections[key].take(packet)


@dataclass(eq=False)
class Connection:
    """One connection as a driver keeps it; what comes is kept until it is read."""

    driver: VsockDriver
    cid: int
    port: int
    own_port: int
    kind: int
    buf_alloc: int
    is_open: bool = False
    is_reset: bool = False
    shut: int = 0
    """What the other side will not do any more."""
    received: bytes = b""
    messages: list[tuple[bytes, int]] = field(default_factory=list)
    """Whole messages of SEQPACKET, with their flags."""
    rx_count: int = 0
    fwd_cnt: int = 0
    told: int = 0
    """fwd_cnt as we said last."""
    sent: int = 0
    peer_buf_alloc: int = 0
    peer_fwd_cnt: int = 0
    asked: int = 0
    """How often we were asked for credit."""

    @property
    def key(self) -> tuple[int, int, int]:
        return self.cid, self.port, self.own_port

    @property
    def peer_free(self) -> int:
        return self.peer_buf_alloc - (self.sent - self.peer_fwd_cnt)

    def packet(self, op: int, payload: bytes = b"", flags: int = 0) -> Packet:
        return Packet(
            op,
            self.driver.cid,
            self.cid,
            self.own_port,
            self.port,
            self.kind,
            flags,
            self.buf_alloc,
            self.fwd_cnt & 0xFFFFFFFF,
            payload,
        )

    def send(self, op: int, payload: bytes = b"", flags: int = 0) -> None:
        """Send a packet, whatever the credit says."""
        self.sent += len(payload)
        self.told = self.fwd_cnt
        self.driver.send(self.packet(op, payload, flags))

    def take(self, packet: Packet) -> None:
        self.peer_buf_alloc, self.peer_fwd_cnt = packet.buf_alloc, packet.fwd_cnt
        if packet.op == Op.RESPONSE:
            self.is_open = True
        elif packet.op == Op.RST:
            self.is_reset = True
            del self.driver.connections[self.key]
        elif packet.op == Op.SHUTDOWN:
            self.shut |= packet.flags
        elif packet.op == Op.RW:
            self.rx_count += len(packet.payload)
            assert self.rx_count - self.fwd_cnt <= self.buf_alloc, "more than there was credit for"
            self.received += packet.payload
            if packet.flags & EOM:
                self.messages.append((self.received, packet.flags))
                self.received = b""
        elif packet.op == Op.CREDIT_REQUEST:
            self.asked += 1

    def wait(self, condition: Callable[[], object], timeout: float = 10) -> None:
        """Serve the driver until something is so."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"it never was so: {replace(self, driver=None)}"  # type: ignore[arg-type]
            self.driver.dispatch(self.driver.receive(left))

    def write(self, data: bytes, *, piece: int = MOST_PAYLOAD, flags: int = 0) -> None:
        """Send all of `data` as credit allows; `flags` go with the last packet."""
        at = 0
        while at < len(data):
            if self.peer_free <= 0:
                self.wait(lambda: self.peer_free > 0)
            part = data[at : at + min(piece, self.peer_free)]
            at += len(part)
            self.send(Op.RW, part, flags if at == len(data) else 0)

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end; credit is given for them."""
        data = bytearray()
        while len(data) < count:
            if not self.received:
                if self.shut & SEND:
                    break
                self.wait(lambda: self.received or self.shut & SEND or self.is_reset)
            piece = self.received[: count - len(data)]
            self.received = self.received[len(piece) :]
            data += piece
            self.give_credit(len(piece))
        return bytes(data)

    def read_message(self) -> tuple[bytes, int]:
        """The next message of SEQPACKET, with the flags of its last packet."""
        self.wait(lambda: self.messages)
        message, flags = self.messages.pop(0)
        self.give_credit(len(message), at_once=True)
        return message, flags

    def give_credit(self, count: int, *, at_once: bool = False) -> None:
        """Note that this many bytes have left our buffer, and say so where that matters."""
        self.fwd_cnt += count
        if at_once or self.fwd_cnt - self.told >= self.buf_alloc // 4:
            self.send(Op.CREDIT_UPDATE)

    def close(self) -> None:
        """Shut both ways and wait for the answer."""
        self.send(Op.SHUTDOWN, flags=RECEIVE | SEND)
        self.wait(lambda: self.is_reset)
