# SPDX-License-Identifier: Apache-2.0
"""At which socket a daemon answers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "BLKD_SOCKET"
"""In the environment: the path of the daemon's socket."""
SYSTEM_RUN: Final = Path("/run/blkd")
SOCKET: Final = "blkd.sock"


def daemon_socket(environment: Mapping[str, str] = os.environ, user: int | None = None) -> str:
    """The path of the daemon's socket where the caller names none.

    It is the one that BLKD_SOCKET names; else, for an ordinary user, that of a daemon of this user,
    if there is one; else that of the host's daemon.

    Args:
        environment: What is asked for BLKD_SOCKET and XDG_RUNTIME_DIR.
        user: Number of the user who asks; None for this process's.
    """
    if named := environment.get(VARIABLE):
        return named
    asking = os.geteuid() if user is None else user
    own = user_run(environment, asking) / SOCKET
    return str(own if asking != 0 and own.is_socket() else SYSTEM_RUN / SOCKET)


def user_run(environment: Mapping[str, str], user: int) -> Path:
    """Where the daemon of an ordinary user has its sockets."""
    directory = environment.get("XDG_RUNTIME_DIR", "")
    return Path(directory if directory.startswith("/") else f"/run/user/{user}") / "blkd"
