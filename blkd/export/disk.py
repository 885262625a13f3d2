# SPDX-License-Identifier: Apache-2.0
"""A disk: an image, the device that a guest sees of it, and the data path between the two."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Self

import structlog

from blkd.dataplane import DataPlane, ServedDisk, WorkerPlan, probe_io_uring
from blkd.errors import ImageError, RequestRefused, SyncFailed
from blkd.export.config import ExportConfig
from blkd.export.parameters import parameters, worker_plan
from blkd.export.pauses import Pause, Pauses
from blkd.image.base import Image, Opening
from blkd.image.kinds import adopt_image, open_image
from blkd.virtio.blk import SECTOR_BYTES, BlkDevice, Shown

SHRINK_LIMIT: Final = 30.0  # seconds to drain before an image shrinks

log = structlog.get_logger()


class Disk:
    """One image as a device with a data path; owns all three, and closes them."""

    def __init__(
        self, config: ExportConfig, plan: WorkerPlan, image: Image, shown: Shown | None = None
    ) -> None:
        """Takes the image.  Raises ConfigError where no device can be made of it; it is closed.

        `shown` is what a guest has been shown of the device by the process that started it.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(image.close)
            self.name = config.name
            self.image = image
            self.plan = plan
            self.device = BlkDevice(parameters(config, image), shown)
            self._served = ServedDisk(image, self.device, config.queue_size)
            self.plane = DataPlane(self._served, plan)
            self.plane.before_first_start = self.lock_image
            self.plane.after_migration = self.release_lock
            self.on_lock_change: Callable[[], None] = lambda: None
            self.pauses = Pauses(self.plane)
            undo.pop_all()

    @classmethod
    async def open(cls, config: ExportConfig) -> Self:
        """Open, lock and measure the image of `config`.  Raises BlkdError: nothing stays open."""
        probe_io_uring()  # rather now than at the first request
        plan = worker_plan(config)
        opening = Opening(
            read_only=config.read_only,
            direct=config.cache == "none",
            logical_block_size=config.logical_block_size,
            engine=config.engine,
            incoming=config.incoming,
            workers=plan.workers,
            image_format=config.image_format,
        )
        return cls(config, plan, await open_image(config.image, opening))

    @classmethod
    def adopt(
        cls,
        config: ExportConfig,
        lent: int | None,
        *,
        logical_block_size: int,
        is_locked: bool,
        shown: Shown | None,
    ) -> Self:
        """Go on with the image of `config` as another process has it open.

        `lent` is what that one's image lends, taken.  Nothing is fetched before
        `pauses.end(Pause.FROZEN)`.  Raises BlkdError; `lent` is closed.
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
        )
        image = adopt_image(config.image, lent, opening, is_locked=is_locked)
        disk = cls(config, plan, image, shown)
        disk.pauses.keep(Pause.FROZEN)
        return disk

    def close(self) -> None:
        """Close data path and image."""
        self.plane.close()
        if not self.plane.has_abandoned:  # else somebody is still at it: the process ends
            self.image.close()

    @property
    def serial(self) -> str:
        """The serial that the guest sees."""
        return self.device.serial.rstrip(b"\0").decode()

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
        await self.plane.configure()
        if changed:
            log.info("size changed", export=self.name, size=size)

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
