# SPDX-License-Identifier: Apache-2.0
"""What two exports of one group carry that both need all: `python -m compare.groups`.

blkd has them as members of a group of its daemon, qemu-storage-daemon behind one throttle group.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from compare.limits import NULL, Load, carried, seen_by, throttled_by_qsd
from compare.results import Shared
from harness.host import HostDaemon
from harness.markdown import table

EVEN: Final = 0.02
"""How far a share may be off: 50 % by so many points."""
BY_WEIGHT: Final = 0.03
"""How far the ratio of two may be off, as a part of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A group of two, and their loads."""

    iops: int
    """What the group has."""
    depths: tuple[int, int]
    weights: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        """What it is called in the table."""
        depths = " and ".join(map(str, self.depths))
        weights = "" if self.weights == (1, 1) else f", weights {self.weights[0]} : 1"
        return f"{self.iops} IOPS, depths {depths}{weights}"


CASES: Final = (
    Case(2000, (32, 32)),
    Case(2000, (32, 1)),
    Case(10_000, (32, 1)),
    Case(2000, (32, 32), (3, 1)),
    Case(2000, (1, 32), (3, 1)),
)


@contextlib.asynccontextmanager
async def of_blkd(case: Case) -> AsyncIterator[Sequence[Path]]:
    """The sockets of two exports of a daemon in one group."""
    with (
        tempfile.TemporaryDirectory(prefix="blkd-bench-") as folder,
        HostDaemon(Path(folder)) as host,
    ):
        await asyncio.to_thread(host.ready)
        host.call("POST", "/v1/groups", {"name": "both", "limits": {"iops": case.iops}})
        views = [
            host.add(f"disk{at}", NULL, group="both", weight=weight)
            for at, weight in enumerate(case.weights)
        ]
        yield [Path(view["sockets"][0]) for view in views]


async def shared(
    sockets: Sequence[Path], depths: tuple[int, int], runtime: float
) -> tuple[float, float]:
    """The requests a second that each of two has carried, loaded at the same time."""
    loads = zip(sockets, map(Load, depths), strict=True)
    first, second = await asyncio.gather(*(carried(*load, runtime) for load in loads))
    return first.iops, second.iops


async def measure(runtime: float) -> list[Shared]:
    """Each case, one after the other.  Raises BlkdError."""
    seen = []
    for case in CASES:
        async with of_blkd(case) as sockets:
            ours = await shared(sockets, case.depths, runtime)
        theirs = None
        if case.weights == (1, 1):  # a throttle group knows no weights
            async with throttled_by_qsd(f"x-iops-total={case.iops}", 2) as sockets:
                theirs = await shared(sockets, case.depths, runtime)
        seen.append(Shared(case.name, ours, theirs))
    return seen


def missed(case: Case, carried: tuple[float, float]) -> bool:
    """Whether the shares are not what they are to be."""
    first, second = carried
    if case.weights == (1, 1):
        return abs(first / (first + second) - 0.5) > EVEN
    ratio = case.weights[0] / case.weights[1]
    return abs(first / second / ratio - 1) > BY_WEIGHT


def shared_table(seen: Iterable[Shared]) -> str:
    """What each of two has carried."""
    rows = [
        [found.case, shown(found.blkd), "-" if found.qsd is None else shown(found.qsd)]
        for found in seen
    ]
    return table(["Group", "blkd, first and second", "qemu-storage-daemon"], rows)


def shown(figures: tuple[float, float]) -> str:
    """Two figures and the first one's share."""
    first, second = figures
    return f"{first:.0f} and {second:.0f} ({first / (first + second):.1%})"


@click.command()
@click.option("--runtime", type=float, default=10.0, show_default=True, help="Seconds of a load.")
def main(runtime: float) -> None:
    """Print what each of two exports of a group has carried; the exit status is 1 off the goals."""
    seen = seen_by(measure(runtime))
    click.echo(shared_table(seen))
    sys.exit(any(missed(case, found.blkd) for case, found in zip(CASES, seen, strict=True)))


if __name__ == "__main__":
    main()
