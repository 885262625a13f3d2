# SPDX-License-Identifier: Apache-2.0
"""All exports as a table of what they do: rows from figures, and their order.

`blkd top` draws it on a terminal, the dashboard in a browser.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from blkd.statistics.figures import Figures
from blkd.statistics.rates import rates

Order = Literal[
    "name",
    "state",
    "iops",
    "read_bytes",
    "write_bytes",
    "p50",
    "p99",
    "longest",
    "queue_depth",
    "oldest",
    "throttled",
    "cpu_us",
    "errors",
]
"""By which value of a row rows can be ordered."""
ORDERS: Final[tuple[Order, ...]] = get_args(Order)


@dataclass(frozen=True, slots=True)
class Sample:
    """An export at one moment."""

    name: str
    state: str
    reason: str | None = None
    """Why it is in this state, where that is bad."""
    figures: Figures | None = None
    """None of a device that has none, or where they could not be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An export over an interval; what is measured is None where that is not known.

    Nor is what requests are like known where there were none.

    Rates are a second, times in seconds, sizes in bytes, shares from 0 to 1.
    """

    name: str
    state: str
    reason: str | None = None
    iops: float | None = None
    read_iops: float | None = None
    write_iops: float | None = None
    read_bytes: float | None = None
    write_bytes: float | None = None
    p50: float | None = None
    p99: float | None = None
    longest: float | None = None
    queue_depth: float | None = None
    """The mean; `in_flight` is that of the moment."""
    in_flight: int | None = None
    oldest: float | None = None
    throttled: float | None = None
    """The share of the requests' time that they waited for limits."""
    held: int | None = None
    cpu_us: float | None = None
    """CPU time of a request in microseconds."""
    errors: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked, nor is in flight."""
        return not self.iops and not self.in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All exports together."""

    states: Mapping[str, int]
    """How many are in each state; most first."""
    iops: float
    read_bytes: float
    write_bytes: float
    in_flight: int
    p99: float | None
    """The worst of all, as `oldest` is; None without any requests."""
    oldest: float
    errors: float


def rows(before: Mapping[str, Figures], now: Iterable[Sample]) -> list[Row]:
    """A row of each export that is there `now`, with what it did since `before`."""
    return [_row(each, before.get(each.name)) for each in now]


def known_figures(observed: Iterable[Sample]) -> dict[str, Figures]:
    """The figures by name, for the rows of the next interval."""
    return {each.name: each.figures for each in observed if each.figures is not None}


def _row(observed: Sample, before: Figures | None) -> Row:
    now = observed.figures
    found = rates(now, before) if now is not None and before is not None else None
    if found is None:
        return Row(name=observed.name, state=observed.state, reason=observed.reason)
    return Row(
        name=observed.name,
        state="held" if found.held and observed.state == "serving" else observed.state,
        reason=observed.reason,
        iops=found.iops,
        read_iops=found.read.per_second,
        write_iops=found.write.per_second,
        read_bytes=found.read.bytes_per_second,
        write_bytes=found.write.bytes_per_second,
        p50=found.p50,
        p99=found.p99,
        longest=found.longest,
        queue_depth=found.queue_depth,
        in_flight=found.in_flight,
        oldest=found.oldest,
        throttled=found.throttled,
        held=found.held,
        cpu_us=found.cpu_us,
        errors=found.errors,
    )


def ordered(table: Iterable[Row], by: Order, *, descending: bool) -> list[Row]:
    """The rows by one of their values, those of equal ones by name; unknown ones are the last."""
    by_name = sorted(table, key=lambda row: row.name)
    known = [row for row in by_name if getattr(row, by) is not None]
    known.sort(key=lambda row: getattr(row, by), reverse=descending)
    return known + [row for row in by_name if getattr(row, by) is None]


def chosen(table: Iterable[Row], words: str, *, with_idle: bool = True) -> list[Row]:
    """The rows in whose name `words` are, or whose state begins so, in capitals or not."""
    wanted = words.casefold()
    return [
        row
        for row in table
        if (with_idle or not row.is_idle)
        and (wanted in row.name.casefold() or row.state.startswith(wanted))
    ]


def summary(table: Sequence[Row]) -> Summary:
    """All of a table in one."""
    states = Counter(row.state for row in table)
    return Summary(
        states=dict(states.most_common()),
        iops=_sum(row.iops for row in table),
        read_bytes=_sum(row.read_bytes for row in table),
        write_bytes=_sum(row.write_bytes for row in table),
        in_flight=sum(row.in_flight or 0 for row in table),
        p99=max((row.p99 for row in table if row.p99 is not None), default=None),
        oldest=max((row.oldest or 0.0 for row in table), default=0.0),
        errors=_sum(row.errors for row in table),
    )


def _sum(values: Iterable[float | None]) -> float:
    return sum(value or 0.0 for value in values)
