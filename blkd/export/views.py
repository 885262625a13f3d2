# SPDX-License-Identifier: Apache-2.0
"""What an export shows of itself, and what its calls answer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from blkd.dataplane import DataPlane, RequestInFlight
from blkd.export.config import ExportConfig
from blkd.export.disk import Disk
from blkd.export.limits import Limits, plain, write
from blkd.host.sandbox_policy import Confinement
from blkd.vhost_user.front_end_state import FrontEndState

Announced = Literal["fetched", "not-connected", "pending"]


@dataclass(frozen=True, slots=True)
class ResizeResult:
    """What became of a change of size, in bytes."""

    size: int
    previous: int
    announced: Announced
    """`pending`: a front end is connected, but has not fetched the size yet."""


@dataclass(frozen=True, slots=True)
class PauseResult:
    """How far a pause has come."""

    paused: bool
    drained: bool
    """Whether nothing is in flight, nor will be before a resume."""
    in_flight: int
    """Requests that the deadline left unfinished."""


@dataclass(frozen=True, slots=True)
class LimitsView:
    """What a disk keeps to."""

    limit: str
    """As text; empty without limits."""
    limits: Mapping[str, Any]
    """The same as numbers, by name."""


def limits_view(limits: Limits) -> LimitsView:
    """What limits come to."""
    return LimitsView(write(limits), plain(limits))


@dataclass(frozen=True, slots=True)
class ExportState:
    """All there is to know of an export but its counters."""

    name: str
    state: Literal["serving", "held", "paused", "stopping"]
    """`held`: it is served, and holds requests that have failed."""
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
    on_enospc: str
    on_error: str
    held: int
    """Requests that have failed and are to be begun again."""
    held_reason: str | None
    """Why the last one of these has failed; None where none is held."""
    features: int
    in_flight: int
    """Requests fetched, not answered, and not held."""
    oldest_ns: int
    """How long ago the oldest one that is not answered was fetched; 0 without one."""
    broken_rings: tuple[int, ...]
    broken_reasons: tuple[str, ...]
    """Why, of each of `broken_rings`."""
    front_end: FrontEndState | None
    sandbox: Confinement | None
    """What is in force of it; None without one."""
    limit: str = ""
    """What it keeps to, as `blkd limit` has it."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """The requests of an export that were fetched and are not answered, the oldest first."""

    name: str
    requests: tuple[RequestInFlight, ...]


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


def export_state(
    config: ExportConfig,
    disk: Disk,
    front_end: FrontEndState | None,
    state: Literal["serving", "paused", "stopping"],
    sandbox: Confinement | None,
) -> ExportState:
    """What there is to know of the export of `disk`."""
    limits, device, plane = disk.image.limits, disk.device, disk.plane
    broken, held = plane.broken_vrings, disk.held
    return ExportState(
        name=config.name,
        state="held" if held and state == "serving" else state,
        image=disk.image.path,
        image_locked=disk.image.is_locked,
        socket=config.socket,
        size=disk.size,
        read_only=device.read_only,
        cache=config.cache,
        logical_block_size=limits.logical_block_size,
        physical_block_size=device.shown.physical_block_size,
        queues=device.queues,
        queue_size=config.queue_size,
        serial=disk.serial,
        engine=disk.image.engine.name,
        engine_reason=disk.image.engine.reason,
        workers=disk.plan.workers,
        cpus=disk.plan.cpus,
        poll_us=disk.plan.poll_us,
        memory_registered=plane.memory_is_registered,
        discard=device.discard,
        sync_error=os.strerror(error) if (error := disk.sync_error) else None,
        on_enospc=config.on_enospc,
        on_error=config.on_error,
        held=held.count if held else 0,
        held_reason=held.reason if held else None,
        features=device.features,
        in_flight=plane.in_flight,
        oldest_ns=disk.area.oldest_ns,
        broken_rings=tuple(broken),
        broken_reasons=tuple(broken.values()),
        front_end=front_end,
        sandbox=sandbox,
        limit=write(disk.limits),
    )


def export_stats(name: str, plane: DataPlane, rings: int) -> ExportStats:
    """The counters of an export's `rings` rings."""
    counters = [plane.counters(index) for index in range(rings)]
    total = {f.name: sum(ring.get(f.name, 0) for ring in counters) for f in fields(Counts)}
    return ExportStats(
        name=name,
        total=Counts(**total),
        rings=tuple(RingStats(ring=i, **counts) for i, counts in enumerate(counters)),
    )
