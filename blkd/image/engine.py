# SPDX-License-Identifier: Apache-2.0
"""How the data path does I/O on an image: chosen by asking the image, or as told."""

import errno
import mmap
import os
import stat
from dataclasses import dataclass
from typing import Final, Literal

from blkd.image import kernel

EngineChoice = Literal["auto", "uring", "inline"]

IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
"""File systems that never wait for a disk."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The way of a read, a write or a flush; all else goes through io_uring anyway."""

    name: Literal["uring", "inline", "null"]
    """`uring`: io_uring; `inline`: at once on the worker's thread, what cannot be done so by
    io_uring; `null`: not at all."""
    nowait: bool
    """Whether only reads are tried at once, and the file is asked not to wait (RWF_NOWAIT).

    A write has no such promise: it waits for a frozen file system whatever it was asked."""
    reason: str
    """Why this one, for people."""


def choose(fd: int, wanted: EngineChoice, *, direct: bool) -> Engine:
    """The engine for the image that `fd` is, open for direct I/O or not."""
    # A block device's node lies in memory too, which says nothing of the device.
    in_memory = stat.S_ISREG(os.fstat(fd).st_mode) and kernel.filesystem(fd) in IN_MEMORY
    if wanted == "uring":
        return Engine("uring", nowait=False, reason="as told")
    if in_memory:
        return Engine("inline", nowait=False, reason="a file system in memory never waits")
    if wanted == "inline":
        return Engine("inline", nowait=True, reason="as told")
    if not direct and answers_at_once(fd):
        return Engine("inline", nowait=True, reason="the page cache answers at once what it has")
    return Engine("uring", nowait=False, reason="I/O waits for a disk")


def answers_at_once(fd: int) -> bool:
    """Whether what was just read can be read again without waiting."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        os.preadv(fd, [page], 0)
        try:
            return os.preadv(fd, [page], 0, os.RWF_NOWAIT) > 0
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP}:
                return False
            raise
