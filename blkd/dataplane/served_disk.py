# SPDX-License-Identifier: Apache-2.0
"""A block device and its image, as worker threads serve them: all that the data path has of blk."""

import os
from collections.abc import Mapping
from typing import Final

import structlog

from blkd import block
from blkd.dataplane.engines import engine_for
from blkd.dataplane.failures import FailureLog
from blkd.image.base import Image
from blkd.virtio.blk import SECTOR_BYTES, BlkDevice
from blkd.virtio.device import MAX_QUEUE_SIZE

WRITE_THROUGH: Final = b"\1"
WRITE_BACK: Final = b"\0"
"""The note that outlives blkd, see `note`: the cache mode that a driver chose."""

log = structlog.get_logger()


class ServedDisk:
    """A block device whose requests are done on an image; plays `served.ServedDevice`."""

    def __init__(self, image: Image, device: BlkDevice, longest_chain: int) -> None:
        """Requests have up to `longest_chain` descriptors, or as many as their vring."""
        self.device = device
        self._image = image
        self._longest_chain = longest_chain
        self._syncs = block.SyncState()

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
            rings=vrings,
            largest=MAX_QUEUE_SIZE,
            longest_chain=self._longest_chain,
        )
        return DiskPart(self, part, FailureLog(part, self._image.path))

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
        )

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

    def __init__(self, disk: ServedDisk, part: block.BlkPart, failures: FailureLog) -> None:
        self.capsule = part.capsule
        self._disk = disk
        self._part = part
        self._failures = failures

    def counters(self, ring: int) -> Mapping[str, int]:
        """Requests by type, bytes and errors."""
        return self._part.counters(ring)

    def report(self, code: int) -> None:
        """Log a failed sync, or a failed request, whose kind is the code."""
        if code == block.SYNC_FAILED:
            self._disk.log_sync_failure()
        else:
            self._failures.report(code)

    def close(self) -> None:
        """Log no more."""
        self._failures.close()
