# SPDX-License-Identifier: Apache-2.0
"""What blkd is to reach, and whether it did.  Pure."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from compare import reference
from compare.cases import Family
from compare.measurements import (
    Measurements,
    Metric,
    Versus,
    bandwidth,
    cpu,
    iops,
    p50,
    spread_of,
)
from compare.results import Footprint
from compare.stats import Spread, ratios

NULL_NOISE: Final = 1.5
"""Two runs of the same on a null image were seen to differ by as much."""
NOISE: Final = 1.2
"""Likewise, on files."""
EXACT: Final = 1.0
"""Of what does not depend on the machine's speed."""
GIB: Final = 1 << 30
KIB_PER_MIB: Final = 1024
BLKD, NO_POLL, LIBAIO, URING = "blkd", "blkd-nopoll", "fio-libaio", "fio-io_uring"


NULL_ONE: Final = "null-randread-4k-qd1"
LARGE: Final = "tmpfs-read-128k-qd32"
DISK_DEEP: Final = "ext4-randread-4k-qd32"
DISK_ONE: Final = "ext4-randread-4k-qd1"


class Verdict(enum.StrEnum):
    """What came of a goal."""

    MET = "met"
    NOISE = "within noise"
    """No better than the goal, but the difference is within what chance makes."""
    MISSED = "**missed**"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a value is to reach, or not to exceed."""

    value: float
    at_least: bool
    unit: str = "×"

    def verdict(self, seen: Spread | None, noise: float) -> Verdict:
        """Of the median; a ratio between 1 / `noise` and `noise` is as good as 1.

        That helps only where about 1 is asked for: a limit beyond noise is to be reached.
        """
        if seen is None:
            return Verdict.UNKNOWN
        if self._holds(seen.median):
            return Verdict.MET
        alike = all(1 / noise < value < noise for value in (seen.median, self.value))
        return Verdict.NOISE if alike else Verdict.MISSED

    def _holds(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value


def at_least(value: float, unit: str = "×") -> Limit:
    """Let it be so much or more."""
    return Limit(value, at_least=True, unit=unit)


def at_most(value: float, unit: str = "×") -> Limit:
    """Let it be so much or less."""
    return Limit(value, at_least=False, unit=unit)


Measure = Callable[[Measurements], Versus | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One figure that a goal asks for."""

    what: str
    limit: Limit
    noise: float
    measure: Measure


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached, in one or more figures."""

    key: str
    """By which compare/remarks.toml may explain it."""
    title: str
    checks: tuple[Check, ...]


def against(case: str, theirs: Family | str, metric: Metric, ours: str = BLKD) -> Measure:
    """Ours by one other, or by the best of a family."""
    return lambda seen: seen.ratio(case, ours, _chosen(seen, case, theirs, metric), metric)


def against_spdk(case: str, theirs: Family | str, *, yardstick: str, spdk: str) -> Measure:
    """Ours by a yardstick here, over SPDK by the same yardstick on the machine that had it."""
    there = reference.advantage(case, spdk, yardstick)

    def measure(seen: Measurements) -> Versus | None:
        here = seen.ratio(case, BLKD, _chosen(seen, case, theirs, iops), iops)
        if here is None:
            return None
        return Versus(here.spread.times(1 / there), f"SPDK, by way of {here.against}")

    return measure


def _chosen(seen: Measurements, case: str, theirs: Family | str, metric: Metric) -> str | None:
    return seen.best(case, theirs, metric) if isinstance(theirs, Family) else theirs


def alone(case: str, metric: Metric, factor: float = 1.0) -> Measure:
    """Ours as it is, times `factor`."""

    def measure(seen: Measurements) -> Versus | None:
        spread = seen.spread(case, BLKD, metric)
        return Versus(spread.times(factor)) if spread else None

    return measure


def of_one_queue(queues: int) -> Measure:
    """All queues together, by what one carries."""
    one, more = (f"null-randread-4k-qd32-{n}q" for n in (1, queues))

    def measure(seen: Measurements) -> Versus | None:
        found = ratios(seen.of(more, BLKD, iops), seen.of(one, BLKD, iops))
        return Versus(Spread.of(found), "blkd, 1 queue") if found else None

    return measure


def worst_idle(value: Callable[[Footprint], float]) -> Measure:
    """The largest value of any idle export, however large image and guest are."""
    return lambda seen: spread_of(sorted(map(value, seen.footprints(BLKD)))[-1:])


def rss_range(seen: Measurements) -> Versus | None:
    """By how many MiB exports of different images and guests differ."""
    sizes = [footprint.rss_kib / KIB_PER_MIB for footprint in seen.footprints(BLKD)]
    return spread_of([max(sizes) - min(sizes)] if sizes else [])


def _null_deep(depth: int) -> tuple[Check, ...]:
    case = f"null-randread-4k-qd{depth}"
    faster, cheap = at_least(1.5), at_most(0.20, "µs")
    return (
        Check(f"QD{depth}, IOPS", faster, NULL_NOISE, against(case, Family.QSD, iops)),
        Check(f"QD{depth}, CPU of a request", cheap, EXACT, alone(case, cpu)),
    )


def _tmpfs(depth: int, *fio: tuple[str, str]) -> tuple[Check, ...]:
    case, par = f"tmpfs-randread-4k-qd{depth}", at_least(0.95)
    yardsticks = ((Family.QSD, reference.QSD), *fio)
    return (
        Check(f"QD{depth}, IOPS", at_least(2.0), NOISE, against(case, Family.QSD, iops)),
        *(
            Check(
                *(f"QD{depth}, IOPS", par, NOISE),
                against_spdk(case, theirs, yardstick=yardstick, spdk=reference.SPDK),
            )
            for theirs, yardstick in yardsticks
        ),
    )


def _disk_one(how: str, ours: str) -> tuple[Check, ...]:
    return (
        Check(
            *(f"CPU of a request, {how}", at_most(0.7), NOISE),
            against(DISK_ONE, Family.QSD, cpu, ours),
        ),
        Check(
            *(f"median latency, {how}", at_most(1.0), NOISE),
            against(DISK_ONE, Family.QSD, p50, ours),
        ),
    )


def _guest(depth: int) -> tuple[Check, ...]:
    case, least, most = f"guest-tmpfs-randread-4k-qd{depth}", at_least(1.0), at_most(1.0)
    return (
        Check(f"QD{depth}, IOPS", least, NOISE, against(case, Family.QSD, iops)),
        Check(f"QD{depth}, median latency", most, NOISE, against(case, Family.QSD, p50)),
    )


GOALS: Final = (
    Goal(
        "null-deep",
        "Null image, no dedicated core: at least 1.5 × QSD, at most 0.20 µs CPU a request",
        (*_null_deep(32), *_null_deep(128)),
    ),
    Goal(
        "null-one",
        "Null image, QD1, adaptive polling: at least 5 × QSD, within 1.2 × of SPDK",
        (
            Check("IOPS", at_least(5.0), NULL_NOISE, against(NULL_ONE, Family.QSD, iops)),
            Check(
                *("IOPS", at_least(1 / 1.2), NULL_NOISE),
                against_spdk(
                    NULL_ONE, Family.QSD, yardstick=reference.QSD, spdk=reference.SPDK_POLLS
                ),
            ),
        ),
    ),
    Goal(
        "tmpfs",
        "tmpfs file: at least 2 × QSD's best, at least 0.95 × SPDK's best",
        (
            *_tmpfs(1, ("fio-psync", "fio psync")),
            *_tmpfs(32, (LIBAIO, "fio libaio")),
            *_tmpfs(128),
        ),
    ),
    Goal(
        "large",
        "tmpfs file, 128 KiB sequential read, QD32: at least 0.95 × SPDK's best",
        (
            Check(
                *("bandwidth, SPDK's on another machine", at_least(0.95 * 4.8, "GiB/s"), EXACT),
                alone(LARGE, bandwidth, 1 / GIB),
            ),
            Check("bandwidth", at_least(0.95), NOISE, against(LARGE, Family.FIO, bandwidth)),
        ),
    ),
    Goal(
        "disk-deep",
        "ext4 file, QD32: CPU of a request at most 0.5 × QSD, within 1.3 × of fio alone",
        (
            Check("CPU of a request", at_most(0.5), NOISE, against(DISK_DEEP, Family.QSD, cpu)),
            Check("CPU of a request", at_most(1.3), NOISE, against(DISK_DEEP, URING, cpu)),
        ),
    ),
    Goal(
        "disk-one",
        "ext4 file, QD1, no polling: CPU of a request at most 0.7 × QSD, latency not above it",
        (
            *_disk_one("no polling", NO_POLL),
            *_disk_one("as it comes", BLKD),
        ),
    ),
    Goal(
        "queues",
        "Null image, two processors for all: more queues carry no less than one",
        tuple(
            Check(f"{n} queues, IOPS of all", at_least(1.0), NULL_NOISE, of_one_queue(n))
            for n in (2, 4)
        ),
    ),
    Goal(
        "idle",
        "Idle export: no wake-up, no CPU",
        (
            Check("wake-ups", at_most(0, "/s"), EXACT, worst_idle(lambda seen: seen.wakeups)),
            Check("CPU", at_most(0, "µs/s"), EXACT, worst_idle(lambda seen: seen.cpu_us)),
        ),
    ),
    Goal(
        "guest",
        "fio in a guest: IOPS and latency no worse than with QSD",
        (*_guest(1), *_guest(32)),
    ),
    Goal(
        "memory",
        "Resident memory of an export: under 40 MiB, whatever image and guest",
        (
            Check(
                *("resident", at_most(40, "MiB"), EXACT),
                worst_idle(lambda seen: seen.rss_kib / KIB_PER_MIB),
            ),
            Check("largest less smallest", at_most(1, "MiB"), EXACT, rss_range),
        ),
    ),
)
