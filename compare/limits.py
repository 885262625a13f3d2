# SPDX-License-Identifier: Apache-2.0
"""How exactly and how evenly a disk is limited: `python -m compare.limits`.

A null image would do millions of requests a second, so nothing but the limit is seen; beside it is
one behind a throttle group of qemu-storage-daemon with the same limit.
"""

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import click

from blkd.errors import BlkdError
from compare.cases import CLIENT_CPUS, KIB, TARGET_CPUS, Family, Subject
from compare.errors import SubjectMissing
from compare.results import Carried, Limited
from compare.targets import BLKD, QSD, START_LIMIT, output, serving
from harness.markdown import table
from harness.process import kill, spawn

T = TypeVar("T")

IMAGE_BYTES: Final = 1 << 30
NULL: Final = f"null:{IMAGE_BYTES}"
LIMIT: Final = 60.0  # seconds beyond a run's own
LOOK_AGAIN: Final = 0.01  # seconds
RAMP: Final = 1.0  # seconds of a load that do not count
EXACT: Final = 0.005
"""How far what is carried may be off the limit, as a part of it."""
SLOWEST: Final = 2.0
"""The most that the 99th percentile may be, as a multiple of what the limit makes of the depth."""


@dataclass(frozen=True, slots=True)
class Load:
    """Random reads of one size, so many at a time."""

    depth: int
    block: int = 4 * KIB  # bytes


@dataclass(frozen=True, slots=True)
class Case:
    """A limit of requests a second, and a load that needs more."""

    iops: int
    load: Load
    iops_size: int = 0
    """Bytes that count as one request; 0 where any do."""

    @property
    def name(self) -> str:
        """What it is called in the table."""
        size = f", iops-size {self.iops_size // KIB}K" if self.iops_size else ""
        return f"{self.iops} IOPS{size}; {self.load.block // KIB} KiB, QD{self.load.depth}"

    @property
    def ideal(self) -> Carried:
        """What the limit allows of this load, each request waiting only for those before it."""
        iops = self.iops / max(self.load.block / self.iops_size if self.iops_size else 1, 1)
        return Carried(iops, self.load.depth / iops)


CASES: Final = (
    Case(100, Load(16)),
    Case(1000, Load(16)),
    Case(1000, Load(16, 64 * KIB), iops_size=16 * KIB),
    Case(20_000, Load(16)),
    Case(200_000, Load(32)),
)


@contextlib.asynccontextmanager
async def throttled_by_qsd(limits: str, disks: int) -> AsyncIterator[Sequence[Path]]:
    """The sockets of null images of qemu-storage-daemon behind one throttle group."""
    if not shutil.which(QSD):
        raise SubjectMissing(f"no {QSD} on this host", hint="make bench installs it")
    with tempfile.TemporaryDirectory(prefix="blkd-bench-") as folder:
        sockets = [Path(folder, f"disk{at}.sock") for at in range(disks)]
        words = [QSD, "--object", f"throttle-group,id=all,{limits}"]
        for at, socket in enumerate(sockets):
            export = f"type=vhost-user-blk,id=e{at},node-name=t{at},writable=on,iothread=i{at}"
            export += f",addr.type=unix,addr.path={socket}"
            words += [
                *("--blockdev", f"driver=null-co,node-name=n{at},size={IMAGE_BYTES}"),
                *("--blockdev", f"driver=throttle,node-name=t{at},throttle-group=all,file=n{at}"),
                *("--object", f"iothread,id=i{at}", "--export", export),
            ]
        process = await spawn(*words, stdout=PIPE)
        try:
            async with asyncio.timeout(START_LIMIT):
                while not all(socket.exists() for socket in sockets):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(LOOK_AGAIN)
            yield sockets
        finally:
            await kill(process)


async def carried(socket: Path, load: Load, runtime: float) -> Carried:
    """What is carried of a load in so many seconds.  Raises MeasurementFailed."""
    said = await output(
        *(f"{BLKD}", "bench", f"{socket}", "--json", "--cpu", CLIENT_CPUS),
        *("--rw", "randread", "--bs", f"{load.block}", "--iodepth", f"{load.depth}"),
        *("--runtime", f"{runtime:g}", "--ramp", f"{RAMP:g}"),
        limit=runtime + RAMP + LIMIT,
    )
    found = json.loads(said)
    return Carried(found["iops"], found["latency_ns"]["p99"] / 1e9)


async def of_blkd(case: Case, runtime: float) -> Carried:
    """What `blkd serve` carries."""
    limit = f"iops={case.iops}" + (f",iops-size={case.iops_size}" if case.iops_size else "")
    subject = Subject("limited", Family.BLKD, "blkd", ("--limit", limit))
    async with serving(subject, NULL, cpus=TARGET_CPUS) as target:
        return await carried(target.socket, case.load, runtime)


async def of_qsd(case: Case, runtime: float) -> Carried:
    """What qemu-storage-daemon carries."""
    limit = f"x-iops-total={case.iops}"
    limit += f",x-iops-size={case.iops_size}" if case.iops_size else ""
    async with throttled_by_qsd(limit, 1) as (socket,):
        return await carried(socket, case.load, runtime)


async def measure(runtime: float) -> list[Limited]:
    """Each case, both in turn.  Raises BlkdError."""
    return [
        Limited(case.name, case.ideal, await of_blkd(case, runtime), await of_qsd(case, runtime))
        for case in CASES
    ]


def missed(found: Limited) -> bool:
    """Whether blkd is off the limit, or lets some wait much longer than they have to."""
    off = abs(found.blkd.iops / found.ideal.iops - 1)
    return off > EXACT or found.blkd.p99 > SLOWEST * found.ideal.p99


def limited_table(seen: Iterable[Limited]) -> str:
    """What each has carried."""
    rows = [
        [
            *(found.case, f"{found.ideal.iops:g}, {1000 * found.ideal.p99:.3g} ms"),
            *(shown(found.ideal, one) for one in (found.blkd, found.qsd)),
        ]
        for found in seen
    ]
    return table(["Limit and load", "Ideal", "blkd", "qemu-storage-daemon"], rows)


def shown(ideal: Carried, found: Carried) -> str:
    """The requests a second, how far off that is, and the 99th percentile."""
    return f"{found.iops:.1f} ({found.iops / ideal.iops - 1:+.2%}), {1000 * found.p99:.3g} ms"


def seen_by(measuring: Coroutine[None, None, T]) -> T:
    """What is measured; where it cannot be, the program ends with the reason."""
    try:
        return asyncio.run(measuring)
    except BlkdError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--runtime", type=float, default=10.0, show_default=True, help="Seconds of a load.")
def main(runtime: float) -> None:
    """Print what limited disks carry and their P99; the exit status is 1 off the goals."""
    seen = seen_by(measure(runtime))
    click.echo(limited_table(seen))
    sys.exit(any(map(missed, seen)))


if __name__ == "__main__":
    main()
