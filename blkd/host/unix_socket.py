# SPDX-License-Identifier: Apache-2.0
"""The UNIX sockets that blkd listens on: made, taken over from a parent, removed."""

import asyncio
import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from blkd.errors import SocketError

MAX_PATH = 107  # bytes: sun_path has 108 and ends in NUL (unix(7))
OWNERS = 0o700  # of a mode, what it says of the owner
BACKLOG = 16  # peers that may wait to be accepted
LINGER_LIMIT = 5.0  # seconds that a killed process may take to let its socket go
TURN_LIMIT = 1.0  # seconds to wait for others that make sockets in the directory, or say so
LINGER_PERIOD = 0.02  # seconds between two looks
SO_PASSRIGHTS = 83  # whether a UNIX socket takes descriptors (Linux 6.16)
UCRED = struct.Struct("=iII")  # pid, uid, gid (unix(7), SO_PEERCRED)


class Passing(SocketError):
    """The path is taken for a moment: by a process that is dying, or by one that starts as well."""


async def listen_soon(
    path: str,
    mode: int,
    group: int | None = None,
    kind: int = socket.SOCK_STREAM,
    *,
    descriptors: bool = True,
) -> socket.socket:
    """`listen`, tried for some seconds where the path is taken for a moment only."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        waited = loop.time() - began
        try:
            return listen(
                path, mode, group, alone=waited < TURN_LIMIT, kind=kind, descriptors=descriptors
            )
        except Passing:
            if waited > LINGER_LIMIT:
                raise
        await asyncio.sleep(LINGER_PERIOD)


def listen(
    path: str,
    mode: int,
    group: int | None = None,
    *,
    alone: bool = True,
    kind: int = socket.SOCK_STREAM,
    descriptors: bool = True,
) -> socket.socket:
    """A non-blocking socket of a kind, listening at `path`, whose file has the permissions `mode`.

    It belongs to `group`, if one is given; until it does, only to the owner.  A socket file that
    nobody answers on any more is replaced: by one process, of those that find it at the same time
    and are to be `alone` in its directory.  Without `descriptors` nobody who connects can send any,
    where the kernel knows how to refuse them.

    Raises:
        SocketError: the path is unfit, not a socket, or a living process listens there; or the
            file may not be given to the group.
    """
    _check(path)
    with contextlib.ExitStack() as undo, _turn(path) if alone else contextlib.nullcontext():
        _clear(path)
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.setblocking(False)
        if not descriptors:
            _refuse_descriptors(sock)
        # bind() takes the mode from here: never open to more than `mode`, not for a moment.
        os.fchmod(sock.fileno(), mode if group is None else mode & OWNERS)
        try:
            sock.bind(path)
            undo.callback(Path(path).unlink)
            if group is not None:
                give(path, group, mode)
            Path(path).chmod(mode)  # what the umask took away
            sock.listen(BACKLOG)
        except OSError as error:
            raise SocketError(
                f"cannot listen on {path}: {os.strerror(error.errno or 0)}",
                hint=_place_hint(path, error.errno),
            ) from error
        undo.pop_all()
    return sock


def _place_hint(path: str, number: int | None) -> str | None:
    """What to do about a place where no socket can be made."""
    place = Path(path).absolute().parent
    match number:
        case errno.ENOENT:
            return f"make the directory {place} first"
        case errno.EACCES | errno.EPERM:
            return f"look at the owner and mode of {place}"
    return None


def can_refuse_descriptors() -> bool:
    """Whether the kernel can refuse descriptors that are sent to a socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        return _refuse_descriptors(sock)


def _refuse_descriptors(sock: socket.socket) -> bool:
    """Have nobody send descriptors to a socket, or to those that it accepts: whether that is so."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def group_number(name: str | None) -> int | None:
    """The number of a group by name or number; None for None.  Raises SocketError for no group."""
    if name is None:
        return None
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise SocketError(
            f"there is no group {name} that a socket could belong to",
            hint="getent group tells the groups of this host",
        ) from error


def give(path: str, group: int, mode: int) -> None:
    """Give the file of a socket to a group, with the permissions `mode`.  Raises SocketError."""
    try:
        os.chown(path, -1, group, follow_symlinks=False)
        Path(path).chmod(mode)
    except (OSError, OverflowError) as error:
        raise SocketError(
            f"cannot give {path} to group {group}: {error}",
            hint="a process that is not root can only give it to a group that it is in",
        ) from error


@contextlib.contextmanager
def _turn(path: str) -> Iterator[None]:
    """Be the one process that makes a socket in the directory of `path`.

    By a lock on the directory itself, which leaves no file behind.  Where it cannot be had for
    lack of rights or on a network file system, whoever comes second may win.  Raises Passing.
    """
    with contextlib.ExitStack() as undo:
        try:
            fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Passing(f"another process makes a socket beside {path}") from error
        except OSError:  # a directory that is missing is found out by bind()
            pass
        yield


def message_path(path: str) -> str:
    """Where programs connect for SEQPACKET, if for streams they do at `path`."""
    return f"{path}.seqpacket"


def unlink_if_ours(path: str, kind: int = socket.SOCK_STREAM) -> None:
    """Remove the socket file at `path` if it is this process that listens there.

    To be called while the socket still listens; a file that somebody else has put in
    its place meanwhile stays.
    """
    with contextlib.suppress(OSError):
        if _listener(path, kind) == os.getpid():
            Path(path).unlink()


def adopt(fd: int) -> socket.socket:
    """The stream socket that a parent process left open as `fd`, listening or connected.

    Raises:
        SocketError: `fd` is not such a socket.
    """
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, OverflowError) as error:
        raise SocketError(f"file descriptor {fd} is no socket: {error}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(sock.detach)  # refused: it stays the parent's
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise SocketError(f"file descriptor {fd} is a socket, but not a UNIX stream socket")
        if not is_listening(sock) and not _is_connected(sock):
            raise SocketError(f"file descriptor {fd} is a socket neither listening nor connected")
        undo.pop_all()
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def own(sock: socket.socket) -> None:
    """Be the process that listens on `sock`, which another one has made: peers see us then."""
    sock.listen(BACKLOG)


def is_listening(sock: socket.socket) -> bool:
    """Whether `sock` accepts connections, rather than being one."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def peer(sock: socket.socket) -> int:
    """The process that connected `sock`, or listens for it; 0 where it is not seen from here."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid: int = UCRED.unpack(credentials)[0]
    return pid


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _check(path: str) -> None:
    name = os.fsencode(path)
    if not name or b"\0" in name:
        raise SocketError(f"{path!r} is no path for a socket")
    if len(name) > MAX_PATH:
        raise SocketError(
            f"the socket path {path} has {len(name)} bytes, more than the {MAX_PATH} "
            "that the kernel allows",
            hint="use a shorter path, or a relative one from a directory nearer to it",
        )


def _clear(path: str) -> None:
    """Make room at `path`: remove a dead socket, refuse anything else."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"cannot listen on {path}: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISSOCK(kind):
        raise SocketError(f"{path} exists and is not a socket", hint="choose another path")
    try:
        pid = _listener(path)
        if pid is not None:
            refusal = Passing if pid and _is_dying(pid) else SocketError
            raise refusal(
                f"{path} is in use by {_process(pid)}",
                hint="--socket and --control need a path each"
                if pid == os.getpid()
                else "choose another path, or end that process first",
            )
        Path(path).unlink()
    except FileNotFoundError:
        return  # gone by itself
    except OSError as error:
        raise SocketError(
            f"cannot replace the socket {path}: {os.strerror(error.errno or 0)}"
        ) from error


def _listener(path: str, kind: int = socket.SOCK_STREAM) -> int | None:
    """The process that listens at `path`, 0 if it is not known, None if there is none."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return None
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EPROTOTYPE):  # a full backlog; another type
                return 0
            raise
        return peer(probe)


def _is_dying(pid: int) -> bool:
    """Whether process `pid` has ended but for a thread that the kernel still holds.

    One that was killed keeps its sockets until the disk has answered its last requests.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def _process(pid: int) -> str:
    """How to call process `pid` in a message."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}" if pid else "another process"
    return f"process {pid} ({name})"
