# SPDX-License-Identifier: Apache-2.0
"""What an export shows of itself, and what became of what it was told."""

from dataclasses import dataclass
from typing import Literal

from blkd.vhost_user.connection import FrontEndState

Announced = Literal["fetched", "not-connected", "pending"]


@dataclass(frozen=True, slots=True)
class ResizeResult:
    """What became of a change of size, in bytes."""

    size: int
    previous: int
    announced: Announced
    """`pending`: a front end is connected and has not fetched the size yet; it is told again."""


@dataclass(frozen=True, slots=True)
class PauseResult:
    """How far a pause has come."""

    paused: bool
    drained: bool
    """Whether nothing is in flight, nor will be before a resume."""
    in_flight: int
    """Requests that the deadline left unfinished."""


@dataclass(frozen=True, slots=True)
class ExportState:
    """All there is to know of an export but its counters."""

    name: str
    state: Literal["serving", "paused", "stopping"]
    image: str
    image_locked: bool
    """False before a guest is migrated here, and after it was migrated away."""
    socket: str | None
    size: int
    read_only: bool
    cache: str
    logical_block_size: int
    physical_block_size: int
    queues: int
    queue_size: int
    serial: str
    engine: str
    engine_reason: str
    workers: int
    cpus: tuple[int, ...]
    poll_us: int
    memory_registered: bool
    discard: bool
    sync_error: str | None
    """Why a sync failed: no flush succeeds any more.  None while none has."""
    features: int
    in_flight: int
    broken_rings: tuple[int, ...]
    broken_reasons: tuple[str, ...]
    """Why, of each of `broken_rings`."""
    front_end: FrontEndState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests answered since the export was opened."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    write_zeroes: int = 0
    get_ids: int = 0
    others: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    kicks: int = 0
    calls: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStats(Counts):
    """The counts of one ring."""

    ring: int


@dataclass(frozen=True, slots=True)
class ExportStats:
    """The counters of an export, ring by ring."""

    name: str
    total: Counts
    rings: tuple[RingStats, ...]
