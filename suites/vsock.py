# SPDX-License-Identifier: Apache-2.0
"""`make vsock-test`: the kernel's own vsock tests between two guests of one `blkd vsock`.

Each test runs twice, so that either guest listens once.  The exit status is 0 only if all passed
that were run, and no guest's kernel logged an error.

--loopback runs them inside one guest, over the kernel's own loopback and without blkd: a test
that fails there as well is not blkd's.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blkd.errors import BlkdError
from harness.guest import Machine
from harness.initramfs import GUEST, Extra, MissingPart, build
from suites.outcomes import COMPLETE, Outcome, outcomes
from suites.sides import Side, SuiteError, complaints, loopback, siblings

BUILT = GUEST / "vsock-tests" / "tools" / "testing" / "vsock"
TESTS = ("vsock_test", "vsock_diag_test", "vsock_uring_test")
PERF = "vsock_perf"
CAN_SKIP = {"vsock_test", "vsock_diag_test"}
"""Those that have --skip, so that what comes after a test that fails can be run, too."""
CONTROL_PORT = 1234
"""Of the TCP connection by which the two sides of a test keep in step."""
LISTENS = f"grep -q ':{CONTROL_PORT:04X} .* 0A ' /proc/net/tcp"
PROGRAM_LIMIT = 240  # seconds for all tests of one program, under TCG
PERF_BYTES = "64M"
OF_TWO_GUESTS = "vsock_diag_test"
"""It counts the sockets of its guest."""
LINE = 100  # characters, where no terminal says otherwise
MODULES = ("vsock_diag", "vsock_loopback")


@dataclass(frozen=True, slots=True)
class Ran:
    """One test of one program, with which guest as the server."""

    program: str
    number: int
    listens: int
    outcome: Outcome


async def run_program(program: str, server: Side, client: Side) -> list[Ran]:
    """Every test of one program, those after one that fails included.  Raises SuiteError."""
    seen: dict[int, Outcome] = {}
    while True:
        for side in (server, client):
            await side.idle()
        words = [program, *(f"--skip {number}" for number in seen)]
        said = await run_pair(" ".join(words), server, client)
        new = {n: o for n, o in outcomes(*said).items() if n not in seen}
        seen |= new
        failed = any(not outcome.passed for outcome in new.values())
        if not failed and not all(COMPLETE in output for output in said):
            raise SuiteError(f"{program} did not get to its end\n{said[0]}\n{said[1]}")
        if not failed or program not in CAN_SKIP:
            return [Ran(program, number, server.cid, o) for number, o in sorted(seen.items())]


async def run_pair(command: str, server: Side, client: Side) -> tuple[str, str]:
    """Run a program of two sides: what each of them printed."""
    run = f"timeout {PROGRAM_LIMIT} {command} --control-port={CONTROL_PORT}"
    serve = f"{run} --mode=server --peer-cid={client.cid} 2>&1; true"
    connect = f"{run} --mode=client --control-host={server.address} --peer-cid={server.cid} 2>&1"
    async with asyncio.TaskGroup() as tasks:
        listener = tasks.create_task(server.guest.run(serve, limit=PROGRAM_LIMIT + 10))
        await server.guest.until(LISTENS)
        caller = tasks.create_task(client.guest.run(f"{connect}; true", limit=PROGRAM_LIMIT + 10))
    return listener.result(), caller.result()


async def throughput(sender: Side, receiver: Side) -> str:
    """What vsock_perf says of one direction, at the receiver's end."""
    send = f"{PERF} --sender {receiver.cid} --bytes {PERF_BYTES}"
    async with asyncio.TaskGroup() as tasks:
        received = tasks.create_task(receiver.guest.run(f"{PERF} --bytes {PERF_BYTES}"))
        tasks.create_task(sender.guest.run(f"until {send}; do sleep 0.1; done"))
    found = re.search(r"rx performance: (\S+ \S+)", received.result())
    if found is None:
        raise SuiteError(f"{PERF} does not tell how fast it was: {received.result()}")
    return found[1]


class Report:
    """What was seen, as a table."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else LINE)
        self.failed = False

    def show(self, ran: list[Ran]) -> None:
        """Print how every test ended in either direction."""
        listeners = list(dict.fromkeys(each.listens for each in ran))
        table = Table("program", "test", *(f"{n} listens" for n in listeners), box=SIMPLE_HEAD)
        rows: dict[tuple[str, int], dict[int, Outcome]] = {}
        for each in ran:
            rows.setdefault((each.program, each.number), {})[each.listens] = each.outcome
        for (program, number), row in rows.items():
            name = f"{number} {next(iter(row.values())).name}"
            table.add_row(program, escape(name), *(self._cell(row.get(n)) for n in listeners))
        self.console.print(table)
        for each in ran:
            if not each.outcome.passed:
                self._explain(each)
        passed = sum(each.outcome.passed for each in ran)
        self.console.print(f"{passed} of {len(ran)} passed")

    def _cell(self, outcome: Outcome | None) -> str:
        if outcome is not None and outcome.passed:
            return "ok"
        self.failed = True
        return "[bold red]failed[/]" if outcome else "[bold red]not run[/]"

    def _explain(self, each: Ran) -> None:
        what = f"{each.program} {each.number} with CID {each.listens} listening"
        self.console.print(f"{what}: server: {escape(each.outcome.server)}")
        self.console.print(f"{what}: client: {escape(each.outcome.client)}")

    def fail(self, why: str) -> None:
        """Print what else is wrong."""
        self.failed = True
        self.console.print(f"[bold red]FAILED[/]: {escape(why)}")


async def measure(one: Side, other: Side, report: Report) -> None:
    """Print how fast data goes, in either direction."""
    for sender, receiver in ((one, other), (other, one)):
        speed = await throughput(sender, receiver)
        report.console.print(f"{PERF}, CID {sender.cid} to {receiver.cid}: {speed}")


async def run(programs: dict[str, Path], one: Side, other: Side, report: Report) -> None:
    """All tests, in both directions where there are two guests, and what they leave behind."""
    pairs = [(one, other)] if one is other else [(one, other), (other, one)]
    guests = [side.guest for side in dict.fromkeys((one, other))]
    for guest in guests:
        await guest.run("insmod /modules/vsock_diag.ko")
    ran: list[Ran] = []
    try:
        for name in filter(programs.__contains__, TESTS):
            for server, client in pairs:
                ran += await run_program(name, server, client)
    finally:
        report.show(ran)
    if PERF in programs and one is not other:
        await measure(one, other, report)
    for guest in guests:
        for line in await guest.kernel_errors():
            report.fail(f"the guest's kernel: {line}")


def built(*, alone: bool, report: Report) -> dict[str, Path]:
    """The programs by their names; prints which are left out, and why.  Raises MissingPart."""
    if not BUILT.is_dir():
        raise MissingPart(f"no vsock tests in {BUILT}", hint="make vsock-test fetches them")
    source = (BUILT.parents[2] / "version").read_text().split()[0]
    found = {}
    for name in (*TESTS, PERF):
        if not (BUILT / name).exists():
            report.console.print(f"left out: {name}: {source} has none")
        elif alone and name == OF_TWO_GUESTS:
            report.console.print(f"left out: {name}: it needs a guest for each side")
        else:
            found[name] = BUILT / name
    return found


async def main() -> int:
    """Run the tests and print what was seen: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loopback", action="store_true", help="in one guest, without blkd")
    parser.add_argument("--packed", action="store_true", help="with packed rings")
    options = parser.parse_args()
    alone: bool = options.loopback
    report = Report()
    programs = built(alone=alone, report=report)
    machine = await Machine.prepare()
    extra = Extra("vsock-tests", tuple(programs.values()), MODULES)
    machine = replace(machine, initramfs=build(machine.kernel, extra))
    with tempfile.TemporaryDirectory(prefix="vsock-") as name:
        directory = Path(name)
        sides = loopback(machine) if alone else siblings(machine, directory, packed=options.packed)
        try:
            async with sides as (one, other):
                await run(programs, one, other, report)
        finally:
            for line in complaints(directory):
                report.console.print(f"blkd: {line}", markup=False)
    return 1 if report.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except BlkdError as error:
        sys.exit(f"{error}\nhint: {error.hint}" if error.hint else str(error))
