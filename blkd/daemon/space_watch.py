# SPDX-License-Identifier: Apache-2.0
"""The room that the file systems of images have left, looked at now and then.

A file system may hang: each question has a thread of its own and a limit, and none is asked again
before it has answered.  All images of a file system are looked at in one thread, so that hundreds
of idle disks cost one wake-up in half a minute.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from blkd.daemon.event_list import EventList
from blkd.daemon.observed import Space
from blkd.daemon.room import Measured, Threshold
from blkd.host.blocking import ask
from blkd.image.kernel import SECTOR_BYTES

PERIOD: Final = 30.0  # seconds between two looks at an image
PERIOD_NEAR: Final = 5.0  # ... where the threshold is near
LIMIT: Final = 2.0  # seconds that a file system has
MOST_AT_ONCE: Final = 8  # threads that wait for an answer


class Written(Protocol):
    """An export, of which the image may be a file that grows."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def written_file(self) -> str | None:
        """The file that a guest is to write to; None of another image, and while none is to."""

    async def until_written(self) -> None:
        """Wait until there is a `written_file`."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an image lies."""

    path: str
    device: int


@dataclass(slots=True)
class _FileSystem:
    """Whether a file system is being looked at, and on which occasion it was."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    tick: int = -1


class SpaceWatch:
    """What is known of the room for each image of a daemon."""

    def __init__(self, threshold: Threshold, events: EventList) -> None:
        self._threshold = threshold
        self._events = events
        self._spaces: dict[str, Space] = {}
        self._followed: set[str] = set()
        self._places: dict[str, _Place] = {}
        """Of exports whose images were measured."""
        self._file_systems: dict[int, _FileSystem] = {}
        """By their device numbers."""
        self._silent: set[str | int] = set()
        """Exports, and file systems, whose question is not answered yet."""
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        """Given back by who has answered, be it too late."""

    def of(self, name: str) -> Space | None:
        """The room for the image of an export; None where that is no file, or not known."""
        return self._spaces.get(name)

    async def follow(self, export: Written) -> None:
        """Look after the room for the image of an export, until cancelled."""
        name = export.name
        self._followed.add(name)
        try:
            while True:
                if (path := export.written_file) is None:
                    self._forget(name)
                    await export.until_written()  # for as long as no guest writes
                    continue
                with contextlib.suppress(OSError):  # what was known is all that is known
                    await self._look(name, path)
                await asyncio.sleep(_until_next(self._period(name)))
        finally:
            self._followed.discard(name)
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._spaces.pop(name, None)
        self._places.pop(name, None)

    def _period(self, name: str) -> float:
        space = self.of(name)
        return PERIOD_NEAR if space and self._threshold.is_near(space) else PERIOD

    async def _look(self, name: str, path: str) -> None:
        """Look at an image and, where its file system is known, at all others there.

        Raises OSError.
        """
        place = self._places.get(name)
        if place is None or place.path != path:
            await self._measure(name, {name: path})
            return
        below = self._file_systems.setdefault(place.device, _FileSystem())
        async with asyncio.timeout(LIMIT):
            await below.turn.acquire()
        try:
            if below.tick != (tick := _tick()):
                below.tick = tick
                there = {
                    other: each.path
                    for other, each in self._places.items()
                    if each.device == place.device
                }
                await self._measure(place.device, there)
        finally:
            below.turn.release()

    async def _measure(self, what: str | int, paths: Mapping[str, str]) -> None:
        """Ask of these images, by their exports, and keep what is answered.  Raises OSError."""
        if what in self._silent:
            raise TimeoutError
        loop = asyncio.get_running_loop()

        def answer() -> dict[str, Measured | None]:
            found = {}
            try:
                for name, path in paths.items():
                    with contextlib.suppress(OSError):
                        found[name] = measure(path)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                    loop.call_soon_threadsafe(self._answered, what)
            return found

        async with asyncio.timeout(LIMIT):
            await self._turns.acquire()
        self._silent.add(what)
        try:
            answers = await ask(answer, LIMIT)
        except BlockingIOError:  # there was no thread to be had
            self._answered(what)
            raise
        for name in answers.keys() & self._followed:
            self._learn(name, paths[name], answers[name])

    def _answered(self, what: str | int) -> None:
        self._silent.discard(what)
        self._turns.release()

    def _learn(self, name: str, path: str, measured: Measured | None) -> None:
        """Keep what was measured, and tell of what it comes to."""
        if measured is None:
            self._forget(name)
            return
        self._places[name] = _Place(path, measured.device)
        before = self.of(name)
        space = self._spaces[name] = self._threshold.judge(measured, before)
        was_full = before is not None and before.nearly_full
        if space.nearly_full and not was_full:
            self._events.tell(
                "image nearly full",
                export=name,
                level="warning",
                image=path,
                free=space.free,
                file_system=space.total,
            )
        elif was_full and not space.nearly_full:
            self._events.tell("image not nearly full any more", export=name, free=space.free)


def measure(path: str) -> Measured | None:
    """The room for the image at `path`; None of what is no file.  Blocks.  Raises OSError."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        return None
    below = os.statvfs(path)
    return Measured(
        device=status.st_dev,
        free=below.f_bavail * below.f_frsize,
        total=below.f_blocks * below.f_frsize,
        size=status.st_size,
        allocated=status.st_blocks * SECTOR_BYTES,
    )


def _until_next(period: float) -> float:
    """Seconds to the next of the moments that all images have in common: one wake-up for all."""
    return period - asyncio.get_running_loop().time() % period


def _tick() -> int:
    """The number of the present one of these moments."""
    return int(asyncio.get_running_loop().time() // PERIOD_NEAR)
