# SPDX-License-Identifier: Apache-2.0
"""What stands behind a disk: the role every kind of image plays."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from blkd.image.engine import Engine


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


FaultAction = Literal["fail", "delay", "short"]
FaultKind = Literal["read", "write", "flush", "discard", "zeroes"]


class Fault(NamedTuple):
    """What an image is to do wrong, and when; the data path takes it as it stands."""

    action: FaultAction
    """`fail`: an I/O error; `delay`: later; `short`: only a part at first."""
    kinds: tuple[FaultKind, ...]
    every: int
    """The n-th request that it touches."""
    start: int
    end: int
    """Bytes of the disk, the last one not included, that a read or write must touch; a rule for
    a part of the disk is for reads and writes only."""
    delay: int
    """Nanoseconds."""


class Image(Protocol):
    """An open image, locked but for one that is, or was, another host's for a while."""

    path: str

    @property
    def identity(self) -> str:
        """What tells it from all other images, from start to start."""

    @property
    def fd(self) -> int:
        """Open for the data path, with O_DIRECT where asked; owned by the image.  -1 for none."""

    def sync_fd(self, worker: int) -> int:
        """The image as only this worker has it open, for syncs; owned by the image.  -1 for none.

        The number stays the same, as that of `fd` does.
        """

    def write_error(self) -> int:
        """The errno of what could not be written and no resize or hand-over has told of, else 0.

        Returns at once: what is still to be written may fail later.
        """

    @property
    def read_only(self) -> bool:
        """Whether it is never written to."""

    @property
    def direct(self) -> bool:
        """Whether it is open for direct I/O."""

    @property
    def limits(self) -> Limits:
        """As last measured."""

    @property
    def engine(self) -> Engine:
        """How the data path is to do I/O."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is to go wrong on order; nothing, but for one that is made for it."""

    @property
    def held(self) -> bool:
        """Whether it is locked, and with that ours to write to."""

    async def claim(self) -> None:
        """Lock it if it is not; `limits` are then as measured under the lock.

        Raises ImageBusy where somebody else holds it for some seconds, ImageError where it
        cannot be opened any more.
        """

    async def hand_over(self) -> None:
        """Make durable what was written and give up the lock, until `claim`; nothing is in flight.

        Raises ImageError, and keeps the lock, where that cannot be: SyncFailed if what was
        written may be lost.
        """

    async def measure(self) -> int:
        """The size now, in whole blocks.  Raises ImageError where it is not told in time."""

    async def refresh(self) -> bool:
        """Ask for the size again: whether `limits` changed.  Raises ImageError as `measure`."""

    async def resize(self, size: int) -> None:
        """Make the image `size` bytes long.  Raises ImageError where that cannot be.

        SyncFailed says that also what was written before may be lost.
        """

    def close(self) -> None:
        """Give up the descriptor and the lock; may be called twice."""
