# SPDX-License-Identifier: Apache-2.0
"""Stops the reading of a socket, but never while a message is carried out."""

import asyncio
import contextlib
import select
import socket
from collections.abc import AsyncIterator

from blkd.host.fds import readable


class Gate:
    """Lets messages in one by one, whole or in part, until it is shut.

    What has not been let in stays in the socket, for the process that reads it next.
    """

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def message(self, sock: socket.socket) -> AsyncIterator[None]:
        """Wait until there is something to read and the gate is open; it is dealt with within."""
        await readable(sock)
        await self.opened()
        self._empty.clear()
        try:
            yield
        finally:
            self._empty.set()

    async def opened(self) -> None:
        """Wait until the gate is open; it is at least until the caller waits again."""
        while not self._open.is_set():
            await self._open.wait()

    async def shut(self) -> None:
        """Let nothing in any more; returns when what was in is dealt with."""
        self._open.clear()
        await self._empty.wait()

    async def idle(self, sock: socket.socket) -> None:
        """Wait until everything that the peer of `sock` has sent so far is dealt with."""
        while not self._empty.is_set() or can_read(sock):
            await self._empty.wait()
            await self.opened()
            await asyncio.sleep(0)

    @property
    def is_shut(self) -> bool:
        """Whether nothing is let in."""
        return not self._open.is_set()

    def open(self) -> None:
        """Let messages in."""
        self._open.set()


def can_read(sock: socket.socket) -> bool:
    """Whether there is something to read, or will never be."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
