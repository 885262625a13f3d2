# SPDX-License-Identifier: Apache-2.0
"""One socket: whole messages with their descriptors, received without blocking the loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from blkd.errors import ProtocolError
from blkd.fds import ancillary_bytes, close_foreign, passed, readable, writable
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


async def receive(sock: socket.socket, longest: int) -> tuple[Header, bytes, Fds] | None:
    """The next whole message, or None once the peer has closed between messages.

    The caller owns the descriptors.  Raises ProtocolError on what cannot be a message,
    such as one with more than `longest` bytes of payload, before those are read.
    """
    fds = Fds()
    with contextlib.ExitStack() as undo:
        undo.callback(fds.close)
        head = await read(sock, Header.LAYOUT.size, fds)
        if not head:
            return None
        if len(head) < Header.LAYOUT.size:
            raise ProtocolError("the peer closed in mid-message")
        header = Header.decode(head)
        if header.size > longest:
            raise ProtocolError(
                f"request {header.request} announces {header.size} bytes, more than {longest}"
            )
        payload = await read(sock, header.size, fds)
        if len(payload) < header.size:
            raise ProtocolError("the peer closed in mid-message")
        undo.pop_all()
    return header, payload, fds


async def read(sock: socket.socket, size: int, fds: Fds) -> bytes:
    """`size` bytes, or fewer if the peer closes before; their descriptors go to `fds`."""
    data = bytearray()
    while len(data) < size:
        piece, more = await read_some(sock, size - len(data))
        fds.add(more.take())
        if len(fds) > MAX_FDS:
            raise ProtocolError(f"{len(fds)} descriptors with one message, not up to {MAX_FDS}")
        if not piece:
            break
        data += piece
    return bytes(data)


async def read_some(sock: socket.socket, size: int) -> tuple[bytes, Fds]:
    """Up to `size` bytes and what comes with them; none once the peer has closed."""
    while True:
        try:
            piece, ancillary, flags, _ = sock.recvmsg(
                size, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            await readable(sock)
        except ConnectionError:
            return b"", Fds()
        else:
            break
    fds = Fds(passed(ancillary))
    if flags & socket.MSG_CTRUNC:
        fds.close()
        raise ProtocolError("more descriptors at once than we can hold")
    return piece, fds


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
