# SPDX-License-Identifier: Apache-2.0
"""The front end's conversation with a back end: negotiate, share memory, start rings.

Each request that changes something is acknowledged where the back end can, so that a refusal
is known at once.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from blkd.errors import BenchError, ProtocolError
from blkd.vhost_user import wire
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.wire import ProtocolFeature, Request
from blkd.virtio import blk
from blkd.virtio.blk import BlkConfig

WANTED: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
LONGEST_REPLY: Final = wire.Config.LONGEST


@dataclass(frozen=True, slots=True)
class DriverVring:
    """A vring as the back end is to serve it; addresses are the front end's."""

    size: int
    desc: int
    avail: int
    used: int
    base: int
    """Where it starts: the first index, or for a packed ring both with their wrap bits."""
    kick: int
    call: int
    error: int
    """Eventfds, borrowed."""


class BackEnd:
    """One connection.  Errors are BenchErrors that name what was asked."""

    def __init__(
        self, path: str, sock: socket.socket, timeout: float, *, reconnect: bool = False
    ) -> None:
        self.path, self.sock = path, sock
        self.timeout = timeout
        self._wanted = WANTED | (ProtocolFeature.INFLIGHT_SHMFD if reconnect else 0)
        self._region: tuple[bytes, int] | None = None  # in-flight: how it is described, its file
        self._received: list[int] = []  # descriptors
        self.offered = 0
        self.protocol_features = ProtocolFeature(0)
        self.queues = 1

    @classmethod
    def connect(cls, path: str, timeout: float, *, reconnect: bool = False) -> Self:
        """Connect to the back end that listens at `path`.

        With `reconnect` it has to record requests in flight, for another may take its place.
        """
        return cls(path, connected(path, timeout), timeout, reconnect=reconnect)

    def reconnect(self) -> None:
        """Connect to the next back end at the same path.  Raises BenchError without one."""
        self.sock.close()
        self.sock = connected(self.path, self.timeout)
        self.protocol_features = ProtocolFeature(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        if self._region is not None:
            os.close(self._region[1])

    def negotiate(self) -> None:
        """Learn what is offered, and agree on the protocol's extensions."""
        self.offered = self._ask_number(Request.GET_FEATURES)
        if self.offered & wire.VirtioFeature.PROTOCOL_FEATURES:
            known = self._ask_number(Request.GET_PROTOCOL_FEATURES)
            agreed = self._wanted & known
            self._send(Request.SET_PROTOCOL_FEATURES, wire.U64(agreed).encode())
            self.protocol_features = ProtocolFeature(agreed)
        self._command(Request.SET_OWNER)
        if self.protocol_features & ProtocolFeature.MQ:
            self.queues = self._ask_number(Request.GET_QUEUE_NUM)

    def config(self) -> BlkConfig:
        """The device's configuration space."""
        if not self.protocol_features & ProtocolFeature.CONFIG:
            raise BenchError(
                f"{self.path}: the back end has no configuration space to read",
                hint="is it a vhost-user-blk back end?",
            )
        asked = wire.Config(0, 0, bytes(blk.LAYOUT.size))
        answer = self._ask(Request.GET_CONFIG, asked.encode())
        try:
            data = wire.Config.decode(answer).data
        except (ProtocolError, struct.error) as error:
            raise self._nonsense(Request.GET_CONFIG, str(error)) from error
        if len(data) != blk.LAYOUT.size:
            raise self._nonsense(Request.GET_CONFIG, f"{len(data)} bytes")
        return BlkConfig._make(blk.LAYOUT.unpack(data))

    def accept(self, features: int) -> None:
        """Choose features out of the offered ones."""
        self._command(Request.SET_FEATURES, wire.U64(features).encode())

    def record(self, queues: int, queue_size: int) -> None:
        """Have requests in flight recorded in a region that lasts as long as we do."""
        if not self.protocol_features & ProtocolFeature.INFLIGHT_SHMFD:
            raise BenchError(
                f"{self.path}: the back end does not record requests in flight",
                hint="leave --reconnect out",
            )
        if self._region is None:
            asked = Inflight(0, 0, queues, queue_size, padded=True).encode()
            payload = self._ask(Request.GET_INFLIGHT_FD, asked)
            if len(self._received) != 1:
                raise self._nonsense(Request.GET_INFLIGHT_FD, "no descriptor of a region")
            self._region = payload, self._received.pop()
        payload, fd = self._region
        self._command(Request.SET_INFLIGHT_FD, payload, [fd])

    def share(self, region: wire.MemoryRegion, memory: int) -> None:
        """Share the memory behind the descriptor `memory`, which is borrowed."""
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self._command(Request.ADD_MEM_REG, wire.SingleRegion(region).encode(), [memory])
        else:
            self._command(Request.SET_MEM_TABLE, wire.MemoryTable((region,)).encode(), [memory])

    def start_ring(self, index: int, ring: DriverVring) -> None:
        """Let the back end serve a ring."""
        where = wire.VringAddr(index, 0, ring.desc, ring.used, ring.avail, 0)
        name = wire.VringFd(index, has_fd=True).encode()
        self._command(Request.SET_VRING_NUM, wire.VringState(index, ring.size).encode())
        self._command(Request.SET_VRING_BASE, wire.VringState(index, ring.base).encode())
        self._command(Request.SET_VRING_ADDR, where.encode())
        self._command(Request.SET_VRING_ERR, name, [ring.error])
        self._command(Request.SET_VRING_CALL, name, [ring.call])
        self._command(Request.SET_VRING_KICK, name, [ring.kick])
        if self.offered & wire.VirtioFeature.PROTOCOL_FEATURES:  # a ring starts disabled then
            self._command(Request.SET_VRING_ENABLE, wire.VringState(index, 1).encode())

    # One message

    def _command(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request without a reply of its own.  Raises BenchError where it is refused."""
        ack = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        self._send(request, payload, fds, wire.NEED_REPLY if ack else 0)
        if ack and (refusal := self._number(request, self._receive(request))):
            raise BenchError(
                f"{self.path}: the back end refuses {request.name} with {refusal}",
                hint="its own log should say why",
            )

    def _ask(self, request: Request, payload: bytes = b"") -> bytes:
        self._send(request, payload)
        return self._receive(request)

    def _ask_number(self, request: Request) -> int:
        return self._number(request, self._ask(request))

    def _number(self, request: Request, payload: bytes) -> int:
        try:
            return wire.U64.decode(payload).value
        except ProtocolError as error:
            raise self._nonsense(request, str(error)) from error

    def _send(
        self, request: Request, payload: bytes, fds: Sequence[int] = (), flags: int = 0
    ) -> None:
        message = wire.Header(request, wire.VERSION | flags, len(payload)).encode() + payload
        with self._blamed(request):
            sent = socket.send_fds(self.sock, [message], fds)
            self.sock.sendall(message[sent:])

    def _receive(self, request: Request) -> bytes:
        with self._blamed(request):
            header = wire.Header.decode(self._read(wire.Header.LAYOUT.size))
            if header.request != request or not header.is_reply:
                raise self._nonsense(request, f"message {header.request}")
            if header.size > LONGEST_REPLY:
                raise self._nonsense(request, f"{header.size} bytes")
            return self._read(header.size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece, fds, _, _ = socket.recv_fds(
                self.sock, size - len(data), 1, socket.MSG_CMSG_CLOEXEC
            )
            self._received += fds
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    @contextlib.contextmanager
    def _blamed(self, request: Request) -> Iterator[None]:
        """Say what was asked in the error that comes of it."""
        try:
            yield
        except TimeoutError as error:
            raise BenchError(
                f"{self.path}: no answer to {request.name} within {self.timeout:g} s",
                hint="does another front end have it?",
            ) from error
        except ProtocolError as error:
            raise self._nonsense(request, str(error)) from error
        except OSError as error:
            raise BenchError(
                f"{self.path}: the back end closed the connection at {request.name}",
                hint="its own log should say why; many serve one front end at a time",
            ) from error

    def _nonsense(self, request: Request, what: str) -> BenchError:
        return BenchError(
            f"{self.path}: not an answer to {request.name}: {what}",
            hint="is it a vhost-user-blk back end?",
        )


def connected(path: str, timeout: float) -> socket.socket:
    """A socket connected to the back end that listens at `path`."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
    except (OSError, ValueError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(
            f"no back end at {path}: {reason}", hint="start it first, and name its socket"
        ) from error
    return sock
