# SPDX-License-Identifier: Apache-2.0
"""Exports that exist in memory only, with figures as if they did what a test says."""

from dataclasses import dataclass, field, replace

from blkd.control.daemon_models import ExportSummary
from blkd.daemon.observed import Observed
from blkd.statistics.figures import BOUNDS, BUCKETS, Cell, Errors, Figures, Histogram, Requests

STEP = 10**9  # ns between two looks


@dataclass(frozen=True)
class Doing:
    """What an export does between two looks."""

    state: str = "serving"
    reason: str | None = None
    reads: int = 0
    writes: int = 0
    size: int = 4096
    latency: float = 100e-6
    """In seconds; half of that at the median."""
    throttle: float = 0.0
    errors: int = 0
    in_flight: int = 0
    oldest: float = 0.0
    held: int = 0


@dataclass
class DoingExports:
    """Plays that part of `Exports` which is watched: each look, one step more was done."""

    doing: dict[str, Doing] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    looks: int = 0

    def list(self):
        return [
            ExportSummary(
                name=name, device="blk", wanted="serving", state=doing.state, reason=doing.reason
            )
            for name, doing in sorted(self.doing.items())
        ]

    def look(self):
        """The figures of all, after a step more."""
        self.looks += 1
        self.figures = {
            name: _after(self.figures.get(name, Figures()), doing, self.looks)
            for name, doing in self.doing.items()
        }
        return self.figures

    async def observe(self):
        figures = self.look()
        return [
            Observed(
                name=name,
                device="blk",
                wanted="serving",
                state=doing.state,
                figures=figures[name],
            )
            for name, doing in sorted(self.doing.items())
        ]


def _after(before, doing, look):
    """The figures once a step more was done."""
    count = doing.reads + doing.writes
    done = Figures(
        cells=(
            Cell("read", "4K", _requests(doing.reads, doing)),
            Cell("write", "4K", _requests(doing.writes, doing)),
        ),
        errors=Errors(io=doing.errors),
        cpu_ns=count * 4000,
        busy_ns=STEP if count else 0,
    )
    return replace(
        Figures.sum([before, done]),
        time_ns=look * STEP,
        in_flight=doing.in_flight,
        oldest_ns=int(doing.oldest * 1e9),
        held=doing.held,
    )


def _requests(count, doing):
    slow = count // 20
    disk = _times((count - slow, doing.latency / 2), (slow, doing.latency))
    return Requests(
        count,
        count * doing.size,
        _times((count, 400e-9)),
        _times((count, doing.throttle)),
        disk,
    )


def _times(*kinds):
    """A histogram of so many times of so many seconds."""
    buckets = [0] * BUCKETS
    for count, seconds in kinds:
        buckets[next(n for n, bound in enumerate(BOUNDS) if seconds * 1e9 <= bound)] += count
    return Histogram(tuple(buckets), round(sum(count * seconds * 1e9 for count, seconds in kinds)))
