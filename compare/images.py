# SPDX-License-Identifier: Apache-2.0
"""The images that are measured: written from end to end, and gone afterwards."""

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from compare.cases import Backing

CHECKOUT: Final = Path(__file__).parents[1]
PLACES: Final = {Backing.TMPFS: Path("/dev/shm"), Backing.EXT4: CHECKOUT / "build"}  # noqa: S108 - that is where tmpfs is
MIB: Final = 1 << 20
GIB: Final = 1 << 30
IMAGE_BYTES: Final = GIB
SEED: Final = 1


@contextlib.contextmanager
def images(kinds: set[Backing], size: int = IMAGE_BYTES) -> Iterator[Mapping[Backing, str]]:
    """An image of each kind, as `blkd serve` names it; they go when the context ends."""
    names = {Backing.NULL: f"null:{size}"}
    with contextlib.ExitStack() as undo:
        for kind in sorted(kinds - {Backing.NULL}):
            PLACES[kind].mkdir(exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix="blkd-bench-", dir=PLACES[kind])
            path = Path(undo.enter_context(made)) / "disk.img"
            write(path, size)
            names[kind] = str(path)
        yield names


def write(path: Path, size: int) -> None:
    """A file of `size` bytes, whole MiB, all of them allocated, written and on the disk.

    Space that is only allocated is served from nowhere, and much faster.  The content is
    random, since some storage treats zeros in a way of their own.  The page cache keeps nothing.
    """
    data = bytearray(random.Random(SEED).randbytes(MIB))  # noqa: S311 - no secret
    with path.open("xb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for n in range(size // MIB):
            data[:8] = n.to_bytes(8)
            file.write(data)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def sparse(size: int) -> Iterator[str]:
    """An image on tmpfs of which nothing is allocated."""
    with tempfile.TemporaryDirectory(prefix="blkd-bench-", dir=PLACES[Backing.TMPFS]) as name:
        path = Path(name) / "sparse.img"
        path.touch()
        os.truncate(path, size)
        yield str(path)
