# SPDX-License-Identifier: Apache-2.0
"""Guest memory without a guest: one memory file, and what lies where in it."""

import fcntl
import mmap
import os
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from blkd.vhost_user.wire import MemoryRegion

GUEST_ADDRESS: Final = 1 << 32
"""Of the first byte, for the back end; its user address is made the same."""

PAGE: Final = 4096  # each part begins on a page, each request's data too
FRAME_STRIDE: Final = 64  # bytes: header, range and status of a request, in one cache line
DESC_BYTES: Final = 16
SPLIT_USED_BYTES: Final = 8  # an element
SPLIT_EXTRA: Final = 6  # bytes of flags, index and event beside a ring's elements
WHOLE: Final = 2 << 20  # SPDK registers memory in pieces of 2 MiB

F_ADD_SEALS: Final = 1033  # fcntl.h; Python has the names from 3.14 on
F_SEAL_SHRINK: Final = 2


def rounded(size: int, step: int = PAGE) -> int:
    """`size` up to the next multiple of `step`."""
    return -(-size // step) * step


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """Where the parts of one queue begin, as offsets."""

    desc: int
    avail: int
    used: int
    frames: int
    tables: int
    data: int
    end: int
    table_stride: int
    data_stride: int

    @classmethod
    def at(cls, start: int, *, size: int, depth: int, parts: int, block_bytes: int) -> Self:
        """The layout of a ring of `size` for `depth` requests of `parts` descriptors each.

        A packed ring's two event structures take the places of the avail and used rings.
        """
        table_stride = rounded(parts * DESC_BYTES, FRAME_STRIDE)
        data_stride = rounded(block_bytes)
        avail = start + rounded(size * DESC_BYTES)
        used = avail + rounded(SPLIT_EXTRA + 2 * size)
        frames = used + rounded(SPLIT_EXTRA + SPLIT_USED_BYTES * size)
        tables = frames + rounded(depth * FRAME_STRIDE)
        data = tables + rounded(depth * table_stride)
        end = data + depth * data_stride
        return cls(start, avail, used, frames, tables, data, end, table_stride, data_stride)


class Memory:
    """A memory file of `size` bytes and our mapping of it; a context that gives both back.

    Sealed against shrinking: a back end cannot take it away under us.
    """

    def __init__(self, size: int) -> None:
        self.size = rounded(size, WHOLE)
        self.fd = os.memfd_create("blkd-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK)
            self.mapping = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def region(self) -> MemoryRegion:
        """As the back end is sent it."""
        return MemoryRegion(GUEST_ADDRESS, self.size, GUEST_ADDRESS, 0)

    def fill(self, start: int, end: int, seed: int) -> None:
        """Fill a part with bytes that no storage can shorten."""
        piece = random.Random(seed).randbytes(min(end - start, WHOLE))  # noqa: S311 - no secret
        for at in range(start, end, len(piece)):
            self.mapping[at : min(at + len(piece), end)] = piece[: end - at]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)
        del self.mapping  # a generator may hold it still; it is unmapped with its last user
