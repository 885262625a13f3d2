# SPDX-License-Identifier: Apache-2.0
"""What an IOMMU with passthrough costs a guest's disk: `python -m compare.iommu --help`.

One guest has two disks of the same kind, one behind its IOMMU and one not, and fio loads one after
the other, again and again; each goes first every other time.
"""

import asyncio
import contextlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import click

from blkd.errors import BlkdError
from compare.cases import BLKD, CLIENT_CPUS, TARGET_CPUS, Backing, Case
from compare.guest import CPUS, on_processor, run_load
from compare.load import Which
from compare.results import Sample
from compare.targets import serving
from harness.guest import Disk, Iommu, Machine

IMAGE: Final = "null:64M"
CASES: Final = tuple(
    Case(Backing.NULL, rw, 4096, depth, (BLKD,))
    for rw, depth in (("randread", 1), ("randread", 32))
)
LEAST: Final = 0.95
"""Requests a second, of those without an IOMMU."""


@dataclass(frozen=True, slots=True)
class Both:
    """A round of one load: what the disk without and the one with an IOMMU carried."""

    plain: Sample
    translated: Sample

    @property
    def ratio(self) -> float:
        """Requests a second with an IOMMU, by those without."""
        return self.translated.iops / self.plain.iops


async def measure(rounds: int, runtime: float) -> dict[str, list[Both]]:
    """All rounds of each load, by the loads' names.  Raises BlkdError."""
    machine = await Machine.prepare()
    seen: dict[str, list[Both]] = {case.key: [] for case in CASES}
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(on_processor(int(CLIENT_CPUS)))
        plain, translated = [
            await stack.enter_async_context(serving(BLKD, IMAGE, cpus=TARGET_CPUS))
            for _ in range(2)
        ]
        disks = (
            Disk(plain.socket, queues=1),
            Disk(translated.socket, queues=1, translated=True),
        )
        guest = await stack.enter_async_context(
            machine.boot(*disks, cpus=CPUS, iommu=Iommu.PASSTHROUGH)
        )
        ends = (("/dev/vda", plain), ("/dev/vdb", translated))
        for number in range(rounds):
            for case in CASES:
                which = Which(case, BLKD, number)
                order = ends if number % 2 == 0 else ends[::-1]
                found = {
                    disk: await run_load(guest, of, which, disk, runtime) for disk, of in order
                }
                seen[case.key].append(Both(found["/dev/vda"], found["/dev/vdb"]))
    return seen


def row(name: str, found: list[Both]) -> str:
    """What was seen of one load."""
    ratios = [both.ratio for both in found]
    plain, translated = [both.plain for both in found], [both.translated for both in found]
    iops, cpu = ([median(some, what) for some in (plain, translated)] for what in (iops_of, cpu_of))
    return (
        f"{name}: {iops[0]:.0f} and {iops[1]:.0f} requests a second,"
        f" {cpu[0]:.2f} and {cpu[1]:.2f} us of CPU a request;"
        f" ratio {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}"
    )


def median(samples: list[Sample], what: Callable[[Sample], float]) -> float:
    """Of one figure, over all rounds."""
    return statistics.median(map(what, samples))


def iops_of(sample: Sample) -> float:
    """Requests a second."""
    return sample.iops


def cpu_of(sample: Sample) -> float:
    """Processor time of the back end, us a request."""
    return sample.cpu_us or 0.0


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=8, show_default=True)
@click.option("--runtime", type=float, default=4.0, show_default=True, help="Seconds of a load.")
def main(rounds: int, runtime: float) -> None:
    """Print what a disk carried without and with an IOMMU in passthrough mode.

    The exit status is 1 if the IOMMU cost more than a twentieth.
    """
    try:
        seen = asyncio.run(measure(rounds, runtime))
    except BlkdError as error:
        raise click.ClickException(str(error)) from error
    for name, found in seen.items():
        click.echo(row(name, found))
    sys.exit(any(statistics.median(b.ratio for b in found) < LEAST for found in seen.values()))


if __name__ == "__main__":
    main()
