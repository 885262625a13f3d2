# SPDX-License-Identifier: Apache-2.0
"""A front end's descriptors, checked before the data path uses them: memory files and eventfds.

A front end is not trusted: a file that it shares may be on a file system that never answers, may be
shorter than it says, and may change at any time.
"""

import ctypes
import functools
import mmap
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

from blkd import ring
from blkd.errors import RequestRefused
from blkd.host.blocking import ask
from blkd.host.fds import is_eventfd, is_memory
from blkd.vhost_user.wire import LogBase, MemoryRegion

LAST_ADDRESS: Final = 2**63 - 1  # of a file, as off_t counts
KIND_LIMIT: Final = 1.0  # seconds that a file system may take to say what it is
MOST_ASKED: Final = 4  # that do not say it, before nobody is asked any more

LOCAL_FILESYSTEMS: Final = {
    0xEF53: "ext4",  # and ext2, ext3
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x958458F6: "hugetlbfs",
}
"""By magic number (linux/magic.h): file systems whose pages no other process or host is asked for,
and which only the host's root can mount."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_STATFS_BYTES: Final = 256  # more than struct statfs has, which begins with the magic number
_MAGIC: Final = struct.Struct("@l")
_asked: Final[list[int]] = []
"""Descriptors whose file system has been asked and has not answered: a thread waits for each."""


def require_eventfd(fd: int, what: str) -> None:
    """Raise RequestRefused unless `fd` is an eventfd, the only kind that cannot block us."""
    try:
        found = is_eventfd(fd)
    except OSError as error:
        raise RequestRefused(f"the {what} descriptor is unusable: {error.strerror}") from error
    if not found:
        raise RequestRefused(f"the {what} descriptor is not an eventfd")


async def require_local(fds: Iterable[int], what: str) -> None:
    """Raise RequestRefused unless each of `fds` is in memory, or on a file system of this host.

    Of any other file each page is had from a process or a host that may never give it (FUSE,
    NFS): a worker that touches one would wait for ever, and with it all front ends to come.
    """
    for fd in fds:
        if is_memory(fd):
            continue
        if len(_asked) >= MOST_ASKED:
            raise RequestRefused(
                f"{what}: no memory, and {len(_asked)} file systems still do not say what they are"
            )
        try:
            magic = await ask(functools.partial(_magic, fd), KIND_LIMIT)
        except TimeoutError:
            raise RequestRefused(f"{what}: its file system does not answer") from None
        except OSError as error:
            raise RequestRefused(f"{what}: its descriptor is unusable: {error.strerror}") from error
        if magic not in LOCAL_FILESYSTEMS:
            raise RequestRefused(
                f"{what}: neither memory nor a file on a local file system (magic {magic:#x})",
                hint="share memory of memfd_create, /dev/shm or hugetlbfs",
            )


def _magic(fd: int) -> int:
    """The magic number of the file system that has `fd`; on FUSE and NFS this asks the server."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    _asked.append(fd)
    try:
        result = _libc.fstatfs(fd, answer)
    finally:
        _asked.remove(fd)
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    magic: int = _MAGIC.unpack_from(answer)[0]
    return magic & 0xFFFFFFFF


def map_region(region: MemoryRegion, fd: int) -> ring.Mapping:
    """Map a region of the front end's memory.  Raises RequestRefused where that cannot be."""
    return map_file(
        fd,
        region.mmap_offset,
        region.size,
        f"memory region at guest address {region.guest_address:#x}",
        region,
    )


def map_log(log: LogBase, fd: int) -> ring.Mapping:
    """Map a dirty log.  Raises RequestRefused where that cannot be."""
    return map_file(fd, log.offset, log.size, "dirty log")


def map_file(
    fd: int, offset: int, size: int, what: str, region: MemoryRegion | None = None
) -> ring.Mapping:
    """Map a part of a memory file, which a front end may own and change at any time.

    `region` says where guest and front end see it.  Raises RequestRefused.
    """
    end = offset + size
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RequestRefused(f"{what}: its descriptor is not a memory file")
    if size == 0 or end > LAST_ADDRESS:
        raise RequestRefused(f"{what}: {size} bytes from {offset:#x}")
    if end > status.st_size:
        raise RequestRefused(f"{what}: ends at {end:#x} of a file of {status.st_size:#x} bytes")
    try:
        return ring.Mapping(
            fd,
            offset,
            size,
            region.guest_address if region else 0,
            region.user_address if region else 0,
            max(status.st_blksize, mmap.PAGESIZE),
        )
    except OSError as error:
        raise RequestRefused(f"{what}: cannot be mapped: {error.strerror}") from error
