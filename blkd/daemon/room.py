# SPDX-License-Identifier: Apache-2.0
"""When there is little room left for an image, in numbers only."""

from dataclasses import dataclass
from typing import Final, Self

from blkd.daemon.observed import Space
from blkd.errors import ConfigError
from blkd.host import sizes

PERCENT: Final = 100
ENOUGH_AGAIN: Final = 1.25
"""So many times the threshold must be free until it counts as free again: else a guest that writes
and discards would cross it again and again."""
NEAR: Final = 4  # times the threshold from where it is looked more often


@dataclass(frozen=True, slots=True)
class Measured:
    """What the file system of an image has said; bytes."""

    free: int
    total: int
    size: int
    allocated: int
    device: int = 0
    """The number of the file system."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """How little is too little: a share of the file system, or bytes; nothing of either is off."""

    share: float = 0.0
    bytes: int = 0

    @classmethod
    def read(cls, text: str) -> Self:
        """Of `5%` or `20G`.  Raises ConfigError."""
        try:
            if not text.endswith("%"):
                return cls(bytes=sizes.parse(text))
            percent = float(text.removesuffix("%"))
        except ValueError as error:
            raise ConfigError(f"{text!r} is neither a size, as 20G, nor a share, as 5%") from error
        if not 0 <= percent < PERCENT:
            raise ConfigError(f"{text!r} is no share of a file system")
        return cls(share=percent / PERCENT)

    def of(self, total: int) -> float:
        """Bytes, of a file system of `total`."""
        return max(self.share * total, self.bytes)

    def judge(self, measured: Measured, before: Space | None) -> Space:
        """The room that there is, by what was known `before`.

        An image that has all of its space needs no more.
        """
        least = self.of(measured.total) * (ENOUGH_AGAIN if before and before.nearly_full else 1)
        return Space(
            free=measured.free,
            total=measured.total,
            allocated=measured.allocated,
            nearly_full=measured.allocated < measured.size and measured.free < least,
        )

    def is_near(self, space: Space) -> bool:
        """Whether it may be crossed soon, either way."""
        return space.free < NEAR * self.of(space.total)
