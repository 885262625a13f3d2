# SPDX-License-Identifier: Apache-2.0
"""What a workload and a back end's offer come to: features, the disk, the shape of a request."""

from dataclasses import dataclass
from typing import Final, Self

from blkd.errors import BenchError
from blkd.loadgen.workload import Rw, Workload
from blkd.vhost_user.wire import VirtioFeature
from blkd.virtio.blk import SECTOR_BYTES, BlkConfig, Feature

ALWAYS_TAKEN: Final = (
    Feature.SIZE_MAX
    | Feature.SEG_MAX
    | Feature.RO
    | Feature.BLK_SIZE
    | Feature.FLUSH
    | Feature.MQ
    | Feature.DISCARD
    | VirtioFeature.VERSION_1
    | VirtioFeature.PROTOCOL_FEATURES
)
FRAMING: Final = 2  # descriptors of header and status
MAX_SEGMENTS: Final = 126  # of one request; what QEMU's ring of 128 leaves


@dataclass(frozen=True, slots=True)
class Agreement:
    """How this back end is loaded; it can do all that is asked of it."""

    features: int
    packed: bool
    event_idx: bool
    indirect: bool
    blocks: int
    """That are used of the disk, from its start."""
    segment_bytes: int
    """Of one data descriptor, at the most."""
    parts: int
    """Descriptors of a request's chain."""
    ring_size: int
    can_flush: bool

    @classmethod
    def of(cls, work: Workload, offered: int, config: BlkConfig) -> Self:
        """Agree, or raise a BenchError that says what is missing."""
        packed = _choice(offered, VirtioFeature.RING_PACKED, "--packed", wanted=work.packed)
        event_idx = _choice(offered, VirtioFeature.EVENT_IDX, "--event-idx", wanted=work.event_idx)
        indirect = _choice(offered, VirtioFeature.INDIRECT_DESC, "--indirect", wanted=work.indirect)
        _check_abilities(work, offered, config)
        segment_bytes, segments = _segments(work, offered, config)
        parts = segments + FRAMING
        chosen = (
            (VirtioFeature.RING_PACKED if packed else 0)
            | (VirtioFeature.EVENT_IDX if event_idx else 0)
            | (VirtioFeature.INDIRECT_DESC if indirect else 0)
        )
        return cls(
            features=offered & ALWAYS_TAKEN | chosen,
            packed=packed,
            event_idx=event_idx,
            indirect=indirect,
            blocks=_blocks(work, config),
            segment_bytes=segment_bytes,
            parts=parts,
            ring_size=max(work.ring_size(1 if indirect else parts), _table_room(work, parts)),
            can_flush=bool(offered & Feature.FLUSH),
        )


def _choice(offered: int, feature: VirtioFeature, option: str, *, wanted: bool | None) -> bool:
    """Whether a feature is used: as wanted, or where nothing is said if it is offered."""
    has = bool(offered & feature)
    if wanted and not has:
        raise BenchError(f"the back end does not offer {feature.name}", hint=f"leave {option} out")
    return has if wanted is None else wanted


def _check_abilities(work: Workload, offered: int, config: BlkConfig) -> None:
    if work.writes and offered & Feature.RO:
        raise BenchError(
            f"the disk is read-only and --rw {work.rw} writes", hint="take read or randread"
        )
    if work.rw is Rw.FLUSH and not offered & Feature.FLUSH:
        raise BenchError("the back end does not offer FLUSH", hint="take another --rw")
    if work.rw is Rw.TRIM:
        if not offered & Feature.DISCARD:
            raise BenchError("the back end does not offer DISCARD", hint="take another --rw")
        most = config.max_discard_sectors * SECTOR_BYTES
        if work.bs > most:
            raise BenchError(
                f"the back end discards at most {most} bytes at once", hint="make --bs smaller"
            )
    block = config.blk_size if offered & Feature.BLK_SIZE and config.blk_size else SECTOR_BYTES
    if work.bs % block:
        raise BenchError(
            f"the disk has blocks of {block} bytes", hint=f"--bs is a multiple of {block}"
        )


def _segments(work: Workload, offered: int, config: BlkConfig) -> tuple[int, int]:
    """How long a data segment may be, and how many a request has.

    qemu-storage-daemon 7.2 offers a size_max and a seg_max of 0, which cannot be meant.
    """
    if work.rw is Rw.FLUSH:
        return work.bs, 0
    if work.rw is Rw.TRIM:
        return work.bs, 1
    longest = work.bs
    if offered & Feature.SIZE_MAX and config.size_max:
        longest = min(longest, max(config.size_max // SECTOR_BYTES, 1) * SECTOR_BYTES)
    most = MAX_SEGMENTS
    if offered & Feature.SEG_MAX and config.seg_max:
        most = min(most, config.seg_max)
    count = -(-work.bs // longest)
    if count > most:
        raise BenchError(
            f"the back end takes requests of at most {most} segments of {longest} bytes",
            hint=f"--bs is at most {most * longest}",
        )
    return longest, count


def _blocks(work: Workload, config: BlkConfig) -> int:
    capacity = config.capacity * SECTOR_BYTES
    if work.size is not None and work.size > capacity:
        raise BenchError(
            f"the disk has {capacity} bytes, less than {work.size}", hint="make --size smaller"
        )
    blocks = (work.size or capacity) // work.bs
    if not blocks:
        raise BenchError(
            f"the disk has {capacity} bytes, less than one block", hint="make --bs smaller"
        )
    return blocks


def _table_room(work: Workload, parts: int) -> int:
    """A ring is at least as long as a chain, which no indirect table may exceed (2.7.5.3)."""
    size = 1 << (parts - 1).bit_length()
    if work.queue_size is not None and work.queue_size < size:
        raise BenchError(
            f"a request has {parts} descriptors, more than a ring of {work.queue_size}",
            hint="make --queue-size larger or --bs smaller",
        )
    return size
