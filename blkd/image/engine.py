# SPDX-License-Identifier: Apache-2.0
"""How the data path does I/O on an image: chosen by asking the image, or as configured.

What the data path needs for that is an `Io`, which an image has for each worker.
"""

import errno
import mmap
import os
import stat
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from blkd.image import kernel

EngineChoice = Literal["auto", "uring", "inline"]

IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
"""File systems that never wait for a disk."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The way of a read, a write or a flush, as people see it."""

    name: str
    """`uring`: io_uring; `inline`: at once on the worker's thread, what cannot be done so by
    io_uring; `null`: not at all; or a library that does it."""
    nowait: bool
    """Whether only reads are tried at once, and the file is asked not to wait (RWF_NOWAIT).

    A write has no such promise: it waits for a frozen file system whatever it was asked."""
    reason: str
    """Why this one, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIo:
    """The kernel reads and writes a file or block device; descriptors are the image's."""

    fd: int
    sync_fd: int
    """The same, as only this worker has it open; both numbers stay as they are."""
    direct: bool
    """Whether they are open for direct I/O."""
    at_once: bool
    """Whether what cannot wait is tried first on the worker's thread."""
    nowait: bool
    block_size: int
    memory_alignment: int
    may_discard_by_command: bool
    """Whether it is a block device that may be discarded by io_uring's command, if there is one."""


@dataclass(frozen=True, slots=True)
class NullIo:
    """Nothing is read or written at all."""


@dataclass(frozen=True, slots=True)
class ForeignIo:
    """A library does it: an extension with an engine of its own (`src/engine/engine.pxd`).

    It ends an Io by `complete_foreign` of `src/engine/foreign.pxd`.
    """

    functions: object
    """A capsule around its `EngineFunctions`."""


FaultAction = Literal["fail", "delay", "short"]
FaultKind = Literal["read", "write", "flush", "discard", "zeroes"]


class Fault(NamedTuple):
    """What an image is to do wrong, and when; the data path takes it as it stands."""

    action: FaultAction
    """`fail`: an I/O error; `delay`: later; `short`: only a part at first, where the kernel does
    it."""
    kinds: tuple[FaultKind, ...]
    every: int
    """The n-th request that it touches."""
    start: int
    end: int
    """Bytes of the disk, the last one not included, that a read or write must touch; a rule for
    a part of the disk is for reads and writes only."""
    delay: int
    """Nanoseconds."""
    most: int
    """Requests that it strikes, of each worker."""
    error: int
    """The errno that one fails with."""


@dataclass(frozen=True, slots=True)
class FaultyIo:
    """Another way, with faults."""

    inner: "Io"
    faults: tuple[Fault, ...]


Io = FileIo | NullIo | ForeignIo | FaultyIo


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
