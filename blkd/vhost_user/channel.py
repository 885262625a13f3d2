# SPDX-License-Identifier: Apache-2.0
"""One socket: whole messages with their descriptors, without blocking the loop."""

import asyncio
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from blkd.errors import ProtocolError
from blkd.host.fds import ancillary_bytes, close_foreign, passed, writable
from blkd.vhost_user.wire import MAX_FDS, Header

SENT_AT_ONCE = 253  # SCM_MAX_FD of the kernel
ANCILLARY_BYTES = ancillary_bytes(SENT_AT_ONCE)
"""More than any message may have: what does not fit would be closed by the kernel in our name, and
on this thread."""


class Fds:
    """The descriptors of one message: closed with it, unless somebody takes them."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, fds: Iterable[int]) -> None:
        """Own these too."""
        self._fds.extend(fds)

    def take(self) -> list[int]:
        """All descriptors, in their order; the caller owns them now."""
        taken, self._fds = self._fds, []
        return taken

    def take_one(self) -> int:
        """The descriptor that is known to be there; the caller owns it now."""
        return self._fds.pop(0)

    def take_any(self) -> int | None:
        """The descriptor, if there is one; the caller owns it now."""
        return self.take_one() if self._fds else None

    def close(self) -> None:
        """Close what nobody took; never blocks and never raises."""
        close_foreign(self.take())


Message = tuple[Header, bytes, Fds]


@dataclass(frozen=True, slots=True)
class PartialMessage:
    """What has come of a message that is not whole yet."""

    data: bytes
    fds: tuple[int, ...]


class Receiver:
    """The receiving side of a non-blocking socket, which it borrows.

    Its messages have payloads of up to `longest` bytes.

    It never waits: what has come of a message stays here until there is more, or goes to another
    process that reads the rest.
    """

    def __init__(self, sock: socket.socket, longest: int) -> None:
        self._sock = sock
        self._longest = longest
        self._data = bytearray()
        self._fds = Fds()
        self.has_closed = False
        """Whether the peer has, between two messages."""

    def read(self) -> Message | None:
        """The next message, if the socket has it whole; the caller owns the descriptors.

        None as long as it has not, or if the peer has closed.  Raises ProtocolError on what cannot
        be a message, such as one with more than `longest` bytes of payload, before those are read.
        """
        while missing := self._missing():
            piece = self._read_some(missing)
            if piece is None:
                return None
            if not piece:
                if self._data:
                    raise ProtocolError("the peer closed in mid-message")
                self.has_closed = True
                return None
            self._data += piece
        header = Header.decode(bytes(self._data[: Header.LAYOUT.size]))
        payload, fds = bytes(self._data[Header.LAYOUT.size :]), Fds(self._fds.take())
        self._data.clear()
        return header, payload, fds

    def close(self) -> None:
        """Close the descriptors of a message that is not whole; the socket is the caller's."""
        self._fds.close()

    def snapshot(self) -> PartialMessage | None:
        """What has come of a message that is not whole; its descriptors are borrowed."""
        return PartialMessage(bytes(self._data), tuple(self._fds)) if self._data else None

    def restore(self, partial: PartialMessage) -> None:
        """Go on with a message that another process has begun to read; takes its descriptors.

        Raises ProtocolError where no message begins like that, or it is whole.
        """
        self._fds.add(partial.fds)
        self._data += partial.data
        try:
            is_whole = self._missing() <= 0
        except ProtocolError as error:
            raise ProtocolError(f"a message was begun that cannot be: {error}") from error
        if is_whole or not partial.data or len(self._fds) > MAX_FDS:
            raise ProtocolError("a message was begun that is none, or whole")

    def _missing(self) -> int:
        """Bytes that are still to come of the header, and after that of the payload."""
        if (missing := Header.LAYOUT.size - len(self._data)) > 0:
            return missing
        header = Header.decode(bytes(self._data[: Header.LAYOUT.size]))
        if header.size > self._longest:
            raise ProtocolError(
                f"request {header.request} announces {header.size} bytes, more than {self._longest}"
            )
        return Header.LAYOUT.size + header.size - len(self._data)

    def _read_some(self, size: int) -> bytes | None:
        """Up to `size` bytes, none once the peer has closed; None if nothing has come."""
        try:
            piece, ancillary, flags, _ = self._sock.recvmsg(
                size, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""
        self._fds.add(passed(ancillary))
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("more descriptors at once than we can hold")
        if len(self._fds) > MAX_FDS:
            raise ProtocolError(
                f"{len(self._fds)} descriptors with one message, not up to {MAX_FDS}"
            )
        return piece


async def send(sock: socket.socket, message: bytes, fds: Fds) -> bool:
    """Send a whole message, for as long as that takes: False if the peer has closed.

    The descriptors go along with its first byte; they stay the caller's.
    """
    try:
        sent = await send_some(sock, message, list(fds)) if len(fds) else 0
        await asyncio.get_running_loop().sock_sendall(sock, message[sent:])
    except ConnectionError:
        return False
    return True


async def send_some(sock: socket.socket, message: bytes, fds: list[int]) -> int:
    """Send the beginning of a message with its descriptors: the number of bytes."""
    while True:
        try:
            return socket.send_fds(sock, [message], fds)
        except BlockingIOError:
            await writable(sock)
