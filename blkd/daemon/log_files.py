# SPDX-License-Identifier: Apache-2.0
"""What the processes of exports log: a file each, which outlives them and their daemon.

Each process writes into its own file by O_APPEND, whoever else lives.  The daemon follows the
files by inotify, and cuts those that have grown too long.
"""

import asyncio
import contextlib
import datetime as dt
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from blkd.errors import StateError
from blkd.host.blocking import ask
from blkd.host.directory_watch import DirectoryWatch

SUFFIX: Final = ".jsonl"
MOST_BYTES: Final = 1024 * 1024
"""A file that is longer is cut to its last half."""
READ_BYTES: Final = 256 * 1024
"""What is read of one file at a time: of a process that writes faster, the middle is left out."""
MAX_LINE: Final = 16 * 1024  # bytes; of a longer one the beginning is passed on
MOST_LINES: Final = 500
"""That are passed on of one export in a PERIOD: it holds back by itself what comes too often."""
PERIOD: Final = 10.0  # seconds
MAX_PARTS: Final = 256  # objects and lists in it: each takes much more memory than its two bytes
CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey; JSON writes most of it otherwise."""
OWNERS_MODE: Final = 0o600
LIMIT: Final = 10.0  # seconds that the disk may take

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Logged:
    """One line of a log."""

    export: str
    line: str
    event: dict[str, Any] | None
    """None where it is no JSON object."""

    @property
    def time(self) -> float | None:
        """When, in seconds since 1970, if it says so."""
        try:
            return dt.datetime.fromisoformat(str((self.event or {})["timestamp"])).timestamp()
        except (KeyError, ValueError, OverflowError):
            return None


class LogFiles:
    """The logs in one directory."""

    def __init__(self, directory: Path, take: Callable[[Logged], None]) -> None:
        """Have `take` called with each line that is written once `follow` runs."""
        self._directory = directory
        self._take = take
        self._ends: dict[str, int] = {}
        """Up to where each file was read."""
        self._rests: dict[str, bytes] = {}
        self._periods: dict[str, tuple[float, int]] = {}
        """Of each export when its present period ends, and how many lines came in it."""

    def path(self, name: str) -> Path:
        """The log of an export."""
        return self._directory / f"{name}{SUFFIX}"

    async def open(self, name: str) -> int:
        """A descriptor to append to the log of an export, which is the caller's.

        Raises StateError.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        path = self.path(name)
        try:
            return await ask(lambda: os.open(path, flags, OWNERS_MODE), LIMIT)
        except (OSError, TimeoutError) as error:
            raise StateError(f"{path}: cannot be written: {error}") from error

    async def remove(self, name: str) -> None:
        """Forget the log of an export, all of which is passed on; if it cannot go, it stays."""
        await self._read({name})
        self._ends.pop(name, None)
        self._rests.pop(name, None)
        self._periods.pop(name, None)
        with contextlib.suppress(OSError, TimeoutError):
            await ask(self.path(name).unlink, LIMIT)

    async def tail(self, name: str, lines: int) -> list[Logged]:
        """The last `lines` of a log."""
        try:
            content = await ask(lambda: _read_end(self.path(name), MOST_BYTES), LIMIT)
        except (OSError, TimeoutError):
            return []
        found = content.split(b"\n")[:-1]
        return [_logged(name, line) for line in found[len(found) - min(lines, len(found)) :]]

    async def follow(self) -> None:
        """Pass on what is written from now on, for ever.  Raises OSError or TimeoutError."""
        with contextlib.closing(DirectoryWatch(self._directory)) as watch:
            self._ends = await ask(self._sizes, LIMIT)
            while True:
                written = await watch.written()
                names = None if written is None else {_name(file) for file in written} - {None}
                await self._read(set(self._ends) if names is None else {*filter(None, names)})

    def _sizes(self) -> dict[str, int]:
        """The length of each file, by the name of its export."""
        return {
            name: file.stat().st_size
            for file in os.scandir(self._directory)
            if (name := _name(file.name)) is not None
        }

    async def _read(self, names: set[str]) -> None:
        """Pass on what is new in the files of these exports."""
        ends = {name: self._ends.get(name, 0) for name in names}
        try:
            read = await ask(lambda: {name: self._piece(name, ends[name]) for name in ends}, LIMIT)
        except (OSError, TimeoutError):
            return  # the next line brings it all
        for name, (content, end) in read.items():
            self._ends[name] = end
            *lines, rest = (self._rests.get(name, b"") + content).split(b"\n")
            self._rests[name] = rest[-MAX_LINE:]
            for line in filter(None, lines):
                self._pass_on(name, line)
        await asyncio.sleep(0)

    def _pass_on(self, name: str, line: bytes) -> None:
        """Pass on a line, unless its export logs too much: whoever serves a guest may be its."""
        now = time.monotonic()
        end, count = self._periods.get(name, (0.0, 0))
        if now >= end:
            end, count = now + PERIOD, 0
        self._periods[name] = end, count + 1
        if count < MOST_LINES:
            self._take(_logged(name, line))
        elif count == MOST_LINES:
            log.warning("log lines left out", export=name, most=MOST_LINES)

    def _piece(self, name: str, start: int) -> tuple[bytes, int]:
        """What a file has from `start` on, and where it ends; cut it if it is too long."""
        path = self.path(name)
        try:
            size = path.stat().st_size
            if size < start:  # somebody else has cut it
                start = 0
            content = _read(path, max(start, size - READ_BYTES), size)
            if size > MOST_BYTES:
                return content, _cut(path)
        except OSError:
            return b"", start
        return content, size


def _name(file: str) -> str | None:
    """The export whose log a file is."""
    return file.removesuffix(SUFFIX) if file.endswith(SUFFIX) else None


def _read(path: Path, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`; blocks."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        return file.read(end - start)


def _read_end(path: Path, count: int) -> bytes:
    """The last `count` bytes of a file, or all of it; blocks."""
    with path.open("rb", buffering=0) as file:
        file.seek(-min(count, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return file.read(count)


def _cut(path: Path) -> int:
    """Cut a file to its last whole lines, half of MOST_BYTES: the size now.

    A line that is written just between the two steps is lost here; not in the daemon's own log.
    """
    kept = _read_end(path, MOST_BYTES // 2).partition(b"\n")[2]
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "ab", buffering=0) as file:
        file.truncate(0)
        file.write(kept)
        return os.fstat(fd).st_size


def _logged(name: str, line: bytes) -> Logged:
    event: dict[str, Any] | None = None
    if len(line) <= MAX_LINE and line.count(b"{") + line.count(b"[") <= MAX_PARTS:
        with contextlib.suppress(msgspec.DecodeError):
            event = msgspec.json.decode(line, type=dict[str, Any])
    text = line[:MAX_LINE].decode(errors="backslashreplace")
    return Logged(name, CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text), event)
