# SPDX-License-Identifier: Apache-2.0
"""What stands behind a disk: the role every kind of image plays."""

from dataclasses import dataclass
from typing import Literal, Protocol

from blkd.image.engine import Engine, EngineChoice, Io
from blkd.image.opener import Opener

ImageFormat = Literal["raw"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel says of an image; all in bytes, all checked against each other."""

    size: int
    """A multiple of `logical_block_size`."""
    logical_block_size: int
    """Smallest unit of I/O, 512 or 4096: the offset alignment of direct I/O at least."""
    physical_block_size: int
    """Unit that the medium writes without reading first; a multiple of the logical one."""
    optimal_io_size: int
    """Preferred size of a request, 0 where unknown."""
    memory_alignment: int
    """Alignment that direct I/O asks of buffers; 1 where it asks nothing of them, not even of their
    lengths, as without O_DIRECT."""
    discard_granularity: int
    """Unit in which space is given back, 0 where it cannot be."""
    punches: bool
    """Whether that may be done by punching holes, which then read as zeroes."""
    is_block_device: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How an image is to be opened or, for `adopt`, is open."""

    read_only: bool
    direct: bool
    """Past the host's page cache (O_DIRECT), where there is one."""
    logical_block_size: int | None
    """512, 4096 or None for the smallest that can be served."""
    engine: EngineChoice = "auto"
    """How to do I/O; `auto` asks the image."""
    workers: int = 1
    """How many are to do so."""
    incoming: bool = False
    """Leave the lock to somebody else until `take_lock`."""
    at: str | None = None
    """Where to open what the name is a path of, if not there: /proc/self/fd/N for a descriptor."""
    opener: Opener | None = None
    """Who opens the image once more, later, for a process that will not be able to; it is told of
    the image as soon as that is open.  None: the process itself."""
    image_format: ImageFormat | None = None
    """`raw` where the bytes are the disk's whatever they look like; None refuses what looks like an
    image of another format."""


class Watch(Protocol):
    """The next occasion on which an image may have got another size; armed when made."""

    async def arm(self) -> None:
        """Ask for the next one, after `wait` has returned."""

    async def wait(self) -> None:
        """Return once there was one after the watch was armed.  Raises OSError if it cannot."""

    def close(self) -> None:
        """Give up what is watched with."""


class Image(Protocol):
    """An open image, locked but for one that is, or was, another host's for a while.

    It need not have a descriptor: what the data path does I/O with is `io`'s affair, and what
    another process needs to go on with it is `lent`'s.
    """

    path: str

    @property
    def identity(self) -> str:
        """What distinguishes it from all other images, from start to start."""

    def io(self, worker: int) -> Io:
        """How this worker, counted from 0, reads and writes it; what that names is the image's."""

    @property
    def read_only(self) -> bool:
        """Whether it is never written to."""

    @property
    def direct(self) -> bool:
        """Whether its writes have errors of their own, as with direct I/O.

        Else a sync that fails says that what was acknowledged is lost, and no later one says so.
        """

    def write_error(self) -> int:
        """The errno of what could not be written and no sync of ours has reported, else 0.

        Returns at once: what is still to be written may fail later.
        """

    def space(self) -> int | None:
        """Bytes that are free for what is still to be allocated of it; may block.

        None where it takes no space of a file system.  Raises OSError.
        """

    @property
    def limits(self) -> Limits:
        """As last measured."""

    @property
    def engine(self) -> Engine:
        """How the data path is to do I/O."""

    @property
    def is_locked(self) -> bool:
        """Whether it is locked, and with that ours to write to."""

    async def take_lock(self) -> None:
        """Lock it if it is not; `limits` are then as measured under the lock.

        Raises ImageBusy where somebody else has it for some seconds, ImageError where it
        cannot be opened any more.
        """

    async def release_lock(self) -> None:
        """Make durable what was written and give the lock up, until `take_lock`.

        Nothing is in flight.  Raises ImageError, and keeps the lock, where that cannot be:
        SyncFailed if what was written may be lost.
        """

    def lent(self) -> int | None:
        """The descriptor that a process needs, besides the name, to `adopt` it: borrowed.

        None where the name says all.
        """

    async def set_size(self, size: int) -> None:
        """Be as large as the process that had it before says, if nothing else says so."""

    def watch(self, period: float) -> "Watch":
        """A watch for occasions on which it may have got another size; armed.

        Where nothing announces them, there is one every `period` seconds.
        """

    async def measure(self) -> int:
        """The size now, in whole blocks.  Raises ImageError where it is not known in time."""

    async def refresh(self) -> bool:
        """Ask for the size again: whether `limits` changed.  Raises ImageError as `measure`."""

    async def resize(self, size: int) -> None:
        """Make the image `size` bytes long.  Raises ImageError where that cannot be.

        SyncFailed says that also what was written before may be lost.
        """

    def close(self) -> None:
        """Give it up, and the lock; may be called twice.  Nothing is in flight."""
