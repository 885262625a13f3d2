# SPDX-License-Identifier: Apache-2.0
"""Latencies as counted in buckets: what can be said of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

BUCKET_BITS: Final = 7  # SUB_BITS of loadgen/histogram.pxd: 128 buckets a power of two
BUCKET_ERROR: Final = 1 / (1 << BUCKET_BITS)
"""How far a reported percentile may exceed the true one: a bucket's relative width."""

WHOLE: Final = 10_000
PERCENTILES: Final = {  # in hundredths of a percent, so that nothing is rounded
    "p50": 50_00,
    "p90": 90_00,
    "p95": 95_00,
    "p99": 99_00,
    "p99_9": 99_90,
    "p99_99": 99_99,
}


@dataclass(frozen=True, slots=True)
class Counted:
    """Latencies of one kind of request, in ns."""

    count: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    buckets: dict[int, int] = field(default_factory=dict)
    """The lowest value of each bucket in use, and how many fell into it."""

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """All of them as one."""
        used = [part for part in parts if part.count]
        if not used:
            return cls()
        buckets: Counter[int] = Counter()
        for part in used:
            buckets.update(part.buckets)
        return cls(
            sum(part.count for part in used),
            sum(part.total for part in used),
            min(part.least for part in used),
            max(part.most for part in used),
            dict(buckets),
        )

    def percentile(self, share: int) -> int:
        """The latency with a `share` of WHOLE at or below it, at most BUCKET_ERROR too large."""
        wanted = max(1, -(-self.count * share // WHOLE))
        seen = 0
        for lowest in sorted(self.buckets):
            seen += self.buckets[lowest]
            if seen >= wanted:
                return min(max(highest(lowest), self.least), self.most)
        return self.most


def highest(lowest: int) -> int:
    """The largest value of the bucket that begins at `lowest`."""
    width = 1 << max(lowest.bit_length() - BUCKET_BITS - 1, 0)
    return lowest + width - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latencies in ns; all 0 where there were none."""

    mean: float
    min: int
    max: int
    p50: int
    p90: int
    p95: int
    p99: int
    p99_9: int
    p99_99: int

    @classmethod
    def of(cls, counted: Counted) -> Self:
        """A summary."""
        return cls(
            mean=round(counted.total / counted.count, 1) if counted.count else 0.0,
            min=counted.least,
            max=counted.most,
            **{name: counted.percentile(share) for name, share in PERCENTILES.items()},
        )
