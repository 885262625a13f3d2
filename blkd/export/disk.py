# SPDX-License-Identifier: Apache-2.0
"""A disk: an image, the device that a guest sees of it, and the data path between the two."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Self

import structlog

from blkd.dataplane import (
    DataPlane,
    HeldRequests,
    RequestInFlight,
    ServedDisk,
    WorkerPlan,
    probe_io_uring,
)
from blkd.errors import ImageError, RequestRefused, SyncFailed
from blkd.export.config import ExportConfig
from blkd.export.holding import Holding
from blkd.export.limits import Limits, by_dimension, parse, write
from blkd.export.parameters import parameters, worker_plan
from blkd.export.pauses import Pause, Pauses
from blkd.image.base import Image, Opening
from blkd.image.error_policy import read_policy
from blkd.image.kinds import adopt_image, open_image
from blkd.image.opener import Opener
from blkd.statistics.area import Area
from blkd.statistics.limits_page import Budget
from blkd.virtio.blk import SECTOR_BYTES, BlkDevice, Shown

SHRINK_LIMIT: Final = 30.0  # seconds to drain before an image shrinks

log = structlog.get_logger()


async def open_image_of(
    config: ExportConfig, at: str | None = None, opener: Opener | None = None
) -> Image:
    """The image of a disk with these settings, open, locked and measured; the caller closes it.

    `at` is where to find it, if not at its path; `opener` opens it once more, later, for a process
    that is about to give that up.  Raises BlkdError.
    """
    probe_io_uring()  # rather now than at the first request
    opening = Opening(
        read_only=config.read_only,
        direct=config.cache == "none",
        logical_block_size=config.logical_block_size,
        engine=config.engine,
        incoming=config.incoming,
        workers=worker_plan(config).workers,
        image_format=config.image_format,
        at=at,
        opener=opener,
    )
    return await open_image(config.image, opening)


def adopt_image_of(
    config: ExportConfig,
    lent: int | None,
    *,
    logical_block_size: int,
    is_locked: bool,
    opener: Opener | None = None,
) -> Image:
    """The image of `config` as another process has it open; the caller closes it.

    `lent` is what that one's image lends, taken; for `opener` see `open_image_of`.  Raises
    BlkdError; `lent` is closed.
    """
    with contextlib.ExitStack() as undo:
        if lent is not None:
            undo.callback(os.close, lent)
        probe_io_uring()
        plan = worker_plan(config)
        undo.pop_all()
    opening = Opening(
        read_only=config.read_only,
        direct=config.cache == "none",
        logical_block_size=logical_block_size,
        engine=config.engine,
        workers=plan.workers,
        opener=opener,
    )
    return adopt_image(config.image, lent, opening, is_locked=is_locked)


class Disk:
    """One image as a device with a data path, and its figures; owns all, and closes them."""

    def __init__(
        self,
        config: ExportConfig,
        plan: WorkerPlan,
        image: Image,
        area: Area | None = None,
        shown: Shown | None = None,
    ) -> None:
        """Takes the image.  Raises ConfigError where no device can be made of it; it is closed.

        `area` is where to count on, taken, or a new one.  `shown` is what a guest has been shown of
        the device by the process that started it.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(image.close)
            self.area = area or Area.make()
            undo.callback(self.area.close)
            self.area.use_slots(plan.workers)
            self.name = config.name
            self.image = image
            self.plan = plan
            self.device = BlkDevice(parameters(config, image), shown)
            policy = read_policy(config.on_enospc, config.on_error)
            self._served = ServedDisk(
                image,
                self.device,
                config.queue_size,
                policy,
                page=self.area.limits_page,
                slow_us=config.slow_us,
                grants_fd=-1 if self.area.wake is None else self.area.wake,
            )
            self._keep_limits(parse(config.limit))
            self.plane = DataPlane(self._served, plan, self.area)
            if policy.holds:
                self.plane.require_record()
            self.holding = Holding(config.name, self._served, image, self.plane)
            self.plane.before_first_start = self.lock_image
            self.plane.after_migration = self.release_lock
            self.on_lock_change: Callable[[], None] = lambda: None
            self.pauses = Pauses(self.plane)
            self.note_size()
            undo.pop_all()

    @classmethod
    async def open(cls, config: ExportConfig) -> Self:
        """A disk of the image of `config`, opened.  Raises BlkdError: nothing stays open."""
        return cls(config, worker_plan(config), await open_image_of(config))

    @classmethod
    def adopt(cls, config: ExportConfig, image: Image, area: Area, shown: Shown | None) -> Self:
        """Go on with an image and an area of another process, taken: see `adopt_image_of`.

        Nothing is fetched before `pauses.end(Pause.FROZEN)`.  Raises BlkdError; it is closed.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(image.close)
            undo.callback(area.close)
            plan = worker_plan(config)
            undo.pop_all()
        disk = cls(config, plan, image, area, shown)
        disk.pauses.keep(Pause.FROZEN)
        return disk

    def close(self) -> None:
        """Close data path and image."""
        self.plane.close()
        self.area.close()
        if not self.plane.has_abandoned:  # else somebody is still at it: the process ends
            self.image.close()

    @property
    def serial(self) -> str:
        """The serial that the guest sees."""
        return self.device.serial.rstrip(b"\0").decode()

    @property
    def requests_in_flight(self) -> list[RequestInFlight]:
        """A moment's view of the requests in flight, the oldest first."""
        return self._served.requests_in_flight

    # ---- size ----

    @property
    def size(self) -> int:
        """Bytes that the guest is shown."""
        return self.device.capacity * SECTOR_BYTES

    async def resize(self, size: int) -> None:
        """Make the image `size` bytes long, and the disk with it.  Raises ImageError."""
        with self._sync_failures_noted():
            await self.image.resize(size)
        await self.take_size()

    async def take_size(self) -> None:
        """Bring device and data path to the image's size."""
        size = self.image.limits.size
        changed = size != self.size
        self.device.resize(size // SECTOR_BYTES)
        self.note_size()
        await self.plane.configure()
        if changed:
            log.info("size changed", export=self.name, size=size)

    def note_size(self) -> None:
        """Have the size known to whoever reads the figures."""
        self.area.note_size(self.size)

    # ---- rates ----

    async def limit(self, limits: Limits) -> None:
        """Do no more than that from now on; what waits already keeps it too."""
        self._keep_limits(limits)
        await self.plane.configure()
        log.info("limits changed", export=self.name, limit=write(limits) or None)

    def _keep_limits(self, limits: Limits) -> None:
        self.limits = limits
        budgets = {
            dimension: Budget(limit.rate, limit.burst, limit.length)
            for dimension, limit in by_dimension(limits).items()
        }
        self._served.limit(budgets, limits.iops_size)

    # ---- the image's lock, while a guest migrates ----

    async def lock_image(self) -> None:
        """Have the image locked before a ring starts, and the disk as large as it is then.

        Raises RequestRefused where another process does not release it.
        """
        if self.image.is_locked:
            return
        try:
            await self.image.take_lock()
        except ImageError as error:
            log.error("image not locked", export=self.name, reason=str(error))  # noqa: TRY400
            raise RequestRefused(str(error), hint=error.hint) from error
        finally:
            self.on_lock_change()
        await self.take_size()

    async def release_lock(self) -> None:
        """Give the image's lock up: the guest goes on elsewhere, or comes back and locks it."""
        try:
            with self._sync_failures_noted():
                await self.image.release_lock()
        except ImageError as error:
            log.error("image not handed over", export=self.name, reason=str(error))  # noqa: TRY400
        finally:
            self.on_lock_change()

    # ---- errors ----

    @property
    def held(self) -> HeldRequests | None:
        """The requests that the error policy holds; None where there are none."""
        return self._served.held

    # ---- syncs ----

    @contextlib.contextmanager
    def _sync_failures_noted(self) -> Iterator[None]:
        """Do within what syncs the image: not after a sync of it has failed.

        Raises SyncFailed.
        """
        if error := self.sync_error:
            raise SyncFailed(
                f"{self.image.path}: a sync of it has failed before: {os.strerror(error)}",
                error,
                hint="acknowledged writes are lost; end blkd, and start it anew",
            )
        try:
            yield
        except SyncFailed as failure:
            self.fail_sync(failure.error)
            raise

    @property
    def sync_error(self) -> int:
        """The errno of the first sync that failed, 0 without one: no flush succeeds any more."""
        return self._served.sync_error

    def fail_sync(self, error: int) -> None:
        """Have it known to the data path that a sync failed with this errno."""
        self._served.fail_sync(error)

    def note_write_errors(self) -> None:
        """Count what the kernel could not write back so far as a sync that failed."""
        if not self.image.direct and (error := self.image.write_error()):
            self.fail_sync(error)

    @contextlib.asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Nothing is in flight within.  Raises DrainTimeout."""
        try:
            await self.pauses.begin(Pause.SHRINKING, SHRINK_LIMIT)
            yield
        finally:
            await self.pauses.end(Pause.SHRINKING)
