# SPDX-License-Identifier: Apache-2.0
"""Many idle exports of one host, as `blkd daemon` starts them: `python -m compare.idle --help`.

What one more takes of memory (its proportional set size: pages that processes share count for each
by its part), how long all take to be ready, how often anything wakes up while no guest does a
thing, and what the others have of one that is added.
"""

import asyncio
import contextlib
import itertools
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import click

from blkd.daemon import orders
from blkd.daemon.launching import Launched, Launcher
from blkd.host import unix_socket
from compare.images import MIB
from harness.host import HostDaemon
from harness.markdown import table

READY_LIMIT: Final = 60.0  # seconds for one export
SETTLE: Final = 2.0  # seconds until what a start leaves behind is over
LOGGED_AT_ONCE: Final = 10  # events of a kind; the last of more is written after ...
LOG_PERIOD: Final = 10.0  # ... so many seconds (blkd.host.log)
KIB: Final = 1024
IMAGE_BYTES: Final = 64 * MIB
FIRST_USER: Final = 61184
"""The first of the numbers that systemd gives to users for the time being."""
FILES_EACH: Final = 8  # descriptors that this process has of each export

PSS_GOAL: Final = 12.0  # MiB of one more export
READY_GOAL: Final = 20.0  # seconds until 200 exports are ready, on two processors
READY_COUNT: Final = 200
WAKE_UP_GOAL: Final = 1.0  # the daemon looks at the room for images, every 30 s at the least


@dataclass(frozen=True, slots=True)
class Seen:
    """What so many idle exports take."""

    exports: int
    ready: float
    """Seconds until all were."""
    pss: float
    """MiB that each of the second half of them has added to all."""
    largest: float
    """MiB of the largest single one."""
    keeper: float
    """MiB of what keeps them: launcher and supervisor."""
    wake_ups: float
    """A second, in all processes."""
    disturbed: int
    """How often the others have woken up while one was added."""
    added: float
    """Seconds until that one was ready."""

    @property
    def missed(self) -> list[str]:
        """What is not as it is to be."""
        ready_goal = READY_GOAL * max(1.0, self.exports / READY_COUNT)
        found = {
            f"one more takes {self.pss:.1f} MiB, not {PSS_GOAL:g}": self.pss > PSS_GOAL,
            f"all are ready after {self.ready:.1f} s, not {ready_goal:g}": self.ready > ready_goal,
            f"{self.wake_ups:g} wake-ups a second": self.wake_ups > WAKE_UP_GOAL,
            f"{self.disturbed} wake-ups of others by one more": self.disturbed > 0,
        }
        return [words for words, is_so in found.items() if is_so]

    def rows(self) -> list[list[str]]:
        """A table's."""
        return [
            ["exports", f"{self.exports}"],
            ["all ready after", f"{self.ready:.1f} s"],
            ["PSS of one more", f"{self.pss:.1f} MiB"],
            ["PSS of the largest", f"{self.largest:.1f} MiB"],
            ["PSS of what keeps them", f"{self.keeper:.1f} MiB"],
            ["wake-ups in all", f"{self.wake_ups:g} a second"],
            ["one more is ready after", f"{self.added:.2f} s"],
            ["wake-ups of the others by it", f"{self.disturbed}"],
        ]


class Fleet(Protocol):
    """Who starts exports."""

    keepers: tuple[int, ...]
    """Processes that keep them."""

    async def add(self, name: str, image: Path) -> int:
        """Start an export: its process, once it is ready."""

    async def close(self) -> None:
        """End all."""


class LauncherFleet:
    """Exports of a launcher, without a supervisor."""

    def __init__(self, directory: Path, *, sandbox: bool) -> None:
        self._directory = directory
        self._sandbox = sandbox
        self._users = itertools.count(FIRST_USER)
        self._undo = contextlib.ExitStack()
        self._log = self._undo.enter_context((directory / "log.jsonl").open("ab"))
        self._launcher = Launcher.start(on_end=lambda _: None, on_gone=lambda: None)
        self.keepers: tuple[int, ...] = (self._launcher.pid,)

    async def add(self, name: str, image: Path) -> int:
        """Start one."""
        paths = [str(self._directory / f"{name}.{kind}") for kind in ("control", "sock")]
        control, listener = [
            self._undo.enter_context(unix_socket.listen(path, 0o600)) for path in paths
        ]
        order = orders.Launch(
            name=name,
            device="blk",
            settings={"image": str(image)},
            run=str(self._directory),
            sandbox=self._user(),
        )
        launched = await self._launcher.launch(
            order, log=self._log.fileno(), control=control, listeners=[listener]
        )
        self._undo.callback(_end, launched)
        await launched.ready(READY_LIMIT)
        return launched.pid

    def _user(self) -> orders.Sandbox:
        """A sandbox with a user of its own, as the kernel counts some things for each user."""
        if not self._sandbox:
            return orders.Sandbox(on=False)
        number = next(self._users) if os.getuid() == 0 else None
        return orders.Sandbox(on=True, user=number, group=number)

    async def close(self) -> None:
        """End all."""
        self._undo.close()
        self._launcher.close()


class DaemonFleet:
    """Exports of a daemon of its own."""

    def __init__(self, directory: Path, *, sandbox: bool) -> None:
        self._undo = contextlib.ExitStack()
        self._daemon = HostDaemon(directory, sandbox="on" if sandbox else "off")
        self._undo.enter_context(self._daemon)
        daemon = self._daemon.ready()["pid"]
        self.keepers: tuple[int, ...] = (daemon, *children(daemon))

    async def add(self, name: str, image: Path) -> int:
        """Start one."""
        added = await asyncio.to_thread(self._daemon.add, name, image)
        pid: int = added["pid"]
        return pid

    async def close(self) -> None:
        """End all."""
        await asyncio.to_thread(self._undo.close)


def children(pid: int) -> list[int]:
    """The processes that a process of one thread, or its first thread, has started."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(number) for path in found for number in path.read_text().split()]


def _end(launched: Launched) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    launched.close()


FLEETS: Final[dict[str, type[DaemonFleet | LauncherFleet]]] = {
    "daemon": DaemonFleet,
    "launcher": LauncherFleet,
}


def pss(pid: int) -> float:
    """MiB of a process, its part of what it shares."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0]) / KIB


def wake_ups(pids: Iterable[int]) -> int:
    """How often threads of these have slept or were preempted so far.

    The kernel's own threads in them are left out.
    """
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = (task / "status").read_text()
            if not status.startswith("Name:\tiou-"):
                total += sum(map(int, re.findall(r"ctxt_switches:\t(\d+)", status)))
    return total


async def measure(fleet: Fleet, directory: Path, count: int, window: float) -> Seen:
    """Start so many exports, and watch them do nothing for `window` seconds."""
    began = time.monotonic()
    half = await _add(fleet, directory, range(count // 2))
    took = time.monotonic() - began
    await asyncio.sleep(SETTLE)
    before = sum(map(pss, (*half, *fleet.keepers)))
    began = time.monotonic()
    pids = half + await _add(fleet, directory, range(count // 2, count))
    took += time.monotonic() - began
    await asyncio.sleep(SETTLE + (LOG_PERIOD if count > LOGGED_AT_ONCE else 0))
    each = [pss(pid) for pid in pids]
    keeper = sum(map(pss, fleet.keepers))
    start = wake_ups([*pids, *fleet.keepers])
    await asyncio.sleep(window)
    woken = wake_ups([*pids, *fleet.keepers]) - start
    start = wake_ups(pids)
    began = time.monotonic()
    await _add(fleet, directory, [count])
    added = time.monotonic() - began
    await asyncio.sleep(SETTLE)
    return Seen(
        exports=count,
        ready=took,
        pss=(sum(each) + keeper - before) / (count - count // 2),
        largest=max(each),
        keeper=keeper,
        wake_ups=woken / window,
        disturbed=wake_ups(pids) - start,
        added=added,
    )


async def _add(fleet: Fleet, directory: Path, numbers: Iterable[int]) -> list[int]:
    """Start exports with these numbers, all at once: their processes."""

    async def one(number: int) -> int:
        image = directory / "images" / f"{number}.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        return await fleet.add(f"idle{number}", image)

    return list(await asyncio.gather(*map(one, numbers)))


@contextlib.asynccontextmanager
async def fleet_in(directory: Path, through: str, *, sandbox: bool) -> AsyncIterator[Fleet]:
    """Who starts exports, with their sockets in a directory; all end with the context."""
    (directory / "images").mkdir()
    fleet: Fleet = FLEETS[through](directory, sandbox=sandbox)
    try:
        yield fleet
    finally:
        await fleet.close()


async def run(count: int, window: float, through: str, *, sandbox: bool) -> Seen:
    """Measure in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="blkd-idle-") as place:
        directory = Path(place)
        async with fleet_in(directory, through, sandbox=sandbox) as fleet:
            return await measure(fleet, directory, count, window)


@click.command()
@click.option("--exports", type=click.IntRange(2), default=READY_COUNT, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True)
@click.option("--through", type=click.Choice(list(FLEETS)), default="daemon", show_default=True)
@click.option("--sandbox/--no-sandbox", default=True, show_default=True)
def main(exports: int, seconds: float, through: str, *, sandbox: bool) -> None:
    """Print what idle exports take; the exit status is 1 where a goal is missed.

    With `--through launcher` there is no supervisor, and none of its work.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, exports * FILES_EACH + 1024), most))
    seen = asyncio.run(run(exports, seconds, through, sandbox=sandbox))
    click.echo(table(("Idle exports", "seen"), seen.rows()))
    for words in seen.missed:
        click.echo(f"missed: {words}", err=True)
    sys.exit(bool(seen.missed))


if __name__ == "__main__":
    main()
