# SPDX-License-Identifier: Apache-2.0
"""The middle of some rounds, how far they reach, and ratios within a round.  Pure."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Spread:
    """What was seen in a number of rounds."""

    median: float
    low: float
    """The least of them, not a quantile: there are few rounds."""
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of one value a round, at least one."""
        seen = sorted(values)
        if not seen:
            raise ValueError("no rounds to take the median of")
        return cls(statistics.median(seen), seen[0], seen[-1], len(seen))

    def times(self, factor: float) -> "Spread":
        """The same in another unit; `factor` is positive."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.rounds)


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours by theirs, for each round in which both were seen and theirs was not 0.

    The machine's speed drifts from minute to minute: only what ran in the same round is compared.
    """
    return [value / theirs[n] for n, value in sorted(ours.items()) if theirs.get(n)]
