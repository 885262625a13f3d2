# SPDX-License-Identifier: Apache-2.0
"""One back-end channel: requests to the front end on a socket, and its answers in their order."""

import asyncio
import contextlib
import socket
from collections import deque
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
    """Answers that may still come, to requests of the process that had it."""
    partial: PartialMessage | None
    """The answer that has come in part."""

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors."""
        return (self.fd, *(self.partial.fds if self.partial else ()))


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """A request whose answer is awaited."""

    request: BackendRequest | None
    """None for one of another process."""
    answer: asyncio.Future[bool]


class BackChannel:
    """A socket that the front end gave us.

    Nothing here waits for a peer that does not read: a message that does not fit into the socket
    breaks the channel.
    """

    def __init__(
        self, sock: socket.socket, overdue: int = 0, partial: PartialMessage | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._receiver = Receiver(sock, U64.LONGEST)
        if partial is not None:
            self._receiver.restore(partial)
        future = asyncio.get_running_loop().create_future
        self._unanswered = deque(_Unanswered(None, future()) for _ in range(overdue))
        self.gate = Gate()
        self._reading = False
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
        overdue = len(self._unanswered)
        return BackChannelSnapshot(self._sock.fileno(), overdue, self._receiver.snapshot())

    def send(
        self, request: BackendRequest, payload: bytes = b"", *, acknowledged: bool
    ) -> asyncio.Future[bool]:
        """Send a request: whether the front end took it, once that is known.

        With `acknowledged` that is what it answers, and without it always true.  The result
        raises ProtocolError where the channel is lost before.  Raises ProtocolError if it is of
        no more use.
        """
        flags = VERSION | (NEED_REPLY if acknowledged else 0)
        self._send(Header(request, flags, len(payload)).encode() + payload)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if acknowledged:
            self._unanswered.append(_Unanswered(request, answer))
        else:
            answer.set_result(True)
        return answer

    async def read_answers(self) -> None:
        """Read the front end's answers, endlessly or until `close`.

        Raises ProtocolError where it closes the channel, or what it sends is no answer.
        """
        self._reading = True
        try:
            while not self._closing:
                async with self.gate.message(self._sock):
                    message = self._receiver.read()
                if self._receiver.has_closed:
                    raise ProtocolError("the front end closed the back-end channel")
                if message is not None:
                    header, payload, fds = message
                    fds.close()
                    self._take_answer(header, payload)
        finally:
            self._reading = False
            if self._closing:
                self._close()

    def close(self) -> None:
        """End the channel; requests that are not answered fail."""
        self._closing = True
        if self._reading:
            # The event loop still watches the descriptor: it must outlive that.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._close()
        while self._unanswered:
            answer = self._unanswered.popleft().answer
            if not answer.done():
                answer.set_exception(ProtocolError("the back-end channel is closed"))
                answer.exception()  # nobody has to care

    def _close(self) -> None:
        self._receiver.close()
        if (fd := self._sock.detach()) >= 0:
            close_foreign([fd])

    def _send(self, message: bytes) -> None:
        try:
            sent = self._sock.send(message)
        except OSError as error:
            raise ProtocolError(f"the back-end channel failed: {error.strerror}") from error
        if sent < len(message):
            raise ProtocolError("the front end does not read its back-end channel")

    def _take_answer(self, header: Header, payload: bytes) -> None:
        """Answer the oldest request; nobody may wait for that any more."""
        if not header.is_reply or not self._unanswered:
            raise ProtocolError(f"request {header.request} where an answer was expected")
        expected = self._unanswered.popleft()
        if header.request != (expected.request or header.request):
            raise ProtocolError(f"an answer to request {header.request}, not {expected.request}")
        taken = U64.decode(payload).value == 0
        if not expected.answer.done():
            expected.answer.set_result(taken)
