# SPDX-License-Identifier: Apache-2.0
"""The token of the dashboard, which is the same as long as its file is there."""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

from blkd.errors import StateError

BYTES: Final = 32
OWNER_ONLY: Final = 0o600
TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""So many bytes as `secrets` writes them."""


def kept_token(path: Path) -> str:
    """The token in a file, or a new one that is written there; only its owner reads it.

    Raises StateError.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.read_text("ascii", errors="replace").strip()
            if TOKEN.fullmatch(found):
                return found
        return _make(path)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error


def _make(path: Path) -> str:
    """Write a new token in the place of a file that has none."""
    token = secrets.token_urlsafe(BYTES)
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")
    beside.replace(path)
    return token
