# SPDX-License-Identifier: Apache-2.0
"""A host that crashes under load: a flush that was acknowledged before is on the disk after.

The crash is the kernel's own: a file system is shut down without writing its log, and
from then on nothing reaches its disk.  What had only come as far as the page cache or the
journal in memory is gone once it is mounted again, as after a power failure.  A loop device on
a file of it is a disk whose volatile write cache is lost.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from drills.ledger import BLOCK, Ledger
from drills.outcome import Outcome
from harness.daemon import Daemon
from harness.frontend import FLUSH, OK, OUT, WRITE_ZEROES, Disk, FrontEnd
from harness.storage import DISK_BYTES, loop_device, mounted, run

IOC_SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN alike: _IOR('X', 125, __u32)."""
NO_LOG_FLUSH: Final = struct.pack("=I", 2)

BLOCKS: Final = 512
SECTORS: Final = BLOCK // 512
RINGS: Final = 2
DEPTH: Final = 12
"""Requests in flight on each ring."""
LONGEST: Final = 4
"""Blocks of one request."""
OFTEN: Final = 0.04
RARELY: Final = 0.004
"""Flushes among the requests: many are under way when the host crashes, few let much be lost."""
STRETCH: Final = 100
"""Requests after which the load turns from data to zeroes."""
UNMAP: Final = 1
SOONEST: Final = 0.05
LATEST: Final = 0.4
"""Seconds of load before the crash."""
WRITE_CACHE: Final = 32
"""Where the configuration space says whether there is one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of disk, and how it is served."""

    file_system: Literal["ext4", "xfs"]
    image: Literal["file", "sparse", "device"]
    cache: Literal["none", "writeback", "writethrough"]
    guest_writes_through: bool = False
    """Whether the driver switches the write-back cache off."""

    @property
    def write_through(self) -> bool:
        """Whether each write has to be durable before it is answered."""
        return self.cache == "writethrough" or self.guest_writes_through


SETTINGS: Final = (
    Setting("ext4", "file", "writeback"),
    Setting("ext4", "sparse", "none"),
    Setting("ext4", "device", "none"),
    Setting("ext4", "file", "writethrough"),
    Setting("ext4", "device", "none", guest_writes_through=True),
    Setting("xfs", "sparse", "writeback"),
    Setting("xfs", "device", "none"),
    Setting("xfs", "sparse", "none", guest_writes_through=True),
)


@dataclass(frozen=True, slots=True)
class Mix:
    """What a load is made of."""

    flushes: float
    """Their part of all requests."""
    zeroes: Literal["never", "in turn", "in the end"]
    """When zeroes are written instead of data."""

    @classmethod
    def of(cls, setting: Setting, number: int) -> "Mix":
        """Rounds differ: whatever is synced makes durable, too, what should have been before.

        A write-through disk has no flushes, and only data or only zeroes at last, so that nothing
        hides it where they are not durable by themselves.
        """
        odd = bool(number % 2)
        if setting.write_through:
            return cls(0.0, "in the end" if odd else "never")
        return cls(OFTEN if odd else RARELY, "in turn")


@dataclass(slots=True)
class Seen:
    """What a number of crashes came to."""

    writes: int = 0
    flushes: int = 0
    lost: int = 0
    """Blocks whose last answered write the crash took, as it may without a flush."""
    wrong: int = 0
    """Blocks that hold what they must not."""
    failed: int = 0
    """Requests answered with an error while the host was well."""

    def add(self, other: "Seen") -> None:
        """Count those of another run as well."""
        self.writes += other.writes
        self.flushes += other.flushes
        self.lost += other.lost
        self.wrong += other.wrong
        self.failed += other.failed


class Load:
    """Writes, zeroes and flushes on all rings, until the host crashes.

    An answer counts if it was seen before.  What comes later nobody would have seen: while the
    file system goes down, of two flushes of one file only one gets a failed write's error.
    """

    def __init__(
        self,
        disks: list[Disk],
        ledger: Ledger,
        chance: random.Random,
        mix: Mix,
        crashed: threading.Event,
    ) -> None:
        self._disks, self._ledger, self._chance = disks, ledger, chance
        self._mix, self._crashed = mix, crashed
        self._writing: list[dict[int, tuple[range, int]]] = [{} for _ in disks]
        self._flushing: list[dict[int, list[int]]] = [{} for _ in disks]
        self._sent = 0
        self.seen = Seen()

    def run(self) -> None:
        """Keep every ring full; returns when nothing is in flight any more."""
        while True:
            for at, disk in enumerate(self._disks):
                while not self._crashed.is_set() and self._in_flight(at) < DEPTH:
                    self._send(at)
                if self._in_flight(at):
                    ended = disk.ended()
                    counts = not self._crashed.is_set()
                    for head, done in ended.items():
                        self._take(at, head, counts=counts, ok=done.status == OK)
            if self._crashed.is_set() and not any(map(self._in_flight, range(len(self._disks)))):
                return

    def _in_flight(self, at: int) -> int:
        return len(self._writing[at]) + len(self._flushing[at])

    def _send(self, at: int) -> None:
        disk = self._disks[at]
        if self._chance.random() < self._mix.flushes:
            covered = self._ledger.flush()
            self._flushing[at][disk.submit(FLUSH)] = covered
            return
        first = self._chance.randrange(BLOCKS - LONGEST)
        blocks = range(first, first + self._chance.randint(1, LONGEST))
        if self._ledger.busy.intersection(blocks):
            blocks = self._idle_block()
        zeroes = self._turn_of_zeroes()
        generation, data = self._ledger.write(blocks, zeroes=zeroes)
        sector, count = blocks[0] * SECTORS, len(blocks) * SECTORS
        if zeroes:
            data = struct.pack("<QII", sector, count, self._chance.choice([0, UNMAP]))
            head = disk.submit(WRITE_ZEROES, 0, data)
        else:
            head = disk.submit(OUT, sector, data)
        self._writing[at][head] = blocks, generation

    def _turn_of_zeroes(self) -> bool:
        self._sent += 1
        match self._mix.zeroes:
            case "never":
                return False
            case "in turn":
                return bool(self._sent // STRETCH % 2)
            case "in the end":
                return self._sent > STRETCH

    def _idle_block(self) -> range:
        block = next(b for b in range(BLOCKS) if b not in self._ledger.busy)
        return range(block, block + 1)

    def _take(self, at: int, head: int, *, counts: bool, ok: bool) -> None:
        self.seen.failed += counts and not ok
        if (covered := self._flushing[at].pop(head, None)) is not None:
            if counts and ok:
                self._ledger.flushed(covered)
                self.seen.flushes += 1
            return
        blocks, generation = self._writing[at].pop(head)
        if counts and ok:
            self._ledger.wrote(blocks, generation)
            self.seen.writes += 1


def make_image(place: Path, kind: str) -> Path:
    """A disk of zeroes, durable; one that is not sparse has all of its blocks allocated."""
    path = place / "disk.img"
    with path.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
        if kind != "sparse":
            file.write(bytes(BLOCKS * BLOCK))
        file.flush()
        os.fsync(file.fileno())
    os.sync()  # its name as well
    return path


@contextlib.contextmanager
def served(path: Path, directory: Path, setting: Setting) -> Iterator[list[Disk]]:
    """Drivers on the rings of a served image; at the end blkd is killed."""
    options = ("--cache", setting.cache, "--queues", RINGS, "--workers", RINGS)
    with Daemon(path, directory, *options) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            disks = list(front_end.disks(RINGS))
            if setting.guest_writes_through:
                front_end.write_config(WRITE_CACHE, b"\0")
            yield disks


@contextlib.contextmanager
def crashing(place: Path, after: float) -> Iterator[threading.Event]:
    """Within, the file system at a place crashes after some seconds, right after the event."""
    root = os.open(place, os.O_RDONLY)
    crashed = threading.Event()

    def shut_down() -> None:
        crashed.set()
        fcntl.ioctl(root, IOC_SHUTDOWN, NO_LOG_FLUSH)

    timer = threading.Timer(after, shut_down)
    timer.start()
    try:
        yield crashed
    finally:
        timer.join()
        os.close(root)


def crash(setting: Setting, directory: Path, chance: random.Random, mix: Mix) -> Seen:
    """One crash under load, and what is on the disk afterwards."""
    disk = directory / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    run(f"mkfs.{setting.file_system}", "-q", disk)
    ledger = Ledger(BLOCKS, write_through=setting.write_through)
    after = chance.uniform(SOONEST, LATEST)
    with mounted(disk, directory / "before", "-o", "loop") as place:
        path = make_image(place, setting.image)
        device = setting.image == "device"
        on = loop_device(path) if device else contextlib.nullcontext(path)
        with (
            on as image,
            served(image, directory, setting) as disks,
            crashing(place, after) as crashed,
        ):
            load = Load(disks, ledger, chance, mix, crashed)
            load.run()
    with mounted(disk, directory / "after", "-o", "loop") as place:
        judge(place / "disk.img", ledger, load.seen)
    return load.seen


def judge(path: Path, ledger: Ledger, seen: Seen) -> None:
    """Hold every block against what it may be."""
    data = path.read_bytes()
    for block in range(ledger.blocks):
        found = data[block * BLOCK : (block + 1) * BLOCK]
        seen.wrong += not ledger.allows(block, found)
        seen.lost += ledger.lost(block, found)


async def drill(
    rounds: int, *, settings: tuple[Setting, ...] = SETTINGS, seed: int | None = None
) -> Outcome:
    """Crash the host `rounds` times in each setting.  Needs root, for mounts."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    total, idle = Seen(), 0
    for setting in settings:
        here = Seen()
        for number in range(rounds):
            mix = Mix.of(setting, number)
            with tempfile.TemporaryDirectory(prefix="crash-") as name:
                here.add(await asyncio.to_thread(crash, setting, Path(name), chance, mix))
        # A drill that loses nothing shows nothing: the crash was none, or all was durable anyway.
        idle += not setting.write_through and here.lost == 0
        total.add(here)
    return Outcome(
        drill="host crash",
        rounds=rounds * len(settings),
        errors=total.wrong + total.failed + idle,
        figures={
            "writes acknowledged": total.writes,
            "flushes acknowledged": total.flushes,
            "blocks lost that no flush had covered": total.lost,
            "blocks lost in spite of a flush": total.wrong,
        },
    )
