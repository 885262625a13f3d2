# SPDX-License-Identifier: Apache-2.0
"""One side of an upgrade's socket; plays `exchange.Peer`."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from blkd.errors import UpgradeError
from blkd.host.fds import ancillary_bytes, close_foreign, passed, readable, writable
from blkd.upgrade import messages
from blkd.upgrade.descriptors import IncomingFds
from blkd.upgrade.framing import BATCH, FILLER, Header, batched, frame, read

SEND_LIMIT: Final = 2.0  # seconds that the other side may leave us unread
ANCILLARY_BYTES: Final = ancillary_bytes(BATCH)

Kind = TypeVar("Kind", bound=messages.Document)
Result = TypeVar("Result")


class Transport:
    """A connected UNIX stream socket, borrowed."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._untaken: list[IncomingFds] = []
        self._receiving: asyncio.Timeout | None = None
        self._interruption: UpgradeError | None = None

    def close(self) -> None:
        """Close every descriptor that came and was not taken."""
        for incoming in self._untaken:
            close_foreign(incoming.take_rest())

    async def send(self, document: messages.Document, fds: Sequence[int] = ()) -> None:
        """Send a document, then the descriptors.

        What fits into the socket is sent at once: a short message is sent or not, nothing
        between, and no one else has his turn meanwhile.
        """
        try:
            async with asyncio.timeout(SEND_LIMIT):
                await self._write(frame(document, len(fds)))
                for batch in batched(fds):
                    send = functools.partial(socket.send_fds, self._sock, [FILLER], list(batch))
                    await self._retried(send, writes=True)
        except TimeoutError:
            raise UpgradeError("the other process does not read") from None
        except OSError as error:
            raise UpgradeError(f"the other process has gone: {error.strerror}") from error

    async def receive(self, kind: type[Kind], limit: float | None) -> tuple[Kind, IncomingFds]:
        """The next document, of this kind, and its descriptors."""
        fds: list[int] = []
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: close_foreign(fds))
            try:
                async with asyncio.timeout(limit) as self._receiving:
                    header = Header.decode(await self._read(Header.LAYOUT.size))
                    document = await self._read(header.length)
                    for _ in range(header.batches):
                        fds += await self._retried(self._read_batch)
            except TimeoutError:
                if self._interruption is not None:
                    raise self._interruption from None
                raise UpgradeError(f"no answer within {limit:g} s") from None
            except OSError as error:
                raise UpgradeError(f"the other process has gone: {error.strerror}") from error
            finally:
                self._receiving = None
            if len(fds) != header.descriptors:
                raise UpgradeError(f"{len(fds)} descriptors, not {header.descriptors}")
            content = read(document, kind)
            undo.pop_all()
        self._untaken.append(IncomingFds(fds))
        return content, self._untaken[-1]

    def end_receiving(self, last: type[messages.Document]) -> bool:
        """Receive nothing more: whether a document of this kind has come that nobody received.

        It has none of its descriptors.  What the other side sends from now on fails.
        """
        try:
            self._sock.shutdown(socket.SHUT_RD)
            header = Header.decode(self._sock.recv(Header.LAYOUT.size))
            read(self._sock.recv(header.length), last)
        except (OSError, UpgradeError):
            return False
        return header.descriptors == 0

    def interrupt(self, error: UpgradeError) -> None:
        """Have `receive` raise `error`, if it waits."""
        if self._receiving is not None and not self._receiving.expired():
            self._interruption = error
            self._receiving.reschedule(asyncio.get_running_loop().time())

    async def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            send = functools.partial(self._sock.send, left)
            left = left[await self._retried(send, writes=True) :]

    async def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            receive = functools.partial(self._sock.recv, size - len(data))
            piece = await self._retried(receive)
            if not piece:
                raise UpgradeError("the other process has gone")
            data += piece
        return bytes(data)

    def _read_batch(self) -> list[int]:
        data, ancillary, flags, _ = self._sock.recvmsg(
            len(FILLER), ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        fds = list(passed(ancillary))
        if not data or flags & socket.MSG_CTRUNC:
            close_foreign(fds)
            raise UpgradeError("descriptors were lost on the way, or are more than we can hold")
        return fds

    async def _retried(self, attempt: Callable[[], Result], *, writes: bool = False) -> Result:
        """What `attempt` returns, once the socket lets it."""
        while True:
            try:
                return attempt()
            except BlockingIOError:
                await (writable if writes else readable)(self._sock)
