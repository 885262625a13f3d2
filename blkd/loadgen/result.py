# SPDX-License-Identifier: Apache-2.0
"""What a run measured, as it is printed."""

from dataclasses import dataclass, replace

from blkd.loadgen.agreement import Agreement
from blkd.loadgen.latency import Counted, Latency
from blkd.loadgen.loader import Outcome, Passing
from blkd.loadgen.workload import Rw, Workload


@dataclass(frozen=True, slots=True)
class WrongRequest:
    """One request that went wrong; offsets in bytes."""

    what: str
    kind: str
    offset: int
    """Where the request began."""
    byte: int
    """Where on the disk it shows, at the earliest."""
    found: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run; times in seconds unless said."""

    rw: str
    bs: int
    iodepth: int
    queues: int
    queue_size: int
    size: int
    packed: bool
    event_idx: bool
    indirect: bool
    seconds: float
    ios: int
    iops: float
    bytes_per_second: float
    errors: int
    latency_ns: Latency
    latency_ns_by_op: dict[str, Latency] | None
    """Of each kind of request, where they are mixed."""
    client_cpu_seconds: float
    target_cpu_seconds: float | None
    target_cpu_us_per_io: float | None
    kicks: int
    verified_blocks: int
    wrong_blocks: int
    interrupted: bool
    reconnections: int = 0
    """Back ends that went on for one that went away."""
    wrong: tuple[WrongRequest, ...]
    """The first of them."""


def summary(
    work: Workload,
    agreed: Agreement,
    outcome: Outcome,
    *,
    own_seconds: float,
    target_seconds: float | None,
) -> Result:
    """What one measured stretch came to."""
    whole = Counted.merged(outcome.latencies.values())
    iops = whole.count / outcome.seconds if outcome.seconds else 0.0
    return Result(
        rw=str(work.rw),
        bs=work.bs,
        iodepth=work.iodepth,
        queues=work.queues,
        queue_size=agreed.ring_size,
        size=agreed.blocks * work.bs,
        packed=agreed.packed,
        event_idx=agreed.event_idx,
        indirect=agreed.indirect,
        seconds=round(outcome.seconds, 6),
        ios=whole.count,
        iops=round(iops, 1),
        bytes_per_second=0.0 if work.rw is Rw.FLUSH else round(iops * work.bs, 1),
        errors=outcome.errors,
        latency_ns=Latency.of(whole),
        latency_ns_by_op=latency_by_kind(outcome) if work.rw.mixed else None,
        client_cpu_seconds=round(own_seconds, 6),
        target_cpu_seconds=None if target_seconds is None else round(target_seconds, 6),
        target_cpu_us_per_io=microseconds_each(target_seconds, whole.count),
        kicks=outcome.kicks,
        verified_blocks=outcome.intact,
        wrong_blocks=outcome.wrong_blocks,
        interrupted=outcome.interrupted,
        wrong=wrong_requests(outcome),
    )


def latency_by_kind(outcome: Outcome) -> dict[str, Latency]:
    """The latency of each kind of request that there was."""
    counted = outcome.latencies.items()
    return {kind: Latency.of(of_kind) for kind, of_kind in counted if of_kind.count}


def microseconds_each(seconds: float | None, ios: int) -> float | None:
    """What each request took of `seconds`; None where that is not known or there was none."""
    return round(seconds / ios * 1e6, 4) if seconds is not None and ios else None


def wrong_requests(outcome: Outcome) -> tuple[WrongRequest, ...]:
    """The first requests that went wrong, as they are printed."""
    return tuple(
        WrongRequest(f.what, f.kind, f.offset, f.offset + f.at, hex(f.found), hex(f.expected))
        for f in outcome.findings
    )


def judge_passings(result: Result, passings: tuple[Passing, ...]) -> Result:
    """`result`, where blocks that each look good contradict each other.

    Passes over the disk follow each other in the same order.  So what the last one wrote comes
    before all that only the last but one did.
    """
    if len(passings) < 2:  # noqa: PLR2004 - one generation cannot contradict another
        return result
    older, newer = sorted(passings, key=lambda passing: passing.generation)
    if newer.generation - older.generation == 1 and newer.last < older.first:
        return result
    stale = WrongRequest(
        "stale",
        "read",
        older.first_offset,
        older.first_offset,
        hex(older.generation),
        hex(newer.generation),
    )
    return replace(
        result,
        verified_blocks=result.verified_blocks - 1,
        wrong_blocks=result.wrong_blocks + 1,
        wrong=(*result.wrong, stale),
    )
