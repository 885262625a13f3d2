# SPDX-License-Identifier: Apache-2.0
"""What an export does in a second, from the figures at the two ends of an interval."""

from dataclasses import dataclass, field
from typing import Final

from blkd.statistics.figures import Figures, Histogram, Requests

NS: Final = 1_000_000_000  # in a second
NS_IN_US: Final = 1000
MEDIAN: Final = 0.5
TAIL: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRates:
    """The requests of one operation that were answered."""

    per_second: float = 0.0
    bytes_per_second: float = 0.0
    mean_seconds: float = 0.0
    """That each took, from ring to disk; 0 without any."""
    mean_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """An export over an interval; all but the last three are of requests that were answered."""

    seconds: float
    """The interval."""
    iops: float
    """All requests a second, of whatever operation."""
    read: OperationRates = field(default_factory=OperationRates)
    write: OperationRates = field(default_factory=OperationRates)
    discard: OperationRates = field(default_factory=OperationRates)
    """With those that write zeroes: neither moves data."""
    flush: OperationRates = field(default_factory=OperationRates)
    p50: float | None = None
    """Seconds from ring to disk: the medians of what a request waits for, added up.

    Like all that is said of requests, None where there were none.
    """
    p99: float | None = None
    """Likewise: a little too much where the slowest in one are not the slowest in the next."""
    longest: float | None = None
    """Seconds that none has exceeded."""
    queue_depth: float = 0.0
    """How many were in flight, on average."""
    utilisation: float = 0.0
    """The share of the interval in which any were, from 0 to 1."""
    throttled: float | None = None
    """The share of their time that they waited for limits, from 0 to 1."""
    cpu_us: float | None = None
    """Microseconds of CPU time that each cost."""
    errors: float = 0.0
    """Answered with an error, a second."""
    in_flight: int = 0
    """At the end of the interval."""
    oldest: float = 0.0
    """Seconds that the oldest of those has been in flight."""
    held: int = 0
    """Of those, held by the error policy."""


def rates(now: Figures, before: Figures) -> Rates | None:
    """What was done from `before` to `now`; None where no time lies between the two."""
    if now.time_ns <= before.time_ns:
        return None
    grown = now.since(before)
    seconds = grown.time_ns / NS
    total = grown.total
    return Rates(
        seconds=seconds,
        iops=total.count / seconds,
        read=_of_operation(grown.of("read"), seconds),
        write=_of_operation(grown.of("write"), seconds),
        discard=_of_operation(grown.of("discard") + grown.of("write_zeroes"), seconds),
        flush=_of_operation(grown.of("flush"), seconds),
        p50=_quantile(total, MEDIAN),
        p99=_quantile(total, TAIL),
        longest=_longest(total),
        queue_depth=total.total_ns / grown.time_ns,
        utilisation=min(grown.busy_ns / grown.time_ns, 1.0),
        throttled=total.throttle.sum_ns / total.total_ns if total.total_ns else None,
        cpu_us=grown.cpu_ns / NS_IN_US / total.count if total.count else None,
        errors=grown.errors.total / seconds,
        in_flight=now.in_flight,
        oldest=now.oldest_ns / NS,
        held=now.held,
    )


def _of_operation(requests: Requests, seconds: float) -> OperationRates:
    count = requests.count
    return OperationRates(
        per_second=count / seconds,
        bytes_per_second=requests.bytes / seconds,
        mean_seconds=requests.total_ns / count / NS if count else 0.0,
        mean_bytes=requests.bytes / count if count else 0.0,
    )


def _quantile(requests: Requests, share: float) -> float | None:
    """Seconds that a `share` of the requests do not exceed in ring, throttle and disk together.

    Which of the times in one histogram belongs to which in the next is not known: the slowest in
    one are taken to be the slowest in all.
    """
    if not requests.count:
        return None
    return sum(each.quantile_ns(share) for each in _parts(requests)) / NS


def _longest(requests: Requests) -> float | None:
    return sum(each.max_ns for each in _parts(requests)) / NS if requests.count else None


def _parts(requests: Requests) -> tuple[Histogram, ...]:
    return requests.ring, requests.throttle, requests.disk
