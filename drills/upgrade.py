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
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from drills.outcome import Outcome
from tests.daemon import Daemon, Serving, Successor, image
from tests.frontend import IN, OUT, Disk, FrontEnd

IMAGE_BYTES = 64 << 20
BLOCK_BYTES = 4096
SECTORS = BLOCK_BYTES // 512  # of a block
BLOCKS = 512  # of each queue's own part of the disk
STOP_LIMIT = 30.0  # seconds
MILLISECONDS = 1000.0  # of a second


async def drill(rounds: int, *, queues: int = 2, depth: int = 8, packed: bool = False) -> Outcome:
    """Upgrade `rounds` times while `queues` queues have `depth` requests in flight each."""
    return await asyncio.to_thread(_drill, rounds, queues, depth, packed=packed)


def _drill(rounds: int, queues: int, depth: int, *, packed: bool) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="blkd-drill-") as name:
        directory = Path(name)
        serving: Serving
        serving = daemon = Daemon(image(directory / "disk.img", IMAGE_BYTES), directory)
        try:
            daemon.ready()
            with FrontEnd.connect(daemon.socket) as front_end:
                load = Load(list(front_end.disks(queues, 64, packed=packed)), depth)
                with load:
                    waits, pauses = [], []
                    for _ in range(rounds):
                        serving = upgrade(serving)
                        waits.append(load.longest_wait())
                        pauses.append(reported_pause(serving))
            failed = int(serving.end() != 0)
        finally:
            serving.__exit__()
    return Outcome(
        drill="upgrade-packed" if packed else "upgrade",
        rounds=rounds,
        errors=load.errors + failed,
        figures={
            "upgrades": len(pauses),
            "requests": load.requests,
            "bytes verified": load.blocks_read * BLOCK_BYTES,
            **_summary("longest wait of a guest", waits),
            **_summary("pause", pauses),
        },
    )


def upgrade(served: Serving) -> Serving:
    """Who serves afterwards; the other has ended well."""
    with contextlib.ExitStack() as undo:
        new = undo.enter_context(Successor(served))
        new.ready()
        assert served.end(None) == 0, served.errors()
        served.__exit__()
        undo.pop_all()
    return new


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


def _summary(what: str, values: Sequence[float]) -> dict[str, int | float]:
    ordered = sorted(values)
    return {
        f"{what} p{share}, ms": round(ordered[math.ceil(len(ordered) * share / 100) - 1], 2)
        for share in (50, 99)
    }
