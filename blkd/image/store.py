# SPDX-License-Identifier: Apache-2.0
"""Images at rest: making them and looking at them."""

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Literal

import aiofiles
import aiofiles.os
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from blkd.errors import ImageError
from blkd.image import kernel, lock, raw

CHUNK: Final = bytes(1 << 20)
"""What is written at a time where space can only be had by writing zeros."""

OWNERS_MODE: Final = 0o600  # of a new image: what is in a guest's disk is nobody else's business


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What there is to know of an image that nobody needs to serve; bytes unless said."""

    path: str
    kind: Literal["file", "block device"]
    filesystem: str | None
    """None for a block device."""
    size: int
    allocated: int
    """What it takes of the disk below: less than `size` where it is sparse."""
    logical_block_size: int
    """The smallest that can be served."""
    physical_block_size: int
    memory_alignment: int
    direct: bool
    """Whether O_DIRECT can be had; the alignments are those without it if not."""
    foreign_format: str | None
    """Another format that it looks like: then it is served only with `--format raw`."""
    locked_by: list[lock.Holder]


async def create(
    path: str,
    size: int,
    *,
    preallocate: bool,
    place: str | None = None,
    report: Callable[[float], None] = lambda _: None,
) -> None:
    """Make an image of `size` bytes that read as zeros; an existing file is never touched.

    Only its owner may open it.  With `preallocate` its space is taken now, so that no write
    can find the disk full.  When this returns the image would survive a power failure; when
    it raises, nothing of it is left.

    Args:
        path: What the image is called, and where it is made if there is no `place`.
        size: In bytes.
        preallocate: Whether its space is taken.
        place: Another path of the same file, by which it is reached.
        report: Called with how much of it is done, from 0 to 1, where that takes long.

    Raises:
        ImageError: The size or the place is no good, or the space is not there.
    """
    if size <= 0 or size % kernel.SECTOR_BYTES:
        raise ImageError(
            f"{path}: a size of {size} bytes is not one or more sectors of {kernel.SECTOR_BYTES}"
        )
    at = place or path
    try:
        async with aiofiles.open(at, "xb", opener=_for_the_owner) as file:
            try:
                await file.truncate(size)
                if preallocate and not await asyncio.to_thread(_allocate, _copy(file), size):
                    for offset in range(0, size, len(CHUNK)):
                        await file.write(CHUNK[: size - offset])
                        report(offset / size)
                    await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
                await asyncio.to_thread(_sync_directory, Path(at).parent)
            except BaseException:
                await aiofiles.os.unlink(at)
                raise
    except OSError as error:
        raise _refusal(path, size, error) from error


async def info(path: str) -> ImageInfo:
    """What the image at `path` is; it may be in use.  Raises ImageError if it is none."""
    return await asyncio.to_thread(look_at, path)


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, OWNERS_MODE)


def _copy(file: AsyncBufferedIOBase) -> FileIO:
    """The file once more, for a thread that may outlive a cancelled `create`.

    Not by its path, where somebody may have put a link to another file by now.
    """
    return FileIO(os.dup(file.fileno()), "r+b")


def _allocate(file: FileIO, size: int) -> bool:
    """Take the space of `file`, and close it; False where its file system cannot."""
    with file:
        try:
            kernel.fallocate(file.fileno(), kernel.Fallocate.ALLOCATE, 0, size)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(path: str, size: int, error: OSError) -> ImageError:
    """What to say to a person whose image could not be made."""
    hint: str | None = None
    match error.errno:
        case errno.EEXIST:
            hint = "take another name: an existing file is never overwritten"
        case errno.ENOENT:
            hint = f"make the directory {Path(path).parent} first"
        case errno.ENOSPC | errno.EDQUOT:
            free = os.statvfs(Path(path).parent)
            hint = (
                f"{size} bytes asked for, {free.f_bavail * free.f_frsize} free;"
                " without --preallocate it takes space as it is written"
            )
        case errno.EFBIG:
            hint = "the file system cannot have so large a file"
    return ImageError(f"{path}: cannot be created: {error.strerror}", hint=hint)


def look_at(path: str) -> ImageInfo:
    """What `info` answers; blocks."""
    try:
        fd, direct = raw.open_file(path, read_only=True, direct=True), True
    except ImageError as error:
        if getattr(error.__cause__, "errno", None) != errno.EINVAL:
            raise
        fd, direct = raw.open_file(path, read_only=True, direct=False), False
    try:
        facts = kernel.facts(fd)
        status = os.fstat(fd)
        occupied = status.st_blocks * kernel.SECTOR_BYTES
        return ImageInfo(
            path=path,
            kind="block device" if facts.is_block_device else "file",
            filesystem=None if facts.is_block_device else kernel.filesystem(fd),
            size=facts.size,
            allocated=facts.size if facts.is_block_device else occupied,
            logical_block_size=facts.offset_alignment,
            physical_block_size=facts.physical_block_size,
            memory_alignment=facts.memory_alignment,
            direct=direct,
            foreign_format=kernel.foreign_format(fd),
            locked_by=lock.holders(fd),
        )
    finally:
        os.close(fd)
