# SPDX-License-Identifier: Apache-2.0
"""Records on disk, of exports or of groups: a file each, replaced in one step or not at all."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import aiofiles
import aiofiles.os

from blkd.errors import ConfigError, StateError

SUFFIX: Final = ".toml"
WRITE_LIMIT: Final = 10.0  # seconds that the disk may take for a record
TEMPORARY: Final = ".new"
"""Behind the name of a file that is being written: left only by a daemon that was killed."""
OWNERS_MODE: Final = 0o600
MAX_RECORD: Final = 1024 * 1024  # bytes of a file that is read at all


class Record(Protocol):
    """What is kept."""

    @property
    def name(self) -> str:
        """What its file is called, without the suffix."""

    def write(self) -> bytes:
        """The content of its file."""


Kept = TypeVar("Kept", bound=Record)


class RecordStore(Generic[Kept]):
    """The records in one directory, of which one daemon alone writes.

    What somebody else has written since it was last read is never overwritten.
    """

    def __init__(self, directory: Path, read: Callable[[bytes, str, str], Kept]) -> None:
        """Keep what `read` makes of a file: of its content, where that is, and the name."""
        self._directory = directory
        self._read = read
        self._known: dict[str, bytes | None] = {}
        """What the file of each name has; None where that is no record."""

    def path(self, name: str) -> Path:
        """Where the record of that name is."""
        return self._directory / f"{name}{SUFFIX}"

    async def load(self) -> dict[str, Kept | ConfigError]:
        """All records by name, or why a file is none.  Raises StateError."""
        with _refusals(self._directory):
            async with asyncio.timeout(WRITE_LIMIT):
                names = await aiofiles.os.listdir(self._directory)
                for left in (name for name in names if name.endswith(SUFFIX + TEMPORARY)):
                    await aiofiles.os.unlink(self._directory / left)
        found: dict[str, Kept | ConfigError] = {}
        for file in sorted(name for name in names if name.endswith(SUFFIX)):
            name = file.removesuffix(SUFFIX)
            shown = os.fsencode(name).decode(errors="backslashreplace")
            found[shown] = await self._load(name)
        return found

    async def _load(self, name: str) -> Kept | ConfigError:
        path = self.path(name)
        self._known[name] = None
        if not name.isascii():
            return ConfigError(f"{os.fsencode(path)!r}: nothing is called so")
        try:
            content = await _read(path)
            record = self._read(content, str(path), name)
        except (OSError, TimeoutError) as error:
            return ConfigError(f"{path}:1: cannot be read: {error}")
        except ConfigError as error:
            error.hint = "mend or remove the file, and start blkd daemon again"
            return error
        self._known[name] = content
        return record

    async def write(self, record: Kept) -> None:
        """Keep a record: when this returns it is there after a power failure too.

        Raises StateError: the file is as it was.
        """
        path, content = self.path(record.name), record.write()
        if self._known.get(record.name, b"") == content:
            return
        temporary = path.with_name(path.name + TEMPORARY)
        with _refusals(path):
            async with asyncio.timeout(WRITE_LIMIT):
                try:
                    await _write_whole(temporary, content)
                    await self._require_known(record.name)
                    await aiofiles.os.replace(temporary, path)
                except (OSError, StateError):  # not where the disk does not answer
                    with contextlib.suppress(OSError):
                        await aiofiles.os.unlink(temporary)
                    raise
                self._known[record.name] = content
                await asyncio.to_thread(_sync_directory, self._directory)

    async def remove(self, name: str) -> None:
        """Forget a record.  Raises StateError: it is still there."""
        path = self.path(name)
        with _refusals(path):
            async with asyncio.timeout(WRITE_LIMIT):
                await self._require_known(name)
                with contextlib.suppress(FileNotFoundError):
                    await aiofiles.os.unlink(path)
                self._known.pop(name, None)
                await asyncio.to_thread(_sync_directory, self._directory)

    async def _require_known(self, name: str) -> None:
        """Raise StateError if the file is not what this has last read or written there."""
        path, known = self.path(name), self._known.get(name, b"")
        try:
            found = await _read(path)
        except FileNotFoundError:
            return  # nothing is there that could be lost
        if found != known:
            raise StateError(
                f"{path} was written by somebody else, and is left as it is",
                hint="end blkd daemon before a record is edited",
            )


async def _read(path: Path) -> bytes:
    async with asyncio.timeout(WRITE_LIMIT), aiofiles.open(path, "rb") as file:
        content = await file.read(MAX_RECORD)
    return bytes(content)


async def _write_whole(path: Path, content: bytes) -> None:
    """Write a new file to the disk itself."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, OWNERS_MODE)

    async with aiofiles.open(path, "wb", opener=opener) as file:
        await file.write(content)
        await file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Raise StateError for what goes wrong with `path`."""
    try:
        yield
    except TimeoutError as error:
        raise StateError(f"{path}: the disk does not answer within {WRITE_LIMIT:g} s") from error
    except OSError as error:
        hint = "make room for it" if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
        raise StateError(f"{path}: {error.strerror}", hint=hint) from error
