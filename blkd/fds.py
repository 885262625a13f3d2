# SPDX-License-Identifier: Apache-2.0
"""File descriptors: waited for, passed along sockets, closed."""

import array
import asyncio
import os
import socket
from collections.abc import Iterable, Iterator

FD_BYTES = array.array("i").itemsize


async def readable(file: socket.socket | int) -> None:
    """Wait until it can be read, for as long as that takes."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)


async def writable(file: socket.socket | int) -> None:
    """Wait until it takes more, for as long as that takes."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(file)


def ancillary_bytes(count: int) -> int:
    """Room for `count` descriptors in ancillary data."""
    return socket.CMSG_SPACE(count * FD_BYTES)


def passed(ancillary: Iterable[tuple[int, int, bytes]]) -> Iterator[int]:
    """The descriptors in ancillary data; whoever asks owns them."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(data) - len(data) % FD_BYTES
            yield from array.array("i", data[:whole])


def close_all(fds: Iterable[int]) -> None:
    """Close every one of `fds`."""
    for fd in fds:
        os.close(fd)
