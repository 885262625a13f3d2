# SPDX-License-Identifier: Apache-2.0
"""An export's figures: what became of its requests, how long that took, and what it cost.

Counters only grow, over restarts and upgrades too; gauges say how it is at `time_ns`.
"""

import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Final, Literal, Self, TypeVar, get_args

import msgspec

Operation = Literal["read", "write", "flush", "discard", "write_zeroes", "other"]
"""`other`: GET_ID, and types that the device does not know."""
SizeClass = Literal["4K", "16K", "64K", "256K", "1M", "more"]
"""By the bytes of a request: the largest of a class in its name; `more` has no largest."""

OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
SIZE_CLASSES: Final[tuple[SizeClass, ...]] = get_args(SizeClass)
SIZE_BOUNDS: Final = tuple(4096 << 2 * n for n in range(len(SIZE_CLASSES) - 1))
"""In bytes, inclusive, of all classes but the last."""

LEAST_BOUND: Final = 16  # ns
BOUNDED_BUCKETS: Final = 33  # bounds from 16 ns to 2^36 ns, about 69 s, each twice the one before
BUCKETS: Final = BOUNDED_BUCKETS + 1  # and what is beyond
BOUNDS: Final = tuple(LEAST_BOUND << n for n in range(BOUNDED_BUCKETS))
"""In ns, inclusive, of all buckets but the last."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Times, as counted in buckets of which each is twice as wide as the one before."""

    buckets: tuple[int, ...] = (0,) * BUCKETS
    """How many were above the bound before and not above the bucket's own of `BOUNDS`."""
    sum_ns: int = 0

    @property
    def count(self) -> int:
        """How many times were counted."""
        return sum(self.buckets)

    @property
    def mean_ns(self) -> float:
        """The mean; 0 where nothing was counted."""
        return self.sum_ns / count if (count := self.count) else 0.0

    @property
    def max_ns(self) -> int:
        """The bound that the longest does not exceed, 0 where nothing was counted.

        Of what is beyond the last bound only that is known: the last bound.
        """
        used = [n for n, count in enumerate(self.buckets) if count]
        return BOUNDS[min(used[-1], BOUNDED_BUCKETS - 1)] if used else 0

    def quantile_ns(self, share: float) -> float:
        """The time that a `share` of all do not exceed, as if each bucket were filled evenly."""
        wanted, seen, lower = share * self.count, 0, 0
        for bound, count in zip(BOUNDS, self.buckets, strict=False):
            if count and seen + count >= wanted:
                return lower + (bound - lower) * max(wanted - seen, 0) / count
            seen, lower = seen + count, bound
        return float(BOUNDS[-1]) if self.count else 0.0

    def __add__(self, other: Self) -> Self:
        """Both as one."""
        buckets = tuple(map(operator.add, self.buckets, other.buckets))
        return type(self)(buckets, self.sum_ns + other.sum_ns)

    def since(self, earlier: Self) -> Self:
        """What was counted after `earlier`."""
        return type(self)(
            tuple(map(grown, self.buckets, earlier.buckets)), grown(self.sum_ns, earlier.sum_ns)
        )


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests that were answered, and the times that they took one after the other."""

    count: int = 0
    bytes: int = 0
    ring: Histogram = field(default_factory=Histogram)
    """From when the worker saw that the vring has more until the request was begun."""
    throttle: Histogram = field(default_factory=Histogram)
    """... until limits let it go on: almost nothing where none are set."""
    disk: Histogram = field(default_factory=Histogram)
    """... until its I/O had ended: with all that it waited for there, a sync or a buffer."""

    @property
    def total_ns(self) -> int:
        """All their times."""
        return self.ring.sum_ns + self.throttle.sum_ns + self.disk.sum_ns

    def __add__(self, other: Self) -> Self:
        """Both as one."""
        return type(self)(
            self.count + other.count,
            self.bytes + other.bytes,
            self.ring + other.ring,
            self.throttle + other.throttle,
            self.disk + other.disk,
        )

    def since(self, earlier: Self) -> Self:
        """Those that were answered after `earlier`."""
        return type(self)(
            grown(self.count, earlier.count),
            grown(self.bytes, earlier.bytes),
            self.ring.since(earlier.ring),
            self.throttle.since(earlier.throttle),
            self.disk.since(earlier.disk),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """The requests of one operation and one class of size."""

    operation: Operation
    size: SizeClass
    requests: Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Requests that were answered with an error, by kind."""

    no_space: int = 0
    """The image had no space: ENOSPC, EDQUOT."""
    io: int = 0
    """The image failed: EIO."""
    other: int = 0
    """Any other errno of the image, or its end."""
    unsupported: int = 0
    """The device does not offer it."""
    refused: int = 0
    """The guest asked for what cannot be: beyond the end, off the blocks, a write to read-only."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, kind.name) for kind in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What happened beside, counted."""

    bounced: int = 0
    """Transfers that went through a buffer of ours."""
    unaligned: int = 0
    """Requests whose buffers the image cannot take as they are."""
    merged: int = 0
    """Requests that a sync begun for another one made durable."""
    kicks: int = 0
    calls: int = 0
    sleeps: int = 0
    sleeps_spared: int = 0
    """Times that polling found something before the worker would have slept."""


Counts = TypeVar("Counts", Errors, Events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All figures of an export, over all its workers."""

    time_ns: int = 0
    """Gauge: when they were read, by CLOCK_MONOTONIC of the host."""
    began_ns: int = 0
    """Gauge: when counting began, likewise; 0 where that is not known."""
    connected: bool = False
    """Gauge: whether a front end is."""
    size: int = 0
    """Gauge: bytes that the guest is shown."""
    cells: tuple[Cell, ...] = ()
    """By operation and size; none for what was never asked."""
    errors: Errors = field(default_factory=Errors)
    events: Events = field(default_factory=Events)
    busy_ns: int = 0
    """How long requests were being carried out, by the worker that was busy longest."""
    cpu_ns: int = 0
    """CPU time of all workers."""
    in_flight: int = 0
    """Gauge: requests fetched and not answered; those throttled and held count."""
    throttled: int = 0
    """Gauge: of those in flight, which wait for limits."""
    held: int = 0
    """Gauge: of those in flight, which the error policy holds."""
    oldest_ns: int = 0
    """Gauge: how long ago the oldest in flight was fetched; 0 without one."""

    @property
    def weighted_ns(self) -> int:
        """The time of all requests that were answered, each one's own from ring to disk."""
        return sum(cell.requests.total_ns for cell in self.cells)

    @property
    def throttled_ns(self) -> int:
        """How long all requests that were answered have waited for limits."""
        return sum(cell.requests.throttle.sum_ns for cell in self.cells)

    def of(self, operation: Operation) -> Requests:
        """The requests of one operation, whatever their size."""
        return all_of(cell.requests for cell in self.cells if cell.operation == operation)

    @property
    def total(self) -> Requests:
        """All requests."""
        return all_of(cell.requests for cell in self.cells)

    def since(self, earlier: Self) -> Self:
        """What happened after `earlier`: counters less those of then, gauges as they are now.

        `time_ns` is the time between both.
        """
        before = {(cell.operation, cell.size): cell.requests for cell in earlier.cells}
        cells = (
            Cell(cell.operation, cell.size, cell.requests.since(earlier_requests))
            for cell in self.cells
            # Of most nothing was asked meanwhile.
            if cell.requests
            != (earlier_requests := before.get((cell.operation, cell.size), Requests()))
        )
        return replace(
            self,
            time_ns=grown(self.time_ns, earlier.time_ns),
            cells=tuple(cell for cell in cells if cell.requests.count),
            errors=counted_since(self.errors, earlier.errors),
            events=counted_since(self.events, earlier.events),
            busy_ns=grown(self.busy_ns, earlier.busy_ns),
            cpu_ns=grown(self.cpu_ns, earlier.cpu_ns),
        )

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Those of several exports, or workers, as one.

        The oldest is the oldest of all, and the busiest is the busiest.
        """
        found = list(parts)
        cells: defaultdict[tuple[Operation, SizeClass], list[Requests]] = defaultdict(list)
        for part in found:
            for cell in part.cells:
                cells[cell.operation, cell.size].append(cell.requests)
        ordered = sorted(cells, key=place_of)
        return cls(
            time_ns=max((part.time_ns for part in found), default=0),
            began_ns=min((part.began_ns for part in found if part.began_ns), default=0),
            connected=any(part.connected for part in found),
            size=sum(part.size for part in found),
            cells=tuple(Cell(*kind, all_of(cells[kind])) for kind in ordered),
            errors=counted_together((part.errors for part in found), Errors()),
            events=counted_together((part.events for part in found), Events()),
            busy_ns=max((part.busy_ns for part in found), default=0),
            cpu_ns=sum(part.cpu_ns for part in found),
            in_flight=sum(part.in_flight for part in found),
            throttled=sum(part.throttled for part in found),
            held=sum(part.held for part in found),
            oldest_ns=max((part.oldest_ns for part in found), default=0),
        )


@dataclass(frozen=True, slots=True)
class NamedFigures:
    """The figures of one of a daemon's exports."""

    name: str
    figures: Figures | None
    """None where it has none: a device of another kind, or never started."""


def place_of(kind: tuple[Operation, SizeClass]) -> tuple[int, int]:
    """Where a cell stands among all."""
    operation, size = kind
    return OPERATIONS.index(operation), SIZE_CLASSES.index(size)


def all_of(parts: Iterable[Requests]) -> Requests:
    """All of them as one."""
    first, *others = [*parts] or [Requests()]
    return sum(others, start=first)


def grown(now: int, before: int) -> int:
    """How much a counter has grown; one that is less than before began anew."""
    return now - before if now >= before else now


def counted_since(now: Counts, before: Counts) -> Counts:
    """What was counted after `before`, field by field."""
    return replace(
        now,
        **{f.name: grown(getattr(now, f.name), getattr(before, f.name)) for f in fields(now)},
    )


def counted_together(parts: Iterable[Counts], start: Counts) -> Counts:
    """The sums of all, field by field."""
    together = start
    for part in parts:
        together = replace(
            together,
            **{f.name: getattr(together, f.name) + getattr(part, f.name) for f in fields(part)},
        )
    return together


def encode(figures: Figures) -> bytes:
    """Figures as JSON."""
    return msgspec.json.encode(figures)


def decode(text: bytes) -> Figures:
    """Figures from JSON.

    Raises:
        msgspec.ValidationError: They are none.
    """
    return msgspec.json.decode(text, type=Figures)
