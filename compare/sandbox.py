# SPDX-License-Identifier: Apache-2.0
"""What the sandbox of a daemon's export costs its disk: `python -m compare.sandbox --help`.

Two daemons serve one image that the page cache has, one of them with `sandbox = "off"`, and
`blkd bench` loads one after the other, again and again; each goes first every other time.  What a
filter of system calls costs shows where requests are small and each has a call of its own.
"""

import contextlib
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import click

from compare.cases import CLIENT_CPUS, TARGET_CPUS
from compare.images import MIB
from harness.daemon import run
from harness.host import HostDaemon

IMAGE_BYTES: Final = 64 * MIB
SPARE: Final = 60.0  # seconds beyond a run's own
ENGINES: Final = ("inline", "uring")
DEPTHS: Final = (1, 32)


class Figures(NamedTuple):
    """What one run of the load has seen, or the medians of several."""

    iops: float
    cpu_us: float
    """Processor time of the export, us a request."""


class Round(NamedTuple):
    """A run against each."""

    confined: Figures
    free: Figures


def load(disk: dict[str, str | int], depth: int, runtime: float) -> Figures:
    """Random reads of 4 KiB from an export for so many seconds."""
    words = ["bench", disk["socket"], "--pid", disk["pid"], "--cpu", CLIENT_CPUS]
    words += ["--iodepth", depth, "--runtime", f"{runtime:g}", "--ramp", "0.5", "--json"]
    done = run(*words, timeout=runtime + SPARE)
    if done.returncode:
        raise click.ClickException(done.stderr)
    said = json.loads(done.stdout)
    return Figures(said["iops"], said["target_cpu_us_per_io"])


def measure(rounds: int, runtime: float) -> dict[str, list[Round]]:
    """All rounds of each load, by its name."""
    seen: dict[str, list[Round]] = {}
    with contextlib.ExitStack() as stack:
        image = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blkd-"))) / "disk.img"
        image.write_bytes(bytes(IMAGE_BYTES))
        disks: dict[tuple[str, str], dict[str, str | int]] = {}
        for sandbox in ("on", "off"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blkd-")))
            daemon = stack.enter_context(
                HostDaemon(folder, sandbox=sandbox, images=[str(image.parent)])
            )
            daemon.ready()
            disks |= {(sandbox, engine): serve(daemon, image, engine) for engine in ENGINES}
        for number in range(rounds):
            for engine, depth in itertools.product(ENGINES, DEPTHS):
                order = ("on", "off") if number % 2 == 0 else ("off", "on")
                found = {which: load(disks[which, engine], depth, runtime) for which in order}
                name = f"{engine}, QD{depth}"
                seen.setdefault(name, []).append(Round(found["on"], found["off"]))
    return seen


def serve(daemon: HostDaemon, image: Path, engine: str) -> dict[str, str | int]:
    """Add a disk that all others share: where it is served, and by which process."""
    cpus = [int(TARGET_CPUS)]
    shown = daemon.add(engine, image, engine=engine, cache="writeback", read_only=True, cpus=cpus)
    return {"socket": shown["sockets"][0], "pid": shown["pid"]}


def medians(runs: Iterable[Figures]) -> Figures:
    """Of each figure by itself."""
    return Figures(*map(statistics.median, zip(*runs, strict=True)))


def row(name: str, found: list[Round]) -> str:
    """What was seen of one load."""
    confined, free = (medians(runs) for runs in zip(*found, strict=True))
    ratios = [one.confined.iops / one.free.iops for one in found]
    return (
        f"{name}: {confined.iops:.0f} and {free.iops:.0f} requests a second,"
        f" {confined.cpu_us:.2f} and {free.cpu_us:.2f} us of CPU a request;"
        f" ratio {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}"
    )


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=8, show_default=True)
@click.option("--runtime", type=float, default=3.0, show_default=True, help="Seconds of a load.")
def main(rounds: int, runtime: float) -> None:
    """Print what a disk carried with and without a sandbox."""
    for name, found in measure(rounds, runtime).items():
        click.echo(row(name, found))


if __name__ == "__main__":
    main()
