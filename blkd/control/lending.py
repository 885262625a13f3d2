# SPDX-License-Identifier: Apache-2.0
"""The listening sockets of a served export, and its statistics, sent to who is to see to them.

A supervisor keeps them, so that front ends can connect also while nobody serves.  One that has been
started anew asks each export for them, on a connection of its control API.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from blkd.control import client, models
from blkd.errors import ControlError
from blkd.host import unix_socket
from blkd.host.fds import ancillary_bytes, close_foreign, passed, readable

ASKING: Final = b"?"
"""Said by who asks, once the protocol is this one: what came right behind the answer to the call
would be lost in its reader."""
SENDING: Final = b"!"
"""Comes with all sockets."""
ASKING_MORE: Final = b"+"
"""Said then by who knows statistics areas, and answered with that of the export."""
MOST: Final = 253  # sockets, the kernel's SCM_MAX_FD
ASKING_LIMIT: Final = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Lent:
    """What an export has lent; the caller closes it."""

    sockets: tuple[socket.socket, ...]
    """Which listen: first that of its control API, then that of each of its devices."""
    statistics: int | None
    """What it says is its statistics area; None where it has none, or knows of none."""
    wake: int | None = None
    """What it says is the eventfd of that area, likewise."""


async def lend(
    sock: socket.socket, sockets: Iterable[socket.socket], statistics: Sequence[int] = ()
) -> None:
    """Send these to the other side of `sock`, as soon as it asks; all are borrowed.

    `statistics` is the statistics area and its eventfd, as far as there are such.

    Raises TimeoutError or OSError.
    """
    sock.setblocking(False)
    if await _asked(sock) == ASKING:
        socket.send_fds(sock, [SENDING], [each.fileno() for each in sockets])
        if await _asked(sock) == ASKING_MORE:
            socket.send_fds(sock, [SENDING], statistics)


async def _asked(sock: socket.socket) -> bytes:
    async with asyncio.timeout(ASKING_LIMIT):
        await readable(sock)
    return sock.recv(1)


def borrow(path: str, limit: float = client.ANSWER_LIMIT) -> Lent:
    """What the export whose control API is at `path` has for the process that sees to it.

    Blocks for up to `limit` seconds at each step.

    Raises:
        ControlError: The call was refused, or what came are no listening sockets.
        SocketError: Nobody answers at `path`.
    """
    with contextlib.ExitStack() as undo:
        with client.switch(path, models.LEND, models.LEND_PROTOCOL, limit=limit) as sock:
            try:
                sock.sendall(ASKING)
                _, ancillary, *_ = sock.recvmsg(
                    len(SENDING), ancillary_bytes(MOST), socket.MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise ControlError(f"{path} does not lend its sockets: {error}") from error
            fds = list(passed(ancillary))
            undo.callback(close_foreign, fds)
            statistics, wake = _borrow_statistics(sock)
            undo.callback(close_foreign, filter(None, (statistics, wake)))
            sockets = []
            try:
                while fds:
                    sockets.append(undo.enter_context(socket.socket(fileno=fds[0])))
                    del fds[0]
            except OSError as error:
                raise ControlError(f"{path} has lent what is no socket: {error}") from error
        if not sockets or not all(map(unix_socket.is_listening, sockets)):
            raise ControlError(f"{path} has lent {len(sockets)} sockets that do not all listen")
        undo.pop_all()
    return Lent(tuple(sockets), statistics, wake)


def _borrow_statistics(sock: socket.socket) -> tuple[int | None, int | None]:
    """What comes as the statistics area and its eventfd; an older process has left by then."""
    try:
        sock.sendall(ASKING_MORE)
        _, ancillary, *_ = sock.recvmsg(
            len(SENDING), ancillary_bytes(MOST), socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        return None, None
    statistics, wake, *others = *passed(ancillary), None, None
    close_foreign(filter(None, others))
    return statistics, wake
