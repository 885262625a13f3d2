# SPDX-License-Identifier: Apache-2.0
"""Locks on an image that QEMU and blkd understand alike.

QEMU's raw files carry one lock byte for each permission that a process uses and one for each
that it does not share with others.  All are read locks, so that many processes may lock the same
byte; one that opens the image locks its own bytes first, and then tests whether another process
has locked the opposite ones.  They are open-file-description locks: they last as long as the open
file, whatever else in this process opens and closes the image.
"""

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Final

from blkd.errors import ImageBusy, ImageError
from blkd.image import kernel

USED_BYTES: Final = 100
"""File offset of the bytes that say which permissions are in use (RAW_LOCK_PERM_BASE)."""
UNSHARED_BYTES: Final = 200
"""File offset of the bytes that say which are denied to others (RAW_LOCK_SHARED_BASE)."""

SCAN_LIMIT: Final = 1.0  # seconds to look for who holds a lock
SCAN_PERIOD: Final = 0.2  # seconds for which it is not looked for again
PIECE_BYTES: Final = 1 << 16  # read at once: more than most files of /proc have
LOCKED_FILE: Final = -3  # which word of a lock line of fdinfo is the file; the range follows

FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock where off_t has 64 bits: type, whence, start, len, pid."""


class Permission(IntFlag):
    """What can be done to an image, by QEMU's bit numbers (BLK_PERM_*)."""

    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8


ALL: Final = (
    Permission.CONSISTENT_READ | Permission.WRITE | Permission.WRITE_UNCHANGED | Permission.RESIZE
)


@dataclass(frozen=True, slots=True)
class LockMode:
    """What a process does with an image and what others may do meanwhile."""

    uses: Permission
    shares: Permission

    @property
    def lock_bytes(self) -> list[int]:
        """File offsets of the bytes to lock."""
        return _bytes(USED_BYTES, self.uses) + _bytes(UNSHARED_BYTES, ALL & ~self.shares)

    @property
    def opposed_bytes(self) -> list[int]:
        """File offsets of the bytes where a lock of another process conflicts with this mode."""
        return _bytes(UNSHARED_BYTES, self.uses) + _bytes(USED_BYTES, ALL & ~self.shares)


_READERS: Final = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED

WRITER: Final = LockMode(
    uses=Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE, shares=_READERS
)
READER: Final = LockMode(uses=Permission.CONSISTENT_READ, shares=_READERS)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a lock on an image."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def acquire(fd: int, path: str, mode: LockMode) -> None:
    """Lock the open file `fd` in this mode, for as long as it is open.

    On failure some locks may be left: the caller closes `fd`.

    Raises:
        ImageBusy: Another process's lock conflicts; the message names it, where it is known.
        ImageError: The file system has no such locks.
    """
    try:
        for at in mode.lock_bytes:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, at))
        free = not any(_is_opposed(fd, at) for at in mode.opposed_bytes)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise ImageError(
                f"{path}: cannot be locked: {error.strerror}",
                hint="keep the image on a file system with file locks",
            ) from error
        free = False
    if not free:
        raise busy(path, _holders_again(fd))


def release(fd: int, path: str) -> None:
    """Unlock the open file `fd`, also for whoever has a copy of the descriptor.

    Raises ImageError where the file system fails at that.
    """
    everything = FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)  # to the end, wherever that is
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, everything)
    except OSError as error:
        raise ImageError(f"{path}: cannot be unlocked: {error.strerror}") from error


def require(fd: int, path: str, mode: LockMode) -> None:
    """Raise ImageError unless the open file `fd` is locked in this mode; changes nothing."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines()
    locks = [line.split() for line in lines if line.startswith("lock:")]
    ranges = [(int(words[-2]), words[-1]) for words in locks if "OFDLCK" in words]
    for at in mode.lock_bytes:
        if not any(start <= at and (end == "EOF" or at <= int(end)) for start, end in ranges):
            raise ImageError(f"{path}: its descriptor came without the lock")


def busy(path: str, users: Iterable[object]) -> ImageBusy:
    """The error that says who uses the image at `path`, `users` being those that are known."""
    whom = ", ".join(map(str, users))
    error = ImageBusy(
        f"{path}: in use by {whom or 'another program'}",
        hint="end that first; several may use one image only if all of them are read-only",
    )
    error.holder_known = bool(whom)
    return error


def holders(fd: int) -> list[Holder]:
    """The processes with a lock on the file open as `fd`, as far as /proc shows them.

    A lock of `fd` itself does not count.  Only /proc is read: among all descriptors of all
    processes there may be some of a file system that hangs.  After SCAN_LIMIT seconds, those
    found so far are returned.
    """
    name = _name_in_locks(fd)
    return [] if name is None else _scan(name, ours=fd)


def holders_at(path: str) -> list[Holder]:
    """The processes with a lock on the file at `path`, which is not opened for reading."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return holders(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class _Scan:
    """Which processes were seen to have a file locked, and when."""

    name: bytes | None
    began: float
    found: list[Holder]


_last_scan = _Scan(None, 0.0, [])


def _holders_again(fd: int) -> list[Holder]:
    """`holders` for a caller that asks again and again: up to SCAN_PERIOD old."""
    global _last_scan  # noqa: PLW0603
    name, now = _name_in_locks(fd), time.monotonic()
    if _last_scan.name != name or now - _last_scan.began > SCAN_PERIOD:
        _last_scan = _Scan(name, now, [] if name is None else _scan(name, ours=fd))
    return _last_scan.found


def _scan(name: bytes, *, ours: int) -> list[Holder]:
    """The processes with a lock on `name`, as their fdinfo says; that of `ours` left out."""
    own, deadline = f"/proc/{os.getpid()}/fdinfo/{ours}", time.monotonic() + SCAN_LIMIT
    found: list[Holder] = []
    called = b" %s " % name
    with contextlib.suppress(OSError):
        # All locks there are, though not whose: mostly there is none but ours.
        if _read("/proc/locks").count(called) <= _read(own).count(called):
            return found
    for process in Path("/proc").glob("[0-9]*"):
        if time.monotonic() > deadline:
            break
        if any(_has_lock(entry, name, own) for entry in _descriptors(process)):
            with contextlib.suppress(OSError):
                command = (process / "comm").read_text("utf-8", "replace").strip()
                found.append(Holder(int(process.name), command))
    return found


def _name_in_locks(fd: int) -> bytes | None:
    """How lock lines call the file open as `fd`: device and inode, `00:1a:12345`.

    The device is the file system's, which on btrfs is not the one that stat gives.  None if that
    is not seen here.
    """
    try:
        info = _read(f"/proc/self/fdinfo/{fd}")
    except OSError:
        return None
    lines = [line.split() for line in info.splitlines()]
    for words in lines:
        if words[0] == b"lock:":
            return words[LOCKED_FILE]
    known = {words[0]: words[1] for words in lines if len(words) > 1}
    device = kernel.device_of_mount(known.get(b"mnt_id:", b"").decode())
    if device is None or b"ino:" not in known:
        return None
    major, minor = device
    return b"%02x:%02x:%s" % (major, minor, known[b"ino:"])


def _bytes(base: int, permissions: Permission) -> list[int]:
    return [base + p.bit_length() - 1 for p in Permission if p in permissions]


def _flock(kind: int, at: int) -> bytes:
    return FLOCK.pack(kind, os.SEEK_SET, at, 1, 0)


def _is_opposed(fd: int, at: int) -> bool:
    """Whether a write lock at `at` would conflict with another lock; none is taken."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, at))
    return bool(FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _descriptors(process: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a process's fdinfo; none where it ended or is another user's."""
    try:
        with os.scandir(process / "fdinfo") as entries:
            yield from entries
    except OSError:
        return


def _has_lock(entry: os.DirEntry[str], name: bytes, own: str) -> bool:
    """Whether an fdinfo, unless it is `own`, shows a lock on the file called `name`."""
    if entry.path == own:
        return False
    try:
        info = _read(entry.path)
    except OSError:
        return False
    return b"lock:" in info and b" %s " % name in info


def _read(path: str) -> bytes:
    """The content of a file of /proc, read with few calls: there are thousands of such files."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while piece := os.read(fd, PIECE_BYTES):
            content += piece
        return content
    finally:
        os.close(fd)
