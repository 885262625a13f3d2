# SPDX-License-Identifier: Apache-2.0
"""Runs the drills and keeps what they have seen: `python -m drills.run --help`."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console

from drills import (
    daemon,
    guest_restart,
    host_crash,
    hotplug,
    iommu,
    migration,
    restart,
    sigbus,
    sockets,
    transfer,
    upgrade,
)
from drills.outcome import Outcome
from harness.guest import Iommu

RESULTS: Final = Path(__file__).parent / "results.json"


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill, and how often it is repeated."""

    run: Callable[[int], Awaitable[Outcome]]
    long: int
    short: int


DRILLS: Final = {
    "restart": Drill(restart.drill, 1000, 10),
    "restart-packed": Drill(partial(restart.drill, packed=True), 1000, 10),
    "restart-holding": Drill(partial(restart.drill, holding=True), 500, 8),
    "restart-holding-packed": Drill(partial(restart.drill, holding=True, packed=True), 500, 8),
    "restart-limited": Drill(partial(restart.drill, limited=True), 500, 8),
    "restart-limited-packed": Drill(partial(restart.drill, limited=True, packed=True), 500, 8),
    "restart-holding-limited": Drill(partial(restart.drill, holding=True, limited=True), 500, 8),
    "daemon": Drill(daemon.drill, 1000, 6),
    "daemon-packed": Drill(partial(daemon.drill, packed=True), 1000, 6),
    "guest-restart": Drill(guest_restart.drill, 200, 4),
    "guest-restart-packed": Drill(partial(guest_restart.drill, packed=True), 200, 4),
    "guest-restart-iommu": Drill(partial(guest_restart.drill, iommu=Iommu.STRICT), 200, 4),
    "iommu": Drill(iommu.drill, 500, 6),
    "iommu-packed": Drill(partial(iommu.drill, packed=True), 500, 6),
    "host-crash": Drill(host_crash.drill, 100, 3),
    "hotplug": Drill(hotplug.drill, 50, 1),
    "sigbus": Drill(sigbus.drill, 250, 8),
    "sockets": Drill(sockets.drill, 80, 1),
    "migration": Drill(migration.drill, 10, 1),
    "migration-packed": Drill(partial(migration.drill, packed=True), 10, 1),
    "transfer": Drill(transfer.drill, 80, 1),
    "migration-iommu": Drill(partial(migration.drill, iommu=Iommu.STRICT), 10, 1),
    "upgrade": Drill(upgrade.drill, 100, 5),
    "upgrade-packed": Drill(partial(upgrade.drill, packed=True), 100, 5),
    "upgrade-killed": Drill(partial(upgrade.drill, killing=True), 200, 8),
    "upgrade-killed-packed": Drill(partial(upgrade.drill, killing=True, packed=True), 200, 8),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(DRILLS)))
@click.option("--short", is_flag=True, help="A few rounds each; nothing is kept.")
@click.option("--rounds", type=click.IntRange(1), help="So many rounds instead.")
def main(names: tuple[str, ...], *, short: bool, rounds: int | None) -> None:
    """Run all drills, or those NAMES, and add what they have seen to the kept results.

    The exit status is 1 if a drill has seen an error.
    """
    outcomes = []
    for name in names or DRILLS:
        drill = DRILLS[name]
        outcomes.append(_carry_out(drill, rounds or (drill.short if short else drill.long)))
        if not short:
            keep(outcomes)
    sys.exit(any(outcome.errors for outcome in outcomes))


def _carry_out(drill: Drill, rounds: int) -> Outcome:
    """Run one drill and print what it has seen."""
    console = Console(highlight=False)
    began = time.monotonic()
    outcome = asyncio.run(_awaited(drill.run(rounds)))
    console.print(f"[bold]{outcome.drill}[/]: {outcome.rounds} rounds, {outcome.errors} errors")
    for what, number in outcome.figures.items():
        console.print(f"  {what}: {number:,}")
    console.print(f"  {time.monotonic() - began:.0f} s")
    return outcome


async def _awaited(outcome: Awaitable[Outcome]) -> Outcome:
    return await outcome


def kept() -> list[Outcome]:
    """What was seen by the last long run of each drill."""
    if not RESULTS.exists():
        return []
    return msgspec.json.decode(RESULTS.read_bytes(), type=list[Outcome])


def keep(outcomes: Iterable[Outcome]) -> None:
    """Put these in the place of earlier outcomes of the same drills."""
    by_name = {outcome.drill: outcome for outcome in (*kept(), *outcomes)}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(list(by_name.values()))) + b"\n")


if __name__ == "__main__":
    main()
