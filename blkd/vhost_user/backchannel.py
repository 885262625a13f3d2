# SPDX-License-Identifier: Apache-2.0
"""The back-end channel: our requests to the front end, and its acknowledgements."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Self

from blkd.errors import ProtocolError, RequestRefused
from blkd.host.fds import close_foreign
from blkd.vhost_user.channel import PartialMessage, Receiver
from blkd.vhost_user.gate import Gate
from blkd.vhost_user.wire import NEED_REPLY, U64, VERSION, BackendRequest, Header


@dataclass(frozen=True, slots=True)
class BackChannelSnapshot:
    """A back-end channel of a frozen connection; its descriptors are borrowed."""

    fd: int
    overdue: int
    """Acknowledgements that may still come, of requests given up."""
    partial: PartialMessage | None
    """The acknowledgement that has come in part."""

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors."""
        return (self.fd, *(self.partial.fds if self.partial else ()))


class BackChannel:
    """A socket that the front end gave us.

    One request at a time.  Nothing here waits for a peer that does not read: a message that
    does not fit into the socket breaks the channel.
    """

    def __init__(
        self, sock: socket.socket, overdue: int = 0, partial: PartialMessage | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._receiver = Receiver(sock, U64.LONGEST)
        if partial is not None:
            self._receiver.restore(partial)
        self._overdue = overdue  # acknowledgements that may still come, of requests given up
        self.gate = Gate()
        self._waiting = False
        self._closing = False

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Make a channel of a descriptor, which is taken.  Raises RequestRefused."""
        return cls.restore(BackChannelSnapshot(fd, overdue=0, partial=None))

    @classmethod
    def restore(cls, snapshot: BackChannelSnapshot) -> Self:
        """Go on with a channel of another process; takes its descriptors.

        Raises RequestRefused or ProtocolError where it is none.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, snapshot.fds)
            try:
                sock = socket.socket(fileno=snapshot.fd)
            except OSError as error:
                raise RequestRefused(
                    f"the back-end channel is no socket: {error.strerror}"
                ) from error
            undo.callback(sock.detach)
            if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
                raise RequestRefused("the back-end channel is no UNIX stream socket")
            undo.pop_all()
        return cls(sock, snapshot.overdue, snapshot.partial)

    def snapshot(self) -> BackChannelSnapshot:
        """What it takes to go on with the channel elsewhere."""
        return BackChannelSnapshot(self._sock.fileno(), self._overdue, self._receiver.snapshot())

    async def request(self, request: BackendRequest, *, acknowledged: bool, limit: float) -> bool:
        """Send a request without payload: whether the front end took it.

        With `acknowledged` that is what it answers, and without it always true.  Raises
        TimeoutError if the answer takes longer than `limit` seconds, and ProtocolError if the
        channel is of no more use.
        """
        self._waiting = True
        try:
            self._send(Header(request, VERSION | (NEED_REPLY if acknowledged else 0), 0))
            if not acknowledged:
                return True
            self._overdue += 1
            async with asyncio.timeout(limit):
                return await self._answer(request)
        finally:
            self._waiting = False
            if self._closing:
                self._close()

    def close(self) -> None:
        """End the channel; a request under way fails."""
        self._closing = True
        if self._waiting:
            # The event loop still watches the descriptor: it must outlive that.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._close()

    def _close(self) -> None:
        self._receiver.close()
        if (fd := self._sock.detach()) >= 0:
            close_foreign([fd])

    def _send(self, header: Header) -> None:
        message = header.encode()
        try:
            sent = self._sock.send(message)
        except OSError as error:
            raise ProtocolError(f"the back-end channel failed: {error.strerror}") from error
        if sent < len(message):
            raise ProtocolError("the front end does not read its back-end channel")

    async def _answer(self, request: BackendRequest) -> bool:
        """The acknowledgement of the latest request, those of earlier ones passed over."""
        while True:
            async with self.gate.message(self._sock):
                message = self._receiver.read()
            if self._receiver.has_closed:
                raise ProtocolError("the front end closed the back-end channel")
            if message is None:
                continue  # it is not whole, and may not be before the limit: so it stays there
            header, payload, fds = message
            fds.close()
            if not header.is_reply or header.request != request:
                raise ProtocolError(f"request {header.request} where an answer was expected")
            self._overdue -= 1
            if not self._overdue:
                return U64.decode(payload).value == 0
