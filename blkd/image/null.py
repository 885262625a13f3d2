# SPDX-License-Identifier: Apache-2.0
"""An image with nothing behind it, for measuring: writes are dropped, reads leave no trace."""

import dataclasses
import os
from typing import Final

from blkd.errors import ImageError
from blkd.host import sizes
from blkd.image.base import Fault, Limits
from blkd.image.engine import Engine

PREFIX: Final = "null:"
DEFAULT_BLOCK: Final = 512
PAGE: Final = 4096


class NullImage:
    """`null:SIZE`; plays `image.base.Image`.  A read leaves the guest's buffer as it was."""

    fd = -1
    direct = False
    held = True
    faults: tuple[Fault, ...] = ()
    engine = Engine("null", nowait=False, reason="there is nothing to read or write")

    def __init__(self, path: str, *, read_only: bool, logical_block_size: int | None) -> None:
        self.path = path
        self.identity = os.path.realpath(path)  # two of one size in two directories are two
        self.read_only = read_only
        block = logical_block_size or DEFAULT_BLOCK
        try:
            size = sizes.parse(path.removeprefix(PREFIX))
        except ValueError as error:
            raise ImageError(f"{path}: {error}", hint="null:1G is a null image of 1 GiB") from error
        self.limits = Limits(
            size=self._whole(size, block),
            logical_block_size=block,
            physical_block_size=max(block, PAGE),
            optimal_io_size=0,
            memory_alignment=1,
            discard_granularity=max(block, PAGE),
            punches=True,
            is_block_device=False,
        )

    def sync_fd(self, worker: int) -> int:  # noqa: ARG002 - one as good as another
        """There is nothing to sync."""
        return -1

    def write_error(self) -> int:
        """Nothing is ever lost that was there."""
        return 0

    def _whole(self, size: int, block: int) -> int:
        if size <= 0 or size % block:
            raise ImageError(f"{self.path}: {size} bytes are not one or more blocks of {block}")
        return size

    async def claim(self) -> None:
        """Nobody else has it."""

    async def hand_over(self) -> None:
        """There is nothing to be written to by two."""

    async def measure(self) -> int:
        """What it is said to have."""
        return self.limits.size

    async def refresh(self) -> bool:
        """Nobody else changes its size."""
        return False

    async def resize(self, size: int) -> None:
        """Be `size` bytes long.  Raises ImageError on what is not whole blocks."""
        size = self._whole(size, self.limits.logical_block_size)
        self.limits = dataclasses.replace(self.limits, size=size)

    def close(self) -> None:
        """Nothing is held."""
