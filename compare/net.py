# SPDX-License-Identifier: Apache-2.0
"""A guest's network by blkd and by QEMU itself, in turn: `python -m compare.net --help`.

Guest and host exchange TCP and UDP by iperf3.  What a byte costs of the processor is counted where
packets are moved: in blkd's worker, or in QEMU's main thread (its guest runs on other threads), and
in the kernel's thread where vhost serves.

An emulated guest copies slowly, and is what limits most loads.  By sendfile it hands out pages that
it does not touch: there the back end shows.
"""

import asyncio
import contextlib
import json
import os
import statistics
import tempfile
from asyncio.subprocess import DEVNULL
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from harness.guest import Device, Guest, Machine, Net, OwnTap
from harness.initramfs import Extra, build, program
from harness.markdown import table
from harness.network import Namespace
from harness.process import kill, spawn
from harness.server import BLKD, Server

HOST, GUEST = "10.1.0.1", "10.1.0.2"
PINNED: Final = "-A 1"
"""The guest's end, away from the CPU that its interrupts come to: else chance decides whether the
two share one, and with that the rate."""
LOADS: Final = {
    "TCP from the guest": "",
    "TCP from the guest by sendfile": "-Z",
    "TCP by sendfile, four streams": "-Z -P 4",
    "TCP to the guest": "-R",
    "UDP from the guest": "-u -b 0 -l 1400",
    "UDP to the guest": "-u -b 400M -l 1400 -R",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run of a load has moved, and what that took."""

    gigabits: float
    """A second."""
    nanoseconds: float
    """Of a processor, a byte."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A guest on its network, and where the work is done."""

    guest: Guest
    process: int
    threads: str | None
    """What the names of the threads that move packets begin with; None for the main thread."""

    def work(self) -> int:
        """Nanoseconds that these threads have run so far."""
        total = 0
        for task in Path(f"/proc/{self.process}/task").iterdir():
            is_main = task.name == str(self.process)
            with contextlib.suppress(FileNotFoundError):
                name = (task / "comm").read_text()
                if is_main if self.threads is None else name.startswith(self.threads):
                    total += int((task / "schedstat").read_text().split()[0])
        return total

    async def measure(self, options: str, seconds: float) -> Seen:
        """Run one load."""
        before = self.work()
        words = f"iperf3 -c {HOST} {PINNED} -t {seconds} -J {options}"
        end = json.loads(await self.guest.run(words, limit=60 + seconds))["end"]
        moved = end["sum_received"] if "sum_received" in end else end["sum"]
        arrived = moved["bytes"] * (1 - moved.get("lost_percent", 0) / 100)
        if not arrived:
            raise RuntimeError(f"nothing has arrived: {words}")
        return Seen(
            8 * arrived / moved["seconds"] / 1e9,
            (self.work() - before) / arrived,
        )


@contextlib.asynccontextmanager
async def by_blkd(machine: Machine, namespace: Namespace, pairs: int) -> AsyncIterator[Setting]:
    """The guest whose packets blkd moves."""
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "log").open("w+b") as log,
    ):
        command = (*namespace.entering, BLKD, "net", "--tap", "tap0", "--queues", pairs)
        server = Server(command, Path(directory), log)
        try:
            await server.start()
            async with machine.boot(Net(server.socket, pairs=pairs), cpus=2) as guest:
                yield Setting(guest, server.pid, "blkd-io")
        finally:
            await server.kill()


@contextlib.asynccontextmanager
async def by_qemu(
    machine: Machine, namespace: Namespace, pairs: int, *, vhost: bool = False
) -> AsyncIterator[Setting]:
    """The guest whose packets QEMU moves, or the kernel's vhost for it."""
    own: Device = OwnTap("tap0", pairs=pairs, vhost=vhost)
    inside = replace(machine, qemu=(*namespace.entering, *machine.qemu))
    async with inside.boot(own, cpus=2) as guest:
        yield Setting(guest, guest.pid, "vhost-" if vhost else None)


async def measure_all(kind: str, machine: Machine, pairs: int, seconds: float) -> dict[str, Seen]:
    """Each load, in a guest of its own."""
    with Namespace() as namespace:
        namespace.tap(address=f"{HOST}/24", multi_queue=pairs > 1)
        iperf = await spawn(*namespace.entering, "iperf3", "-s", stdout=DEVNULL)
        try:
            if kind == "blkd":
                setting = by_blkd(machine, namespace, pairs)
            else:
                setting = by_qemu(machine, namespace, pairs, vhost=kind == "vhost")
            async with setting as running:
                await running.guest.run(f"ip link set eth0 up; ip address add {GUEST}/24 dev eth0")
                await running.guest.run(f"until ping -c 1 -W 1 {HOST}; do :; done")
                streams = f" -P {2 * pairs}" if pairs > 1 else ""
                return {
                    load: await running.measure(options + streams, seconds)
                    for load, options in LOADS.items()
                }
        finally:
            await kill(iperf)


async def compare(rounds: int, pairs: int, seconds: float) -> str:
    """A table of medians, of one after the other `rounds` times."""
    machine = await Machine.prepare()
    machine = replace(machine, initramfs=build(machine.kernel, Extra("net", (program("iperf3"),))))
    kinds = ["blkd", "qemu", *(["vhost"] if os.access("/dev/vhost-net", os.R_OK) else [])]
    seen: defaultdict[tuple[str, str], list[Seen]] = defaultdict(list)
    for _ in range(rounds):
        for kind in kinds:
            for load, found in (await measure_all(kind, machine, pairs, seconds)).items():
                seen[kind, load].append(found)
                click.echo(f"{kind}, {load}: {_words([found])}", err=True)
    rows = [[load, *(_words(seen[kind, load]) for kind in kinds)] for load in LOADS]
    return table(("Load", *kinds), rows)


def _words(found: list[Seen]) -> str:
    gigabits = statistics.median(each.gigabits for each in found)
    nanoseconds = statistics.median(each.nanoseconds for each in found)
    return f"{gigabits:.2f} Gbit/s, {nanoseconds:.2f} ns/B"


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--pairs", type=click.IntRange(1, 4), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True)
def main(rounds: int, pairs: int, seconds: float) -> None:
    """Print what a guest's network carries by blkd, and by QEMU's own back ends."""
    click.echo(asyncio.run(compare(rounds, pairs, seconds)))


if __name__ == "__main__":
    main()
