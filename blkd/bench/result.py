# SPDX-License-Identifier: Apache-2.0
"""What a run measured, as it is printed."""

from dataclasses import dataclass

from blkd.bench.latency import Latency


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
    wrong: tuple[WrongRequest, ...]
    """The first of them."""

    @property
    def is_good(self) -> bool:
        """Whether everything was answered as it had to be."""
        return not self.errors and not self.wrong_blocks
