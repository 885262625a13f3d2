# SPDX-License-Identifier: Apache-2.0
"""The recording of requests in flight: which region the vrings of a device are recorded in."""

from collections.abc import Callable
from typing import Final

import structlog

from blkd.dataplane.inflight_region import InflightRegion
from blkd.dataplane.shared_files import require_local
from blkd.dataplane.workers import Workers
from blkd.vhost_user.channel import Fds
from blkd.vhost_user.data_path import InflightFile
from blkd.vhost_user.inflight import Inflight, part_bytes
from blkd.vhost_user.vring_setup import VringSetup

InflightPart = tuple[int, int, bool]
"""Where a vring's part of the in-flight region is mapped, its entries, and whether the front end
lends the region to whoever serves the vring next."""

NOT_RECORDED: Final[InflightPart] = (0, 0, False)

log = structlog.get_logger()


class Recording:
    """Owns the in-flight region that the front end has given, and those that may be written yet.

    With `is_required` set, a region of our own takes the place of one that no front end gives: it
    goes over in a live upgrade, and is lost where blkd dies.
    """

    def __init__(
        self, workers: Workers, queues: int, largest: int, make: Callable[[Inflight], int]
    ) -> None:
        """`largest` is the number of descriptors of the largest of `queues` vrings.

        `make` makes the file of a region: its descriptor.
        """
        self.is_required = False
        self._workers = workers
        self._queues = queues
        self._largest = largest
        self._make = make
        self._region: InflightRegion | None = None
        self._still_written: list[InflightRegion] = []  # mapped until the workers have ended
        self._unrecorded_logged = False

    async def use(
        self, region: Inflight, fd: int, *, packed: bool, is_lent: bool = True
    ) -> bytes | None:
        """Record in this region from the next vring on that is started; takes the descriptor.

        It is the front end's if it `is_lent`, else one that another process of ours has made.
        Returns the note that another back end of ours has left with it.
        """
        with Fds([fd]) as owned:
            await require_local(owned, "in-flight region")
            adopted = InflightRegion.adopt(
                region, owned.take_one(), self._largest, packed=packed, is_lent=is_lent
            )
        self._replace(adopted)
        return adopted.note

    def _use_own(self, *, packed: bool) -> None:
        """Record in a region of our own.  Raises DataPlaneError."""
        size = self._queues * part_bytes(self._largest, packed=packed)
        region = Inflight(size, 0, self._queues, self._largest)
        fd = self._make(region)
        self._replace(InflightRegion.adopt(region, fd, self._largest, packed=packed, is_lent=False))

    def clear(self) -> None:
        """Record nothing from the next vring on that is started."""
        self._replace(None)

    def write_note(self, note: bytes) -> None:
        """Leave a note for the back end that may serve the device next."""
        if self._region is not None:
            self._region.write_note(note)

    @property
    def file(self) -> InflightFile | None:
        """The region, if there is one that anything can be recorded in."""
        if self._region is None or not self._region.entries:
            return None
        return self._region.file

    def part(self, index: int, setup: VringSetup) -> InflightPart:
        """Where vring `index` is recorded.  One that cannot be is served, which is logged once.

        A refusal would cost a guest its disk, now; this costs it requests, if blkd ever dies.
        Raises DataPlaneError where there is no memory for a region of our own.
        """
        if self.is_required and (self._region is None or self._is_outgrown(setup)):
            self._use_own(packed=setup.packed)
        if self._region is None:
            return NOT_RECORDED
        part = self._region.part(index, setup)
        if part is None and not self._unrecorded_logged:
            self._unrecorded_logged = True
            log.warning(
                "requests in flight not recorded",
                ring=index,
                size=setup.size,
                reason=str(self._region),
                hint="if blkd is killed they are lost: reset the guest then",
            )
        return (*part, self._region.file.is_lent) if part else NOT_RECORDED

    def _is_outgrown(self, setup: VringSetup) -> bool:
        """Whether a region of our own is for vrings of another layout than the driver has now."""
        file = None if self._region is None else self._region.file
        return file is not None and not file.is_lent and file.packed != setup.packed

    def close(self) -> None:
        """Close the descriptors and let go of the mappings: the workers have ended."""
        self._still_written.clear()
        if self._region is not None:
            self._region.close()
            self._region = None

    def _replace(self, region: InflightRegion | None) -> None:
        old, self._region = self._region, region
        self._unrecorded_logged = False
        if old is None:
            return
        old.close()
        if self._workers.have_vrings:  # one could not be stopped, and may still be recorded there
            self._still_written.append(old)
