# SPDX-License-Identifier: Apache-2.0
"""The size of an open image, asked without a wait for a file system that hangs."""

import functools
from typing import Final

from blkd.errors import ImageError
from blkd.host.blocking import ask
from blkd.image import kernel

LIMIT: Final = 5.0  # seconds that a file system may take to say the size

AT_ONCE: Final = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "tmpfs", "ramfs"}
)
"""File systems that have an open file's size in memory.  Others may ask a process or a host."""


def is_known_at_once(fd: int) -> bool:
    """Whether the kernel knows the size of the image open as `fd` without asking anybody.

    Found out while the whole host is seen; asks no server then.
    """
    return kernel.is_block_device(fd) or kernel.filesystem(fd) in AT_ONCE


class Measure:
    """Asks for the size of one image, by one thread at a time."""

    def __init__(self, path: str, *, at_once: bool) -> None:
        """`at_once` as `is_known_at_once` has it."""
        self._path = path
        self._at_once = at_once
        self._asking = False

    async def size(self, fd: int) -> int:
        """The size of the image open as `fd`.

        Raises ImageError where that is not known in time; as long as it is not, nobody asks again.
        """
        if self._at_once:
            return kernel.size(fd)
        if self._asking:
            raise ImageError(f"{self._path}: its file system still does not answer")
        self._asking = True
        try:
            return await ask(functools.partial(self._ask, fd), LIMIT)
        except TimeoutError:
            raise ImageError(
                f"{self._path}: its file system has not answered for {LIMIT:g} s"
            ) from None
        except OSError:
            self._asking = False  # there may have been no thread to do so
            raise

    def _ask(self, fd: int) -> int:
        try:
            return kernel.size(fd)
        finally:
            self._asking = False
