# SPDX-License-Identifier: Apache-2.0
"""Front ends that shrink their memory under a running disk, again and again, at any moment.

Each ends its own connection and nothing else: the process stays, gives back all that it had of
the front end, and the next one finds every block as it should be.
"""

import asyncio
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drills.ledger import BLOCK, Ledger
from drills.outcome import Outcome
from harness.daemon import Daemon
from harness.frontend import FLUSH, IN, OK, OUT, Disk, FrontEnd, GuestMemory

BLOCKS: Final = 256
SECTORS: Final = BLOCK // 512
RINGS: Final = 2
DEPTH: Final = 12
"""Requests in flight on each ring."""
PAGE: Final = 4096
MEMORY: Final = (64 << 10, 1 << 20)
"""Regions: the first has room for rings, headers and few buffers; the others lie in the second."""
SOONEST: Final = 0.0
LATEST: Final = 0.05
"""Seconds of load before the memory shrinks."""
LIMIT: Final = 5.0
"""Seconds in which the connection has to end, and all that it had to be given back."""
PERIOD: Final = 0.005  # seconds between two looks

SETTINGS: Final = (
    ("--cache", "none"),
    ("--cache", "writeback"),
    ("--cache", "none", "--register-memory"),
    ("--cache", "writeback", "--engine", "inline"),
)


@dataclass(slots=True)
class Seen:
    """What a number of front ends came to."""

    shrunk: int = 0
    answered: int = 0
    """Requests before their memory was gone."""
    stayed: int = 0
    """Connections that did not end in time."""
    left_over: int = 0
    """Times that the process kept a descriptor or a mapping."""
    silent: int = 0
    """Times that the log does not say why."""
    wrong: int = 0
    """Blocks that hold what was never written."""
    deaths: int = 0


class Load:
    """Writes and reads on all rings of one front end, until its memory has shrunk.

    It must not touch that memory afterwards: a SIGBUS would be ours.
    """

    def __init__(self, disks: list[Disk], ledger: Ledger, chance: random.Random) -> None:
        self._disks, self._ledger, self._chance = disks, ledger, chance
        self._writing: list[dict[int, tuple[range, int]]] = [{} for _ in disks]
        self._flying = [0] * len(disks)
        self.answered = 0

    def run(self, seconds: float) -> None:
        """Keep every ring full for a while; what is in flight at the end stays so."""
        over = threading.Event()
        timer = threading.Timer(seconds, over.set)
        timer.start()
        while not over.is_set():
            for at, disk in enumerate(self._disks):
                while self._flying[at] < DEPTH:
                    self._send(at)
                for head, done in disk.ended().items():
                    self._flying[at] -= 1
                    self.answered += done.status == OK
                    if written := self._writing[at].pop(head, None):
                        self._ledger.wrote(*written)
        for at in range(len(self._disks)):
            while self._flying[at] < DEPTH:
                self._send(at)
        timer.join()

    def _send(self, at: int) -> None:
        disk, kind = self._disks[at], self._chance.choice([IN, OUT, OUT, FLUSH])
        block = self._chance.randrange(BLOCKS)
        self._flying[at] += 1
        if kind == FLUSH:
            disk.submit(FLUSH)
        elif kind == IN or block in self._ledger.busy:
            disk.submit(IN, block * SECTORS, size=BLOCK)
        else:
            blocks = range(block, block + 1)
            generation, data = self._ledger.write(blocks)
            self._writing[at][disk.submit(OUT, block * SECTORS, data)] = blocks, generation


def shrink(memory: GuestMemory, chance: random.Random) -> None:
    """Truncate the file of one region, or of all, somewhere."""
    regions = chance.choice([memory.regions[:1], memory.regions[1:], memory.regions])
    for region in regions:
        whole = region.offset + region.size
        os.ftruncate(region.fd, chance.choice([0, chance.randrange(whole // PAGE) * PAGE]))


def provoke(front_end: FrontEnd) -> None:
    """Take all memory away, and have every ring looked at."""
    for region in front_end.memory.regions:
        os.ftruncate(region.fd, 0)
    for ring in front_end.rings.values():
        ring.kick()


@contextmanager
def watched(daemon: Daemon, seen: Seen) -> Iterator[None]:
    """Within, one front end comes and goes; afterwards the process must be as it was before."""
    descriptors, mappings = holdings(daemon)
    before = complaints(daemon)

    def holds_no_more() -> bool:
        found = holdings(daemon)
        return found[0] <= descriptors and found[1] <= mappings

    yield
    daemon.wait_for("front_end", None)
    seen.left_over += not comes_true(holds_no_more)
    seen.silent += not comes_true(lambda: complaints(daemon) > before)
    seen.shrunk += 1


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether it does in time: a front end's descriptors are closed by other threads."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PERIOD)
    return True


def holdings(daemon: Daemon) -> tuple[int, int]:
    """Descriptors, and mappings of guest memory, that the process has.

    Not its io_urings: a worker makes one to signal a ring's eventfds when it first has to, and
    keeps it.
    """
    process = Path(f"/proc/{daemon.process.pid}")
    mapped = (process / "maps").read_text().count("memfd:")
    return sum(1 for fd in (process / "fd").iterdir() if not is_uring(fd)), mapped


def is_uring(fd: Path) -> bool:
    """Whether a /proc/PID/fd entry is an io_uring; one that has just been closed is none."""
    try:
        return str(fd.readlink()) == "anon_inode:[io_uring]"
    except FileNotFoundError:
        return False


def complaints(daemon: Daemon) -> int:
    """How often the log says that memory shrank."""
    return daemon.errors().count("memory shrank")


def misbehave(daemon: Daemon, ledger: Ledger, chance: random.Random, seen: Seen) -> None:
    """Be one front end, from its start to its bad end."""
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.memory = GuestMemory(MEMORY)
        load = Load(list(front_end.disks(RINGS)), ledger, chance)
        load.run(chance.uniform(SOONEST, LATEST))
        seen.answered += load.answered
        shrink(front_end.memory, chance)
        if not front_end.wait_closed(chance.uniform(0, 0.02)):
            provoke(front_end)
            seen.stayed += not front_end.wait_closed(LIMIT)
    cut_short, ledger.busy = ledger.busy, set()
    ledger.write(sorted(cut_short), zeroes=True)  # what blkd copies out of a hole is zeroes
    ledger.busy.clear()


def verify(daemon: Daemon, ledger: Ledger, seen: Seen) -> None:
    """Read the whole disk as a front end that behaves, and judge it."""
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        for block in range(BLOCKS):
            status, found = disk.read(block * SECTORS, BLOCK)
            seen.wrong += status != OK or not ledger.allows(block, found)
    daemon.wait_for("front_end", None)


def shrink_often(rounds: int, options: tuple[str, ...], chance: random.Random, seen: Seen) -> None:
    """One process of blkd, and `rounds` front ends that shrink their memory."""
    ledger = Ledger(BLOCKS, write_through=True)  # nothing crashes: what was answered is there
    with tempfile.TemporaryDirectory(prefix="sigbus-") as name:
        image = Path(name) / "disk.img"
        image.write_bytes(bytes(BLOCKS * BLOCK))
        rings = ("--queues", RINGS, "--workers", RINGS)
        # All events: a drill has more front ends in a moment than the log tells of otherwise.
        environment = os.environ | {"BLKD_LOG": "debug"}
        with Daemon(image, Path(name), *rings, *options, env=environment) as daemon:
            daemon.ready()
            verify(daemon, ledger, seen)  # it has all that it ever needs, from here on
            misbehave(daemon, ledger, chance, seen)
            daemon.wait_for("front_end", None)
            for _ in range(rounds):
                with watched(daemon, seen):
                    misbehave(daemon, ledger, chance, seen)
            verify(daemon, ledger, seen)
            seen.deaths += daemon.end() != 0


async def drill(
    rounds: int,
    *,
    settings: tuple[tuple[str, ...], ...] = SETTINGS,
    seed: int | None = None,
) -> Outcome:
    """Have `rounds` front ends shrink their memory under one blkd, in each setting."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    seen = Seen()
    for options in settings:
        await asyncio.to_thread(shrink_often, rounds, options, chance, seen)
    return Outcome(
        drill="memory that shrinks",
        rounds=rounds * len(settings),
        errors=seen.stayed + seen.left_over + seen.silent + seen.wrong + seen.deaths,
        figures={
            "front ends whose memory shrank": seen.shrunk,
            "requests answered before": seen.answered,
            "connections that did not end": seen.stayed,
            "blocks wrong afterwards": seen.wrong,
        },
    )
