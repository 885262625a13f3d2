# SPDX-License-Identifier: Apache-2.0
"""What may be opened with the daemon's rights on a caller's word.

That is a file beneath a configured directory, or a block device of a configured name.  A file is
reached by openat2(2) from the directory: no symbolic link, `..` or link of /proc leads out of it,
whatever is done to the directories meanwhile.
"""

import contextlib
import ctypes
import errno
import fnmatch
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Final

from blkd.errors import ImageError

OPENAT2: Final = 437
"""The number of the system call, on every architecture."""
OPEN_HOW: Final = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08
AT_FDCWD: Final = -100
MOST_TRIES: Final = 100
"""The kernel looks again where something on the way was renamed meanwhile, if asked to."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def open_place(path: str, directories: Sequence[str], devices: Sequence[str]) -> int:
    """A descriptor (O_PATH) of what a caller may name: the caller owns it.

    Blocks, for as long as a file system takes to answer.

    Args:
        path: Absolute.
        directories: Beneath one of which a file must lie.
        devices: What a block device's path must match instead, part by part.

    Raises:
        ImageError: It lies elsewhere, is not there, or is neither file nor block device.
    """
    if _is_named(path, devices):
        return _require(_open(None, path, path), path, stat.S_ISBLK, "block device")
    with beneath(path, directories) as (directory, rest):
        fd = _open(directory, rest, path, RESOLVE_BENEATH)
    return _require(fd, path, stat.S_ISREG, "regular file")


def open_directory_of(path: str, directories: Sequence[str]) -> tuple[int, str]:
    """The directory, beneath one of `directories`, in which `path` is or is to be.

    Its descriptor (O_PATH), which is the caller's, and the name in it.  Blocks; raises ImageError.
    """
    with beneath(path, directories) as (directory, rest):
        inner = PurePath(rest)
        if inner.name in {"", ".."} or path.endswith("/"):
            raise ImageError(f"{path} is no name of a file")
        fd = _open(directory, str(inner.parent), path, RESOLVE_BENEATH)
    return _require(fd, str(PurePath(path).parent), stat.S_ISDIR, "directory"), inner.name


@contextlib.contextmanager
def beneath(path: str, directories: Sequence[str]) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory that has `path` beneath it, and the way on from there.

    Raises ImageError where none has.
    """
    for directory in directories:
        for known in dict.fromkeys((directory, os.path.realpath(directory))):
            rest = path.removeprefix(known.rstrip("/") + "/")
            if rest == path or not rest.strip("/"):
                continue
            fd = _open(None, known, known)
            try:
                yield fd, rest.lstrip("/")
            finally:
                os.close(fd)
            return
    raise ImageError(
        f"{path} lies in none of the daemon's directories",
        hint=f"images may lie beneath {', '.join(directories) or 'none'}; block devices need"
        " a line in `devices`",
    )


def _is_named(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches one of the patterns, part by part."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts:
        return False
    return any(
        len(parts) == len(wanted := pattern.split("/"))
        and all(map(fnmatch.fnmatchcase, parts, wanted))
        for pattern in patterns
    )


def _open(directory: int | None, path: str, shown: str, resolve: int = 0) -> int:
    """A descriptor (O_PATH) of `path`, seen from `directory`; errors call it `shown`."""
    at = AT_FDCWD if directory is None else directory
    how = OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    number = 0
    for _ in range(MOST_TRIES):
        fd: int = _libc.syscall(OPENAT2, at, os.fsencode(path), how, OPEN_HOW.size)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in {errno.EINTR, errno.EAGAIN}:
            break
    raise _refusal(shown, number)


def _refusal(path: str, number: int) -> ImageError:
    match number:
        case errno.EXDEV | errno.ELOOP:
            return ImageError(
                f"{path} leads out of the daemon's directories",
                hint="symbolic links must stay beneath the directory, and be relative",
            )
        case errno.ENOSYS:
            return ImageError("the kernel has no openat2, which the daemon needs: Linux 5.6")
        case errno.ENOENT:
            return ImageError(f"{path}: {os.strerror(number)}", hint="look at the path")
    return ImageError(f"{path}: {os.strerror(number)}")


def _require(fd: int, path: str, is_kind: Callable[[int], bool], kind: str) -> int:
    """`fd` if it is of a kind, else closed.  Raises ImageError."""
    if is_kind(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise ImageError(f"{path} is no {kind}")


def reopen(fd: int, flags: int) -> int:
    """Open once more, with `flags`, what an O_PATH descriptor is of.  Raises OSError; blocks."""
    return os.open(Path(f"/proc/self/fd/{fd}"), flags | os.O_CLOEXEC)
