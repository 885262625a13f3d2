# SPDX-License-Identifier: Apache-2.0
"""What a run asks of a back end, as far as that can be judged without one."""

import enum
from dataclasses import dataclass
from typing import Final

from blkd.errors import BenchError
from blkd.virtio.blk import SECTOR_BYTES
from blkd.virtio.device import MAX_QUEUE_SIZE

MAX_QUEUES: Final = 64
MAX_BLOCK: Final = 64 << 20  # bytes of one request
SMALLEST_RING: Final = 128  # descriptors, unless another size is asked for; QEMU's own default
DEFAULT_RUNTIME: Final = 10.0
PERCENT: Final = 100


class Rw(enum.StrEnum):
    """What is asked and in which order."""

    READ = "read"
    WRITE = "write"
    RANDREAD = "randread"
    RANDWRITE = "randwrite"
    RANDRW = "randrw"
    TRIM = "trim"
    FLUSH = "flush"

    @property
    def kind(self) -> str:
        """The kind of its requests, or of most of them where they are mixed: of its reads."""
        return {"randread": "read", "randwrite": "write", "randrw": "read"}.get(self, str(self))

    @property
    def random(self) -> bool:
        """Whether offsets are drawn, not counted."""
        return self.startswith("rand")

    @property
    def mixed(self) -> bool:
        """Whether there are reads and writes."""
        return self is Rw.RANDRW

    @property
    def writes(self) -> bool:
        """Whether it changes what the disk holds."""
        return self in {Rw.WRITE, Rw.RANDWRITE, Rw.RANDRW, Rw.TRIM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One run.  Raises BenchError where its parts contradict each other."""

    rw: Rw = Rw.RANDREAD
    bs: int = 4096
    """Bytes of a request, and what offsets are multiples of."""
    iodepth: int = 1
    """Requests in flight on each queue."""
    queues: int = 1
    queue_size: int | None = None
    """Descriptors of a ring, a power of two; None takes one that is large enough."""
    runtime: float | None = None
    """Seconds; None is `DEFAULT_RUNTIME`, or one whole pass with `verify`."""
    ramp: float = 0.0
    """Seconds of the same load before anything is counted."""
    size: int | None = None
    """Bytes from the disk's start that are used; None is all of it."""
    rate: int = 0
    """Requests a second at the most, of all queues; 0 is no limit."""
    rwmix: int = 50
    """Percent of reads in mixed loads."""
    seed: int = 1
    packed: bool = False
    event_idx: bool | None = None
    """None takes it if offered."""
    indirect: bool | None = None
    """Likewise."""
    verify: bool = False
    verify_only: bool = False
    pid: int | None = None
    """The back end's process, whose processor time is measured."""
    cpu: int | None = None
    """Where the polling thread is pinned."""
    timeout: float = 30.0
    """Seconds without an answer after which the back end is given up."""
    reconnect: bool = False
    """Whether another back end at the same path may go on for one that went away."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_verify()

    def _check_numbers(self) -> None:
        if self.bs <= 0 or self.bs % SECTOR_BYTES or self.bs > MAX_BLOCK:
            raise BenchError(
                f"a block size of {self.bs} bytes",
                hint=f"it is a multiple of {SECTOR_BYTES} and at most {MAX_BLOCK}",
            )
        if self.size is not None and self.size < self.bs:
            raise BenchError(
                f"a size of {self.size} bytes holds no block of {self.bs}",
                hint="make --size larger or --bs smaller",
            )
        if not 0 < self.queues <= MAX_QUEUES:
            raise BenchError(f"{self.queues} queues", hint=f"1 to {MAX_QUEUES}")
        if not 0 < self.iodepth <= MAX_QUEUE_SIZE:
            raise BenchError(f"an iodepth of {self.iodepth}", hint=f"1 to {MAX_QUEUE_SIZE}")
        if not 0 <= self.rwmix <= PERCENT:
            raise BenchError(f"{self.rwmix} percent of reads", hint="0 to 100")
        size = self.queue_size
        if size is not None and (size < 1 or size & (size - 1)):
            raise BenchError(
                f"a queue size of {size} is no power of two",
                hint=f"take {1 << max(size.bit_length() - 1, 0)}",
            )

    def _check_verify(self) -> None:
        if self.verify and self.verify_only:
            raise BenchError(
                "--verify and --verify-only exclude each other",
                hint="--verify writes and checks; --verify-only checks what it left",
            )
        if self.verify and self.rw not in {Rw.WRITE, Rw.RANDWRITE, Rw.RANDRW}:
            raise BenchError(
                f"--verify has nothing to check in --rw {self.rw}",
                hint="take write, randwrite or randrw; --verify-only only reads",
            )

    @property
    def run_seconds(self) -> float:
        """How long the load lasts; 0 where it lasts until all is done."""
        if self.runtime is None:
            return 0.0 if self.verify else DEFAULT_RUNTIME
        return self.runtime

    @property
    def writes(self) -> bool:
        """Whether the run changes what the disk holds."""
        return self.rw.writes and not self.verify_only

    def ring_size(self, descriptors: int) -> int:
        """The ring for requests that take so many of its descriptors each."""
        needed = self.iodepth * descriptors
        size = self.queue_size or max(SMALLEST_RING, 1 << (needed - 1).bit_length())
        if needed > size or size > MAX_QUEUE_SIZE:
            raise BenchError(
                f"{self.iodepth} requests of {descriptors} descriptors need {needed} of a ring, "
                f"which has {min(size, MAX_QUEUE_SIZE)}",
                hint="lower --iodepth, or let indirect descriptors be used",
            )
        return size
