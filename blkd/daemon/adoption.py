# SPDX-License-Identifier: Apache-2.0
"""A process that an earlier daemon started, and that serves on: found, and its sockets borrowed."""

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blkd.control import client, lending, models
from blkd.daemon.record import OWN_USERS
from blkd.errors import BlkdError, LaunchError
from blkd.host import unix_socket
from blkd.host.fds import close_foreign

COMM_BYTES: Final = 15  # what the kernel keeps of a thread's name
ANSWER_LIMIT: Final = 5.0  # seconds for each answer


@dataclass(frozen=True, slots=True)
class Found:
    """A process that serves an export; its descriptors are the caller's."""

    state: Any
    """What it says of itself."""
    control: socket.socket
    """Is named as the path that it was found at."""
    listeners: tuple[socket.socket, ...]
    statistics: int | None
    """What it says is its statistics area."""
    wake: int | None
    """What it says is the eventfd of that."""


def title(name: str) -> bytes:
    """What the process of an export calls itself, for who looks at the list of processes."""
    return f"blkd:{name}".encode()[:COMM_BYTES]


def holder(path: str) -> tuple[int, int] | None:
    """Pid and pidfd, which is the caller's, of the process whose control API is at `path`.

    None where nobody listens there.  Blocks.  Raises LaunchError where it cannot be known.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ANSWER_LIMIT)
            probe.connect(path)
            pid = unix_socket.peer(probe)
        return pid, os.pidfd_open(pid)
    except (FileNotFoundError, ConnectionRefusedError, ProcessLookupError):
        return None
    except OSError as error:
        raise LaunchError(f"what listens at {path} cannot be asked: {error}") from error


def is_anothers(pid: int, user: int | None) -> bool:
    """Whether a process has the user of another export than the one whose own user is `user`.

    A socket says who made it listen last: that may be whoever a hostile export gave it to.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", errors="replace")
    except OSError:  # it has ended
        return False
    _, _, users = status.partition("\nUid:\t")
    real = int(users.partition("\t")[0])
    return real in OWN_USERS and real != user


def is_of(name: str, pid: int) -> bool:
    """Whether a process calls itself that of an export.

    A socket goes on to say who made it listen: as long as its process has not come to serve, that
    is a daemon of before, whose number may be that of any process by now.
    """
    try:
        found = Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return False
    return found.removesuffix(b"\n") == title(name)


def find(path: str, name: str, pid: int) -> Found:
    """What process `pid`, whose control API is at `path`, serves and lends.

    Blocks.

    Args:
        path: Of a socket.
        name: What the export is called.
        pid: For what is said in errors.

    Raises LaunchError where it does not answer as the export `name` does.
    """
    with contextlib.ExitStack() as undo:
        try:
            state = client.call(path, "GET", models.EXPORT, limit=ANSWER_LIMIT)
            lent = lending.borrow(path, ANSWER_LIMIT)
        except BlkdError as error:
            raise LaunchError(
                f"process {pid}, which has its sockets, does not answer: {error}"
            ) from error
        control, *listeners = lent.sockets
        for sock in lent.sockets:
            undo.callback(sock.close)
        undo.callback(close_foreign, filter(None, (lent.statistics, lent.wake)))
        if control.getsockname() != path:
            raise LaunchError(f"process {pid} at {path} lends another socket than that")
        if not isinstance(state, dict) or state.get("name") != name:
            raise LaunchError(f"process {pid} at {path} does not serve {name}")
        undo.pop_all()
    return Found(state, control, tuple(listeners), lent.statistics, lent.wake)
