# SPDX-License-Identifier: Apache-2.0
"""Sockets on which the daemon listens, while a context lasts."""

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator

from blkd.daemon.loopback import LoopbackAddress
from blkd.errors import SocketError
from blkd.host import unix_socket


@contextlib.asynccontextmanager
async def unix_listener(path: str, mode: int, group: int | None) -> AsyncIterator[socket.socket]:
    """A socket at `path`, whose file has that mode and group, and is gone afterwards.

    Raises SocketError.
    """
    with await unix_socket.listen_soon(path, mode, group) as listener:
        try:
            yield listener
        finally:
            unix_socket.unlink_if_ours(path)


@contextlib.contextmanager
def loopback_listener(address: LoopbackAddress, table: str) -> Iterator[socket.socket]:
    """A TCP socket at `address`, which that table of blkd.toml names.  Raises SocketError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise SocketError(
            f"{address}: {os.strerror(error.errno or errno.EINVAL)}",
            hint=f"`listen` in the table [{table}] of blkd.toml names it",
        ) from error
    with listener:
        listener.setblocking(False)
        yield listener
