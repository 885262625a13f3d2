# SPDX-License-Identifier: Apache-2.0
"""A kind of image whose I/O is done by an engine of another module, as that of a library would be.

It shows blkd no descriptor.  While there is a file beside the image, see `stall_of`, nothing that
was started ends.
"""

import dataclasses
import os
import sys
import zlib
from pathlib import Path

from blkd.late_engine import LateEngine

from blkd.errors import ImageError
from blkd.image import kinds
from blkd.image.base import Limits, Opening
from blkd.image.engine import Engine, ForeignIo
from blkd.image.watch import NoOccasion

DELAY = 300  # microseconds
BLOCK = 512


class LateImage:
    """Plays `image.base.Image`; nobody else has it, so there is no lock."""

    direct = True
    is_locked = True
    engine = Engine("late", nowait=False, reason="a library does it")

    def __init__(self, path: str, opening: Opening) -> None:
        self.path = path
        self.read_only = opening.read_only
        self.identity = os.path.realpath(path)
        try:
            self._fd = os.open(path, os.O_RDONLY if opening.read_only else os.O_RDWR)
        except OSError as error:
            raise ImageError(f"{path}: cannot be opened: {error.strerror}") from error
        stall = os.fsencode(stall_of(Path(path)))
        self._engine = LateEngine(self._fd, stall, DELAY, zlib.crc32(path.encode()))
        block = opening.logical_block_size or BLOCK
        self.limits = Limits(
            size=os.fstat(self._fd).st_size,
            logical_block_size=block,
            physical_block_size=max(block, 4096),
            optimal_io_size=0,
            memory_alignment=1,
            discard_granularity=max(block, 4096),
            punches=True,
            is_block_device=False,
        )

    def io(self, _worker: int) -> ForeignIo:
        return ForeignIo(self._engine.functions)

    @property
    def ended(self) -> int:
        """How many Ios the engine has ended."""
        return self._engine.ended

    def space(self) -> None:
        """Nobody has to know."""

    def write_error(self) -> int:
        return 0

    async def take_lock(self) -> None:
        pass

    async def release_lock(self) -> None:
        pass

    def lent(self) -> None:
        """Its name says all."""

    async def set_size(self, size: int) -> None:
        pass

    def watch(self, _period: float) -> NoOccasion:
        return NoOccasion()

    async def measure(self) -> int:
        return os.fstat(self._fd).st_size

    async def refresh(self) -> bool:
        before = self.limits
        self.limits = dataclasses.replace(before, size=await self.measure())
        return self.limits != before

    async def resize(self, size: int) -> None:
        os.truncate(self._fd, size)
        await self.refresh()

    def close(self) -> None:
        if self._fd >= 0:
            self._engine.close()
            os.close(self._fd)
            self._fd = -1


async def open_late(name: str, opening: Opening) -> LateImage:
    return LateImage(name, opening)


def adopt_late(name: str, lent: int | None, opening: Opening, _is_locked: bool) -> LateImage:  # noqa: FBT001 - as Kind has it
    assert lent is None
    return LateImage(name, opening)


def install() -> None:
    """Have blkd, in this process, serve every file by the late engine."""
    kinds.RAW = kinds.Kind(open_late, adopt_late)


def stall_of(image: Path) -> Path:
    """The file that stalls an image while it is there."""
    return image.with_name(f"{image.name}.stall")


PROGRAM = """#!{python}
import sys
sys.path.append({root!r})  # behind what is to be tested
from tests.engines import late
late.install()
from blkd.cli.main import main
main()
"""


def make_programs(directory: Path) -> Path:
    """A directory with a `blkd` that serves every file by the late engine."""
    program = directory / "blkd"
    root = str(Path(__file__).parents[2])
    program.write_text(PROGRAM.format(python=sys.executable, root=root))
    program.chmod(0o755)
    return directory
