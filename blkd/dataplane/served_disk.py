# SPDX-License-Identifier: Apache-2.0
"""A block device and its image, as worker threads serve them: all that the data path has of blk."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from blkd import block
from blkd.dataplane.engines import engine_for
from blkd.dataplane.failures import ENDS_EARLY, FailureLog
from blkd.dataplane.slow_requests import SlowRequests
from blkd.image.base import Image
from blkd.image.error_policy import ErrorPolicy
from blkd.statistics.limits_page import Budget, Dimension
from blkd.virtio.blk import SECTOR_BYTES, BlkDevice
from blkd.virtio.device import MAX_QUEUE_SIZE

WRITE_THROUGH: Final = b"\1"
WRITE_BACK: Final = b"\0"
"""The note that outlives blkd, see `note`: the cache mode that a driver chose."""

NANOSECONDS: Final = 1_000_000_000
NANOSECONDS_OF_US: Final = 1000
REPORT_ALL: Final = ErrorPolicy()
NO_LIMIT: Final = Budget(0)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HeldRequests:
    """Requests that are held or being tried again; of the one held last what it was, and why."""

    count: int
    no_space: int
    """Those that are held because the image has no space."""
    since_ns: int
    """Since when there are any, in nanoseconds of CLOCK_MONOTONIC."""
    request: str
    offset: int
    """Bytes."""
    reason: str


@dataclass(frozen=True, slots=True)
class RequestInFlight:
    """A request that was fetched and is not answered."""

    ring: int
    worker: int
    request: str
    offset: int
    """Bytes, as of what is being done now; a flush has none."""
    bytes: int
    age_ns: int
    where: str
    """`throttle`: waits for limits; `disk`; `sync`: for what makes it durable; `buffer`: for one of
    ours; `repeat`: to ask the kernel again; `delay`: as a faulty image has it; `held`."""


class ServedDisk:
    """A block device whose requests are done on an image; plays `served.ServedDevice`."""

    def __init__(
        self,
        image: Image,
        device: BlkDevice,
        longest_chain: int,
        policy: ErrorPolicy = REPORT_ALL,
        *,
        page: memoryview | None = None,
        grants_fd: int = -1,
        slow_us: int = 0,
    ) -> None:
        """Requests have up to `longest_chain` descriptors, or as many as their vring.

        Those that fail are held as the `policy` has it; `on_held` is called when a worker holds
        one, and held none before.  `page` is where budgets are kept, for as long as this is there;
        the eventfd `grants_fd`, borrowed, is signalled when a group's grant is waited for.
        Requests that take `slow_us` microseconds are logged, unless that is 0.
        """
        self.policy = policy
        self._slow_ns = slow_us * NANOSECONDS_OF_US
        self.on_held: Callable[[], None] = lambda: None
        self._parts: list[block.BlkPart] = []
        self._numbers: list[int] = []
        self.device = device
        self._image = image
        self._longest_chain = longest_chain
        self._syncs = block.SyncState()
        self._rates, self._grants_fd = block.Rates(page), grants_fd

    @property
    def name(self) -> str:
        """The image's name."""
        return self._image.path

    @property
    def longest_chain(self) -> int:
        """As many descriptors as the front end is expected to have in a vring."""
        return self._longest_chain

    def make_part(self, number: int, vrings: int) -> "DiskPart":
        """A worker's requests and engine; all workers share what is known of the image's syncs."""
        part = block.BlkPart(
            engine_for(self._image.io(number), self._syncs),
            self._rates,
            rings=vrings,
            largest=MAX_QUEUE_SIZE,
            longest_chain=self._longest_chain,
            grants_fd=self._grants_fd,
        )
        self._parts.append(part)
        self._numbers.append(number)
        name = self._image.path
        slow = SlowRequests(part, number, name, self._slow_ns)
        return DiskPart(self, part, FailureLog(part, name), slow)

    @property
    def configuration(self) -> bytes:
        """The capacity, the cache mode and the limits of requests."""
        device, limits = self.device, self._image.limits
        return block.limits(
            capacity=device.capacity * SECTOR_BYTES,
            block_size=limits.logical_block_size,
            max_discard_sectors=device.max_discard_sectors,
            max_zero_sectors=device.max_write_zeroes_sectors,
            max_ranges=device.max_write_zeroes_segments,
            read_only=device.read_only,
            write_through=not device.write_back,
            serial=device.serial,
            hold_no_space=self.policy.holds_no_space,
            hold_errors=self.policy.holds_errors,
            longest_held=(self.policy.longest or 0) * NANOSECONDS,
            slow=self._slow_ns,
        )

    @property
    def requests_in_flight(self) -> list[RequestInFlight]:
        """A moment's view of the requests in flight, the oldest first."""
        now = time.monotonic_ns()
        found = [
            RequestInFlight(ring, worker, request, offset, size, max(now - begun, 0), where)
            for worker, part in zip(self._numbers, self._parts, strict=True)
            for ring, request, offset, size, begun, where in part.in_flight()
        ]
        return sorted(found, key=lambda request: -request.age_ns)

    @property
    def held(self) -> HeldRequests | None:
        """What is held at the moment; None where nothing is."""
        found = [held for part in self._parts if (held := part.held)[0]]
        if not found:
            return None
        _, _, since, request, offset, error = max(found, key=lambda held: held[2])
        return HeldRequests(
            count=sum(held[0] for held in found),
            no_space=sum(held[1] for held in found),
            since_ns=min(since, *(held[2] for held in found)),
            request=request,
            offset=offset,
            reason=os.strerror(error) if error else ENDS_EARLY,
        )

    def limit(self, budgets: Mapping[Dimension, Budget], iops_size: int) -> None:
        """Keep these budgets and no others, once the workers are configured.

        A read or write of more than `iops_size` bytes counts as as many requests as it has of them,
        unless that is 0.
        """
        for dimension in Dimension:
            budget = budgets.get(dimension, NO_LIMIT)
            self._rates.limit(
                dimension,
                average=budget.average * dimension.units,
                burst=budget.burst * dimension.units,
                credit=budget.credit * dimension.units,
            )
        self._rates.iops_size = iops_size

    @property
    def note(self) -> bytes | None:
        """The cache mode that a driver chose: QEMU tells it to one back end, not to the next."""
        if self.device.chosen_write_back is None:
            return None
        return WRITE_BACK if self.device.chosen_write_back else WRITE_THROUGH

    def recall(self, note: bytes) -> None:
        """Write through if the note says so: the driver relies on it."""
        if note.startswith(WRITE_THROUGH):
            self.device.choose(write_back=False)

    @property
    def sync_error(self) -> int:
        """The errno of the first sync that failed, 0 without one.

        Acknowledged data is lost then: no flush and no write-through write succeeds any more.
        """
        return self._syncs.error

    def fail_sync(self, error: int) -> None:
        """Tell all workers that a sync of the control thread failed with this errno.

        Of an image open for direct I/O nothing is kept: a later sync of it tells the truth.
        """
        if not self._image.direct and self._syncs.fail(error):
            self.log_sync_failure()

    def log_sync_failure(self) -> None:
        """Log the first sync that failed."""
        log.error(
            "sync failed",
            image=self._image.path,
            reason=os.strerror(self._syncs.error),
            hint="acknowledged writes are lost: no flush succeeds until blkd is started anew;"
            " check the guest's file systems",
        )


class DiskPart:
    """A disk's part of one worker thread; plays `served.DevicePart`."""

    def __init__(
        self, disk: ServedDisk, part: block.BlkPart, failures: FailureLog, slow: SlowRequests
    ) -> None:
        self.capsule = part.capsule
        self._disk = disk
        self._part = part
        self._failures = failures
        self._slow = slow

    def counters(self, ring: int) -> Mapping[str, int]:
        """Requests by type, bytes and errors."""
        return self._part.counters(ring)

    def report(self, code: int) -> None:
        """Log slow requests, a failed sync, or a failed request, whose kind is the code.

        See to a held one.
        """
        if code == block.SYNC_FAILED:
            self._disk.log_sync_failure()
        elif code == block.HELD:
            self._disk.on_held()
        elif code == block.SLOW:
            self._slow.report()
        else:
            self._failures.report(code)

    def close(self) -> None:
        """Log no more."""
        self._failures.close()
        self._slow.close()
