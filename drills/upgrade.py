# SPDX-License-Identifier: Apache-2.0
"""Live upgrades under load: each hands the disk to a new process while requests are in flight.

The scripted front end writes blocks that tell which write they are of, and reads them back.  It
measures what a guest would see of an upgrade: the longest time that requests took around it.
"""

import asyncio
import contextlib
import json
import math
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from drills.outcome import Outcome
from harness.daemon import Daemon, Serving, Taker, image
from harness.frontend import IN, OUT, Disk, FrontEnd

IMAGE_BYTES = 64 << 20
BLOCK_BYTES = 4096
SECTORS = BLOCK_BYTES // 512  # of a block
BLOCKS = 512  # of each queue's own part of the disk
RING_SIZE = 64  # descriptors
KILLED_WITHIN = 1.5  # times as long as it takes until a new process serves
GONE_LIMIT = 0.2  # seconds that an old process may take to be gone once it has said go
STOP_LIMIT = 30.0  # seconds
MILLISECONDS = 1000.0  # of a second


async def drill(
    rounds: int, *, queues: int = 2, depth: int = 8, packed: bool = False, killing: bool = False
) -> Outcome:
    """Upgrade `rounds` times while `queues` queues have `depth` requests in flight each.

    With `killing` each new process is killed at a random moment: before it has the disk the old
    one must go on, and afterwards a third one from the in-flight region.
    """
    with tempfile.TemporaryDirectory(prefix="blkd-drill-") as name:
        run = Run(Path(name), killing=killing)
        await asyncio.to_thread(run.drill, rounds, queues, depth, packed=packed)
    name = f"upgrade{', killed' * killing}, {'packed' if packed else 'split'} rings"
    return Outcome(drill=name, rounds=rounds, errors=run.errors, figures=run.figures)


class Run:
    """A disk that goes from process to process."""

    def __init__(self, directory: Path, *, killing: bool) -> None:
        self._directory, self._killing = directory, killing
        self._image = image(directory / "disk.img", IMAGE_BYTES)
        self._chance = random.Random(0)  # noqa: S311 - the same moments each time
        self._serving: Serving
        self._front_end: FrontEnd
        self._waits: list[float] = []
        self._pauses: list[float] = []
        self._kept = self._lost = 0
        self._duration = 0.0  # seconds until a new process serves
        self.errors = 0
        self.figures: dict[str, int | float] = {}

    def drill(self, rounds: int, queues: int, depth: int, *, packed: bool) -> None:
        """Do all of it, and note what was seen."""
        with contextlib.ExitStack() as end:
            self._start()
            end.callback(self._end)  # whoever serves by then
            self._front_end = end.enter_context(FrontEnd.connect(self._serving.socket))
            self._front_end.prepare(packed=packed)
            self._front_end.track_inflight(queues, RING_SIZE)
            disks = [self._front_end.make_disk(index, RING_SIZE) for index in range(queues)]
            with Load(disks, depth) as load:
                for _ in range(rounds):
                    self._interrupt() if self._killing else self._upgrade()
                    self._waits.append(load.longest_wait())
            self.errors = load.errors + (self._serving.end() != 0)
        self._summarise(load)

    def _start(self) -> None:
        self._serving = daemon = Daemon(self._image, self._directory)
        daemon.ready()

    def _end(self) -> None:
        self._serving.__exit__()

    def _upgrade(self) -> None:
        """Have a new process serve; the old one ends well."""
        with contextlib.ExitStack() as undo:
            new = undo.enter_context(Taker(self._serving))
            new.ready()
            assert self._serving.end(None) == 0, self._serving.errors()
            self._serving.__exit__()
            undo.pop_all()
        self._serving = new
        self._pauses.append(reported_pause(new))

    def _interrupt(self) -> None:
        """Kill a new process at some moment, and see to it that the disk is served.

        The first one lives until it serves, which tells how long it takes; the second dies at once.
        """
        began = time.monotonic()
        with Taker(self._serving) as new:
            if self._lost == 0:
                new.ready()
                self._duration = time.monotonic() - began
            elif self._kept:
                time.sleep(self._chance.uniform(0, KILLED_WITHIN * self._duration))
            new.process.kill()
            new.process.wait(STOP_LIMIT)
        try:
            assert self._serving.end(None, GONE_LIMIT) == 0, self._serving.errors()
        except subprocess.TimeoutExpired:
            self._kept += 1
            return
        self._lost += 1
        self._serving.__exit__()
        self._start()
        self._front_end.resume(self._serving.socket)

    def _summarise(self, load: "Load") -> None:
        self.figures = {
            **(
                {"killed before go": self._kept, "killed afterwards": self._lost}
                if self._killing
                else {"upgrades": len(self._pauses)}
            ),
            "requests": load.requests,
            "bytes verified": load.blocks_read * BLOCK_BYTES,
            **summary("longest wait of a guest", self._waits),
            **({} if self._killing else summary("pause", self._pauses)),
        }


def reported_pause(new: Serving) -> float:
    """Milliseconds from when the old process fetched no more to when the new one did."""
    events = [json.loads(line) for line in new.errors().splitlines()]
    return float(next(e["pause_ms"] for e in events if e["event"] == "taken over"))


class Load:
    """A front end's thread: each disk has `depth` requests in flight, again and again."""

    def __init__(self, disks: Sequence[Disk], depth: int) -> None:
        self._disks, self._depth = disks, depth
        self._versions = [[0] * BLOCKS for _ in disks]
        self._chance = random.Random(0)  # noqa: S311 - what is drawn shall be the same each time
        self._stopping = threading.Event()
        self._turns = threading.Condition()
        self._turn = 0
        self._longest = 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="drill-load")
        self.requests = self.blocks_read = self.errors = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.longest_wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(STOP_LIMIT)
        if self._failure is not None:
            raise self._failure

    def longest_wait(self) -> float:
        """Most milliseconds that requests took since the last call, one turn later included."""
        with self._turns:
            turn = self._turn + 2  # the present one, and one that began after the call
            while self._turn < turn and self._failure is None:
                self._turns.wait(STOP_LIMIT)
            longest, self._longest = self._longest, 0.0
        return longest * MILLISECONDS

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                self._do_turn()
                with self._turns:
                    self._longest = max(self._longest, time.monotonic() - began)
                    self._turn += 1
                    self._turns.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            with self._turns:
                self._failure = error
                self._turns.notify_all()

    def _do_turn(self) -> None:
        plans = [list(self._plan(at)) for at in range(len(self._disks))]
        heads = [
            [disk.submit(kind, sector, out, size) for kind, sector, out, size, _ in plan]
            for disk, plan in zip(self._disks, plans, strict=True)
        ]
        for disk, plan, sent in zip(self._disks, plans, heads, strict=True):
            for done, (kind, _, _, _, expected) in zip(
                disk.wait(*sent, timeout=STOP_LIMIT), plan, strict=True
            ):
                self.requests += 1
                self.blocks_read += kind == IN
                wrong = kind == IN and done.data != expected
                self.errors += done.status != 0 or wrong

    def _plan(self, at: int) -> Iterator[tuple[int, int, bytes, int, bytes]]:
        """Requests on different blocks of one disk's part: kind, sector, data, size, expected."""
        versions = self._versions[at]
        for block in self._chance.sample(range(BLOCKS), self._depth):
            number = at * BLOCKS + block
            sector = number * SECTORS
            if self._chance.random() < 0.5:  # noqa: PLR2004 - half of them
                versions[block] += 1
                yield OUT, sector, content(number, versions[block]), 0, b""
            else:
                yield IN, sector, b"", BLOCK_BYTES, content(number, versions[block])


def content(block: int, version: int) -> bytes:
    """What a block holds after so many writes; zeroes before the first."""
    if version == 0:
        return bytes(BLOCK_BYTES)
    return (block.to_bytes(8, "little") + version.to_bytes(8, "little")) * (BLOCK_BYTES // 16)


def summary(what: str, values: Sequence[float]) -> dict[str, int | float]:
    """The median of so many milliseconds, and what 99 of 100 are not above."""
    ordered = sorted(values)
    return {
        f"{what} p{share}, ms": round(ordered[math.ceil(len(ordered) * share / 100) - 1], 2)
        for share in (50, 99)
    }
