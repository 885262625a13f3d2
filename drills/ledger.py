# SPDX-License-Identifier: Apache-2.0
"""A ledger of writes and flushes: what each block of a disk may hold once its host has crashed.

A block that is written holds its own number and a generation, which rises with every write.
What was answered before a flush began is durable once that flush is answered (virtio 1.3,
5.2.6.2); what came later may be there or not, in any order from block to block.
"""

import struct
from collections.abc import Sequence
from typing import Final

BLOCK: Final = 4096
"""Bytes: what a disk of any block size writes whole."""

STAMP: Final = struct.Struct("<QQ")  # block, generation
REPEATS: Final = BLOCK // STAMP.size
ZEROES: Final = bytes(BLOCK)


def content(block: int, generation: int) -> bytes:
    """What a block holds that was written as a generation, from 1; zeroes are generation 0."""
    return STAMP.pack(block, generation) * REPEATS if generation else ZEROES


class Ledger:
    """All that was asked of a disk of `blocks` blocks, which hold zeroes at first.

    A block is written by one request at a time.  With `write_through` a write is durable as
    soon as it is answered.
    """

    def __init__(self, blocks: int, *, write_through: bool = False) -> None:
        self.blocks = blocks
        self.busy: set[int] = set()
        """Blocks that a request is writing now."""

        self._write_through = write_through
        self._latest = 0
        self._possible: list[list[int]] = [[0] for _ in range(blocks)]
        # Of each block: what may be on the disk, oldest first; and how far writes are answered.
        self._answered = [0] * blocks
        self._contents: dict[tuple[int, int], bytes] = {}

    def write(self, blocks: Sequence[int], *, zeroes: bool = False) -> tuple[int, bytes]:
        """A request to write these blocks is sent: its generation, and the content."""
        self._latest += 1
        assert not self.busy.intersection(blocks), "one request at a time"
        self.busy.update(blocks)
        for block in blocks:
            self._possible[block].append(self._latest)
            if zeroes:
                self._contents[block, self._latest] = ZEROES
        return self._latest, b"".join(self.written(block, self._latest) for block in blocks)

    def wrote(self, blocks: Sequence[int], generation: int) -> None:
        """That request was answered with success."""
        self.busy.difference_update(blocks)
        for block in blocks:
            self._answered[block] = generation
        if self._write_through:
            self._settle(blocks, self._answered)

    def flush(self) -> list[int]:
        """A flush is sent: what it covers, to be given to `flushed`."""
        return self._answered.copy()

    def flushed(self, covered: list[int]) -> None:
        """That flush was answered with success: nothing older is to be seen any more."""
        self._settle(range(self.blocks), covered)

    def _settle(self, blocks: Sequence[int], durable: list[int]) -> None:
        for block in blocks:
            possible = self._possible[block]
            while possible[0] < durable[block]:
                del possible[0]

    def written(self, block: int, generation: int) -> bytes:
        """What a block holds after one of its writes."""
        return self._contents.get((block, generation)) or content(block, generation)

    def allows(self, block: int, found: bytes) -> bool:
        """Whether a block may hold this after a crash."""
        return any(self.written(block, each) == found for each in self._possible[block])

    def lost(self, block: int, found: bytes) -> bool:
        """Whether a block's last answered write is not what it holds, nor a later one."""
        return not any(
            self.written(block, each) == found
            for each in self._possible[block]
            if each >= self._answered[block]
        )
