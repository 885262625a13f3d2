# SPDX-License-Identifier: Apache-2.0
"""Images in the directories of a daemon: made, listed, deleted."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from blkd.daemon import places
from blkd.errors import ImageError
from blkd.host.blocking import ask
from blkd.image import kernel, lock, store
from blkd.image.kinds import path_of

T = TypeVar("T")

LIMIT: Final = 10.0  # seconds that a file system has
DEEPEST: Final = 4  # directories beneath one of the daemon's in which images are looked for
MOST_FILES: Final = 10_000


async def create(
    path: str,
    directories: Sequence[str],
    size: int,
    *,
    preallocate: bool,
    report: Callable[[float], None],
) -> None:
    """Make an image of `size` bytes at `path`; for the rest see `store.create`.

    Raises ImageError also where it would lie outside of `directories`.
    """
    directory, name = await _answer(lambda: places.open_directory_of(path, directories), path)
    try:
        place = f"/proc/self/fd/{directory}/{name}"
        await store.create(path, size, preallocate=preallocate, place=place, report=report)
    finally:
        os.close(directory)


async def delete(path: str, directories: Sequence[str]) -> None:
    """Delete an image that nobody uses: its lock is taken first.

    Raises ImageError where it does not lie beneath one of `directories`, or is no file.
    """
    await _answer(lambda: _delete(path, directories), path)


async def require_deletable(path: str, directories: Sequence[str]) -> None:
    """Raise ImageError where `delete` would, whoever uses the image."""
    os.close(await _answer(lambda: places.open_place(path, directories, ()), path))


async def user_of(path: str, users: Mapping[str, str]) -> str | None:
    """Which of `users`, images by who has them, has the file at `path`, by whatever path."""

    def find() -> str | None:
        file = os.stat(path)  # noqa: PTH116 - for samestat
        for user, image in users.items():
            with contextlib.suppress(OSError, ImageError):
                if (place := path_of(image)) and os.path.samestat(file, os.stat(place)):  # noqa: PTH116
                    return user
        return None

    return await _answer(find, path)


async def images(directories: Sequence[str]) -> list[tuple[str, int, int]]:
    """Path, size and allocated bytes of each image, by path."""
    return await _answer(lambda: sorted(_images(directories)), "the directories of images")


async def _answer(call: Callable[[], T], path: str) -> T:
    try:
        return await ask(call, LIMIT)
    except TimeoutError:
        raise ImageError(f"{path}: its file system does not answer in {LIMIT:g} s") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _delete(path: str, directories: Sequence[str]) -> None:
    directory, name = places.open_directory_of(path, directories)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, directory)
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        undo.callback(os.close, file)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ImageError(f"{path} is no file")
        lock.acquire(file, path, lock.WRITER)
        if not os.path.samestat(
            os.fstat(file), os.stat(name, dir_fd=directory, follow_symlinks=False)
        ):
            raise ImageError(f"{path} has become another file meanwhile")
        os.unlink(name, dir_fd=directory)


def _images(directories: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    left = MOST_FILES
    for directory in directories:
        deepest = directory.rstrip("/").count("/") + DEEPEST
        for place, inner, files in os.walk(directory):
            if place.count("/") >= deepest:
                inner.clear()
            for name in files[:left]:
                path = Path(place, name)
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        yield str(path), status.st_size, status.st_blocks * kernel.SECTOR_BYTES
            left -= min(left, len(files))
