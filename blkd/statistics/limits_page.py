# SPDX-License-Identifier: Apache-2.0
"""The page of an export's rates that its process and the daemon share, as the daemon sees it.

`src/blk/limits_page.pxd` has the same layout and says what it means.  The other process may write
anything there at any time: what is read is a number and nothing more.
"""

import enum
from dataclasses import dataclass
from typing import Final, Self

PAGE_BYTES: Final = 8192
LAYOUT: Final = 1
"""Of the page; of one with another layout nothing may be used."""
UNITS_A_REQUEST: Final = 1 << 10
"""IOPS are counted in these, bandwidth in bytes."""
SECOND: Final = 1_000_000_000  # nanoseconds

_WORD: Final = 8  # bytes
_WRAP: Final = 1 << 64
_GRANTS: Final = 2  # the word that counts grants
_SHARES: Final = 832  # bytes before them
_SHARE_BYTES: Final = 128
_POSITION, _USED, _WAITING, _WAITS = 64, 72, 80, 88  # bytes of a share before each


class Dimension(enum.IntEnum):
    """What is limited."""

    IOPS_TOTAL = 0
    IOPS_READ = 1
    IOPS_WRITE = 2
    BPS_TOTAL = 3
    BPS_READ = 4
    BPS_WRITE = 5

    @property
    def units(self) -> int:
        """Units of one request, or of one byte."""
        return UNITS_A_REQUEST if self < Dimension.BPS_TOTAL else 1


@dataclass(frozen=True, slots=True)
class Budget:
    """What an export may do in one dimension: requests or bytes a second; 0 for any number."""

    average: int
    burst: int = 0
    """What is allowed as long as there is credit; 0 for none."""
    length: float = 0.0
    """Seconds for which all credit that can be saved up lasts at the rate of `burst`."""

    @property
    def credit(self) -> int:
        """How much can be saved up while less than the average is done."""
        return int(max(self.burst - self.average, 0) * self.length)


@dataclass(frozen=True, slots=True)
class Line:
    """How many units may have been begun by a time; with a rate of 0, any number."""

    base: int
    since: int
    """Nanoseconds of CLOCK_MONOTONIC at which it was `base`."""
    rate: int
    """Units a second."""

    def at(self, now: int) -> int:
        """The units that may have been begun by `now`, modulo 2^64."""
        return (self.base + max(now - self.since, 0) * self.rate // SECOND) % _WRAP

    def bent(self, rate: int, now: int) -> "Line":
        """The same up to `now`, with another rate from then on."""
        return Line(self.at(now), now, rate)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a member of a group says of itself in one dimension; it may lie."""

    used: int
    """Units begun under a grant since the page was made, modulo 2^64."""
    waiting: bool
    """Whether requests wait for the grant."""
    waits: int
    """Requests that have had to, since the page was made, modulo 2^64."""


class LimitsPage:
    """The page in `memory`, PAGE_BYTES of a mapping that is shared, borrowed."""

    def __init__(self, memory: memoryview) -> None:
        # Whole words: each is loaded and stored at once, whatever the other process does.
        self._words = memory[:PAGE_BYTES].cast("B").cast("Q")

    @property
    def is_known(self) -> bool:
        """Whether the layout is the one described here."""
        return self._words[0] & (_WRAP - 1 >> 32) == LAYOUT

    def release(self) -> None:
        """Use the memory no more, so that it can be unmapped."""
        self._words.release()

    def demand(self, dimension: Dimension) -> Demand:
        """What the process has used and whether it waits."""
        at = _word_of(dimension)
        used, waiting, waits = (self._words[at + n // _WORD] for n in (_USED, _WAITING, _WAITS))
        return Demand(used, waiting != 0, waits)

    def grant(self, dimension: Dimension, line: Line) -> None:
        """Let the process begin what the line allows, until the next grant; see `first_line`."""
        at = _word_of(dimension)
        values = (line.base, line.since, line.rate, line.base ^ line.since ^ line.rate)
        for word, value in enumerate(values):
            self._words[at + word] = value
        self._words[_GRANTS] = (self._words[_GRANTS] + 1) % _WRAP

    def first_line(self, dimension: Dimension, rate: int, now: int) -> Line:
        """A line for a process that has had no grant: neither debt nor credit; then `bent`."""
        return Line(self._words[_word_of(dimension) + _POSITION // _WORD], now, rate)

    def granted(self, dimension: Dimension, now: int) -> Line | None:
        """The line that another supervisor has granted; None where there is none to go on from."""
        at = _word_of(dimension)
        base, since, rate, check = self._words[at : at + 4]
        if check != base ^ since ^ rate or rate == 0 or since > now:
            return None
        return Line(base, since, rate)

    @classmethod
    def empty(cls) -> Self:
        """A page in private memory, for tests and for what has no other."""
        page = cls(memoryview(bytearray(PAGE_BYTES)))
        page._words[0] = LAYOUT
        return page


def _word_of(dimension: Dimension) -> int:
    """The number of the first word of a dimension's share."""
    return (_SHARES + _SHARE_BYTES * dimension) // _WORD
