# SPDX-License-Identifier: Apache-2.0
"""The supervisor's side of a launcher: processes for exports started, and how they ended."""

import asyncio
import collections
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final, Self

import structlog

from blkd import errors
from blkd.daemon import orders
from blkd.errors import BlkdError, LaunchError
from blkd.host.fds import ancillary_bytes, passed, readable, writable

START_LIMIT: Final = 30.0
"""Seconds for a launcher to take an order: it has to import everything first."""
MAX_STATE: Final = 1024 * 1024  # bytes that a process may say of itself
PIECE: Final = 64 * 1024  # bytes read at once
NOT_INHERITED: Final = frozenset({"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"})
MALLOC: Final = {"MALLOC_ARENA_MAX": "1"}
"""One heap for all threads of a process (mallopt(3)): each has some pages for itself."""

log = structlog.get_logger()


class Launched:
    """A process that was started for an export; its descriptors are the caller's: see `close`."""

    def __init__(self, pid: int, pidfd: int, ready: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        """Becomes readable when the process has ended, whoever its parent is by then."""
        self._ready = ready

    async def ready(self, limit: float) -> bytes:
        """Wait until it serves: the JSON of its state, as `GET /v1/export` answers.

        Raises:
            BlkdError: It does not come to serve, and says why, by the same error as it had
                itself; LaunchError where it has ended without a word, or says nothing for
                `limit` seconds.
        """
        said = bytearray()
        try:
            async with asyncio.timeout(limit):
                while piece := await self._read():
                    said += piece
                    if len(said) > MAX_STATE:
                        raise LaunchError("the process says too much of itself")
                    if said.endswith(b"\n"):
                        break
        except TimeoutError:
            raise LaunchError(f"the process does not serve within {limit:g} s") from None
        if not said:
            raise LaunchError("the process has ended before it served")
        match orders.decode_outcome(bytes(said)):
            case orders.Ready(state):
                return bytes(state)
            case orders.Failed(kind, reason, hint):
                raise _error(kind, reason, hint)

    async def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._ready, PIECE)
            except BlockingIOError:
                await readable(self._ready)

    def take_pidfd(self) -> int:
        """The pidfd, which is the caller's from now on."""
        pidfd, self.pidfd = self.pidfd, -1
        return pidfd

    def close(self) -> None:
        """Close the descriptors; the process goes on."""
        for fd in (self._ready, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._ready = self.pidfd = -1


class Launcher:
    """A launcher process, begun by `start`.

    It lives on as long as it has children, also if the supervisor dies or closes this; and its
    children live on if it dies.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        sock: socket.socket,
        *,
        on_end: Callable[[orders.Ended], None],
        on_gone: Callable[[], None],
    ) -> None:
        """Takes both; see `start`."""
        self._process = process
        self._sock = sock
        self._on_end = on_end
        self._on_gone = on_gone
        self._answers: collections.deque[asyncio.Future[tuple[int, int]]] = collections.deque()
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._take_reports)
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._bury)

    @classmethod
    def start(cls, *, on_end: Callable[[orders.Ended], None], on_gone: Callable[[], None]) -> Self:
        """Begin a launcher, of the files that are installed now.  It need not be waited for.

        Args:
            on_end: Called when a process that was launched has ended.
            on_gone: Called, once, when the launcher itself has ended unasked.  What it launched
                lives on, and only a pidfd says when that ends.

        Raises LaunchError where it cannot be begun.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            ours.setblocking(False)
            command = [sys.executable, "-P", "-m", "blkd.daemon.launcher", str(theirs.fileno())]
            try:
                process = subprocess.Popen(  # noqa: S603 - our own program
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,  # a terminal's signals are the supervisor's alone
                )
            except OSError as error:
                raise LaunchError(f"no launcher can be started: {error}") from error
            undo.pop_all()
        return cls(process, ours, on_end=on_end, on_gone=on_gone)

    @property
    def pid(self) -> int:
        """The launcher's own."""
        return self._process.pid

    async def launch(
        self,
        order: orders.Launch,
        *,
        log: int,
        control: socket.socket,
        listeners: Sequence[socket.socket],
        statistics: Sequence[int] = (),
    ) -> Launched:
        """Start a process that serves an export; wait for `Launched.ready` then.

        The descriptors are borrowed, for the time of the call.

        Args:
            order: What is served, and how.
            log: Where its log lines go: a file, open for appending.
            control: Where its control API is called; listens.
            listeners: Where front ends connect, for each device in order; they listen.
            statistics: Its statistics area and its eventfd, if `order` says that they come.

        Raises LaunchError.
        """
        sockets = [control.fileno(), *(listener.fileno() for listener in listeners)]
        return await self._start(order, [log, *statistics, *sockets])

    async def take(
        self, order: orders.Take, *, log: int, statistics: Sequence[int] = ()
    ) -> Launched:
        """Start a process that serves on what another one serves; for the rest see `launch`."""
        return await self._start(order, [log, *statistics])

    async def _start(self, order: orders.Order, fds: Sequence[int]) -> Launched:
        ready, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, ready)
            try:
                answer = await self._send(orders.encode(order), [theirs, *fds])
            finally:
                os.close(theirs)
            try:
                async with asyncio.timeout(START_LIMIT):
                    pid, pidfd = await answer
            except TimeoutError:
                raise LaunchError(f"no process was started within {START_LIMIT:g} s") from None
            undo.pop_all()
        return Launched(pid, pidfd, ready)

    async def _send(self, data: bytes, fds: Sequence[int]) -> "asyncio.Future[tuple[int, int]]":
        """Send an order: what will be the pid and the pidfd, from which all is cleaned up."""
        answer: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        try:
            async with asyncio.timeout(START_LIMIT), self._turn:
                while True:
                    try:
                        socket.send_fds(self._sock, [data], list(fds))
                        break
                    except BlockingIOError:
                        await writable(self._sock)
                self._answers.append(answer)
        except TimeoutError:
            raise LaunchError("the launcher takes no orders") from None
        except OSError as error:
            raise LaunchError(f"the launcher has ended: {error.strerror}") from error
        return answer

    def _take_reports(self) -> None:
        """Take what the launcher says."""
        while True:
            try:
                data, ancillary, *_ = self._sock.recvmsg(
                    orders.MAX_DOCUMENT, ancillary_bytes(1), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            fds = list(passed(ancillary))
            if not data:
                self._lose()
                return
            try:
                self._take(orders.decode_report(data), fds)
            finally:
                for fd in fds:  # those that nobody wants
                    os.close(fd)

    def _take(self, report: orders.Report, fds: list[int]) -> None:
        match report:
            case orders.Ended():
                self._on_end(report)
            case orders.Started(pid):
                answer = self._answers.popleft()
                if not answer.done():  # else nobody waits any more: it finds no reader, and ends
                    answer.set_result((pid, fds.pop()))
            case orders.Refused(reason):
                answer = self._answers.popleft()
                if not answer.done():
                    answer.set_exception(LaunchError(reason))

    def _lose(self) -> None:
        """Give up a launcher that has ended."""
        self._forget()
        self._on_gone()

    def _forget(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._sock.close()
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(LaunchError("the launcher has ended"))

    def retire(self) -> None:
        """Order nothing more: it reports the ends of its children, and ends with the last."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let the launcher go, which ends with its last child: nobody waits for that."""
        self._forget()

    def _bury(self) -> None:
        """Take note of the end of the process, which has come."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()


def _environment() -> dict[str, str]:
    """This process's, but for what is between it and who has started it."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return kept | MALLOC


def _error(kind: str, reason: str, hint: str | None) -> BlkdError:
    """The error that another process had."""
    found = getattr(errors, kind, None)
    if kind == errors.SyncFailed.__name__ or not (
        isinstance(found, type) and issubclass(found, BlkdError)
    ):
        found = LaunchError
    return found(reason, hint=hint)
