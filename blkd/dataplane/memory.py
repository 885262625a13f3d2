# SPDX-License-Identifier: Apache-2.0
"""A front end's descriptors, checked before the data path uses them: memory and eventfds."""

import contextlib
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blkd import ring
from blkd.errors import RequestRefused
from blkd.fds import close_all
from blkd.vhost_user.wire import LogBase, MemoryRegion

EVENTFD: Final = "anon_inode:[eventfd]"
LAST_ADDRESS: Final = 2**63 - 1  # of a file, as off_t counts


def require_eventfd(fd: int, what: str) -> None:
    """Raise RequestRefused unless `fd` is an eventfd, the only kind that cannot block us."""
    try:
        found = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError as error:
        raise RequestRefused(f"the {what} descriptor is unusable: {error.strerror}") from error
    if found != EVENTFD:
        raise RequestRefused(f"the {what} descriptor is {found}, not an eventfd")


class Shared:
    """A region of the front end's memory: mapped, and its descriptor kept for a successor."""

    def __init__(self, region: MemoryRegion, fd: int) -> None:
        """Map it; takes the descriptor.  Raises RequestRefused where that cannot be."""
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            self.mapping = map_region(region, fd)
            undo.pop_all()
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor; the mapping ends when nothing uses it any more."""
        os.close(self.fd)


def share_all(regions: Sequence[MemoryRegion], fds: Sequence[int]) -> dict[MemoryRegion, Shared]:
    """Map each of `regions`, whose descriptors are taken: all, or RequestRefused and none."""
    with contextlib.ExitStack() as undo:
        left = list(fds)
        undo.callback(lambda: close_all(left))
        shared = {}
        for region in regions:
            shared[region] = Shared(region, left.pop(0))
            undo.callback(shared[region].close)
        undo.pop_all()
    close_all(left)
    return shared


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
