# SPDX-License-Identifier: Apache-2.0
"""File descriptors: waited for, passed along sockets, closed.

A descriptor that came from another process is closed by `close_foreign` and nothing else.  The
close of a file on FUSE or NFS asks a server, which may fail it or never answer; that of a socket
closes whatever descriptors still lie in it.
"""

import array
import asyncio
import collections
import contextlib
import fcntl
import os
import socket
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

FD_BYTES = array.array("i").itemsize
EVENTFD: Final = "anon_inode:[eventfd]"  # where the link of one in /proc/self/fd leads
CLOSERS: Final = 16  # threads that may be stuck in a close at a time
CLOSE_LIMIT: Final = 1.0  # seconds that a close is waited for where somebody does wait

log = structlog.get_logger()


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


def is_memory(fd: int) -> bool:
    """Whether `fd` is a memory file: of memfd_create, tmpfs or hugetlbfs.

    Nobody is asked for that, however the file came about: no other file has seals.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def is_eventfd(fd: int) -> bool:
    """Whether `fd` is an eventfd.  Raises OSError if it is no descriptor."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == EVENTFD


def close_foreign(fds: Iterable[int], kept: list[Any] | None = None) -> None:
    """Close descriptors that came from another process; never blocks and never raises.

    What may wait for somebody is closed on another thread.  There `kept` is emptied after that: the
    last references to mappings of memory, say, which take their time to go.
    """
    slow = [fd for fd in fds if not _close_if_harmless(fd)]
    if slow or kept:
        _closer_of(kept).add(_Closing(slow, kept or []))


async def wait_closed(
    fds: Iterable[int], kept: list[Any] | None = None, limit: float = CLOSE_LIMIT
) -> None:
    """`close_foreign`, waited for: for `limit` seconds at the most."""
    slow = [fd for fd in fds if not _close_if_harmless(fd)]
    if not (slow or kept):
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def when_done() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(done.set)

    _closer_of(kept).add(_Closing(slow, kept or [], when_done))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit):
            await done.wait()


def close_connection(sock: socket.socket) -> None:
    """End a connection that was accepted here; never blocks and never raises.

    The peer sees it closed at once.  Descriptors may lie in it that nobody has read.
    """
    empty = False
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # nothing is put into it any more
        unread = fcntl.ioctl(sock, termios.FIONREAD, bytes(FD_BYTES))
        empty = not any(unread)
    fd = sock.detach()
    if not empty:
        close_foreign([fd])
        return
    with contextlib.suppress(OSError):
        os.close(fd)


def _close_if_harmless(fd: int) -> bool:
    """Close `fd` if that cannot wait for anybody: whether it was."""
    with contextlib.suppress(OSError):
        if is_memory(fd) or is_eventfd(fd):
            os.close(fd)
            return True
    return False


@dataclass(slots=True)
class _Closing:
    """What is to be closed and released, and what to call afterwards."""

    fds: list[int]
    kept: list[Any]
    when_done: Callable[[], None] = lambda: None

    def carry_out(self) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):  # closed all the same
                os.close(fd)
        self.kept.clear()
        self.when_done()


class _Closer:
    """Threads that close: one for each burst, so that a stuck one holds nobody up.

    Once CLOSERS of them are stuck, the rest waits until one is through: the process keeps those
    descriptors open, and serves on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: collections.deque[_Closing] = collections.deque()
        self._threads = 0

    def add(self, closing: _Closing) -> None:
        with self._lock:
            self._waiting.append(closing)
            waiting = len(self._waiting)
            starts = self._threads < CLOSERS
            self._threads += starts
        if not starts:
            log.warning("descriptors cannot be closed", waiting=waiting)
            return
        try:
            threading.Thread(target=self._run, name="blkd-close", daemon=True).start()
        except RuntimeError as error:  # no thread is to be had: the next one does this too
            with self._lock:
                self._threads -= 1
            log.warning("descriptors cannot be closed", reason=str(error))

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                closing = self._waiting.popleft()
            closing.carry_out()
            del closing


_closer: Final = _Closer()
_unmapper: Final = _Closer()


def _closer_of(kept: list[Any] | None) -> _Closer:
    """Who is to close: memory that was mapped is local, and must not wait behind what hangs."""
    return _unmapper if kept else _closer
