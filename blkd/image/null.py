# SPDX-License-Identifier: Apache-2.0
"""An image with nothing behind it, for measuring: writes are dropped, reads leave no trace."""

import dataclasses
import os
from typing import Final

from blkd.errors import ImageError
from blkd.host import sizes
from blkd.image.base import Limits
from blkd.image.engine import Engine, NullIo
from blkd.image.watch import NoOccasion

PREFIX: Final = "null:"
DEFAULT_BLOCK: Final = 512
PAGE: Final = 4096


class NullImage:
    """`null:SIZE`; plays `image.base.Image`.  A read leaves the guest's buffer as it was."""

    direct = True
    is_locked = True
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

    def io(self, worker: int) -> NullIo:  # noqa: ARG002 - one as good as another
        """Not at all."""
        return NullIo()

    def lent(self) -> None:
        """Its name says all but its size."""

    async def set_size(self, size: int) -> None:
        """Be as large as it was: nothing else says so."""
        await self.resize(size)

    def watch(self, period: float) -> NoOccasion:  # noqa: ARG002 - there is none to come
        """Nobody else changes its size."""
        return NoOccasion()

    def space(self) -> None:
        """It takes none."""

    def write_error(self) -> int:
        """Nothing is ever lost that was there."""
        return 0

    def _whole(self, size: int, block: int) -> int:
        if size <= 0 or size % block:
            raise ImageError(f"{self.path}: {size} bytes are not one or more blocks of {block}")
        return size

    async def take_lock(self) -> None:
        """Nobody else has it."""

    async def release_lock(self) -> None:
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
        """Nothing is open."""
