# SPDX-License-Identifier: Apache-2.0
"""The recording of requests in flight: which region the vrings of a device are recorded in."""

from typing import Final

import structlog

from blkd.dataplane.inflight_region import InflightRegion
from blkd.dataplane.shared_files import require_local
from blkd.dataplane.workers import Workers
from blkd.vhost_user.channel import Fds
from blkd.vhost_user.data_path import InflightFile
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.vring_setup import VringSetup

InflightPart = tuple[int, int]
"""Where a vring's part of the in-flight region is mapped, and its entries."""

NOT_RECORDED: Final[InflightPart] = (0, 0)

log = structlog.get_logger()


class Recording:
    """Owns the in-flight region that the front end has given, and those that may be written yet."""

    def __init__(self, workers: Workers, largest: int) -> None:
        """`largest` is the number of descriptors of the largest vring that is served."""
        self._workers = workers
        self._largest = largest
        self._region: InflightRegion | None = None
        self._still_written: list[InflightRegion] = []  # mapped until the workers have ended
        self._unrecorded_logged = False

    async def use(self, region: Inflight, fd: int, *, packed: bool) -> bytes | None:
        """Record in this region from the next vring on that is started; takes the descriptor.

        Returns the note that another back end of ours has left with it.
        """
        with Fds([fd]) as owned:
            await require_local(owned, "in-flight region")
            adopted = InflightRegion.adopt(region, owned.take_one(), self._largest, packed=packed)
        self._replace(adopted)
        return adopted.note

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
        """
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
        return part or NOT_RECORDED

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
