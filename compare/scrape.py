# SPDX-License-Identifier: Apache-2.0
"""What a scrape of many disks in full use takes of a daemon: `python -m compare.scrape --help`.

The disks are statistics areas in this process, in which counters of workers stand as those of disks
whose guests read, write and flush; the rest is what the daemon does at `/metrics`.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from blkd.control.daemon_models import GroupView
from blkd.daemon.api.exposition import Exposition
from blkd.daemon.observed import Described, Observed
from blkd.statistics import area_layout as at
from blkd.statistics.area import Area
from blkd.statistics.figures import BUCKETS, OPERATIONS, SIZE_CLASSES, place_of
from harness.markdown import table

WORKERS: Final = 2
PAGE: Final = 4096  # bytes of each request
MOST_COUNTED: Final = 1_000_000
TICK: Final = 0.001  # seconds
MILLI: Final = 1000
MIB: Final = 1 << 20


class Disks:
    """Plays as much of `Exports` as metrics are made from."""

    def __init__(self, count: int) -> None:
        self._areas = {f"vm-{number}": _in_use(number) for number in range(count)}
        self.groups = self

    def list(self) -> Sequence[GroupView]:
        """No groups."""
        return ()

    async def observe(self) -> Sequence[Observed]:
        """All disks, as the supervisor does it."""
        found = []
        for name, area in self._areas.items():
            found.append(
                Observed(
                    name=name,
                    device="blk",
                    wanted="serving",
                    state="serving",
                    image=f"/var/lib/blkd/images/{name}.img",
                    described=Described(serial=name, engine="uring", cache="none"),
                    figures=area.figures(),
                )
            )
            await asyncio.sleep(0)
        return found


def _in_use(seed: int) -> Area:
    """An area whose workers have counted reads and writes of all sizes, and flushes."""
    numbers, area = random.Random(seed), Area.make()  # noqa: S311 - no secret
    area.use_slots(WORKERS)
    cells = [
        place_of((operation, size))
        for operation in OPERATIONS[:3]
        for size in (SIZE_CLASSES[:1] if operation == "flush" else SIZE_CLASSES)
    ]
    for worker in range(WORKERS):
        words = area.slot(worker).cast("Q")
        for operation, size in cells:
            cell = operation * len(SIZE_CLASSES) + size
            begins = (at.HEAD_BYTES + cell * at.CELL_BYTES) // at.WORD
            counted = [numbers.randrange(MOST_COUNTED) for _ in range(BUCKETS)]
            words[at.COUNTS + cell] = sum(counted)
            words[at.BYTES + cell] = sum(counted) * PAGE
            for times in (at.RING, at.DISK):
                for bucket, count in enumerate(counted):
                    words[begins + times + bucket] = count
    return area


async def longest_pause(until: asyncio.Event) -> float:
    """The longest time, in seconds, for which the event loop did not come round."""
    longest, last = 0.0, time.monotonic()
    while not until.is_set():
        await asyncio.sleep(TICK)
        now = time.monotonic()
        longest, last = max(longest, now - last - TICK), now
    return longest


async def measure(count: int) -> list[list[str]]:
    """The rows of a table."""
    disks: Any = Disks(count)
    exposition = Exposition(disks)
    await exposition.text()  # what is imported and cached is
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        pausing = tasks.create_task(longest_pause(ended))
        began, cpu = time.monotonic(), time.process_time()
        with contextlib.ExitStack() as stack:
            stack.callback(ended.set)
            text = await exposition.text()
        took, cpu = time.monotonic() - began, time.process_time() - cpu
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    return [
        ["disks", f"{count}"],
        ["series", f"{series}"],
        ["text", f"{len(text) / MIB:.1f} MiB"],
        ["answered after", f"{took * MILLI:.0f} ms"],
        ["CPU time", f"{cpu * MILLI:.0f} ms"],
        ["longest pause of the event loop", f"{pausing.result() * MILLI:.0f} ms"],
    ]


@click.command()
@click.option("--exports", type=click.IntRange(1), default=200, show_default=True)
def main(exports: int) -> None:
    """Print what a scrape takes."""
    click.echo(table(("A scrape", "seen"), asyncio.run(measure(exports))))


if __name__ == "__main__":
    main()
