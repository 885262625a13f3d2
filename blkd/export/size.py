# SPDX-License-Identifier: Apache-2.0
"""The size of a served disk: changed by order, or found changed; announced to the front end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog

from blkd.errors import ConfigError, ImageError
from blkd.export.disk import Disk
from blkd.export.views import Announced, ResizeResult
from blkd.image.watch import looks

WATCH_PERIOD: Final = 1.0  # seconds between two measurements of an image that others may change

log = structlog.get_logger()


class DiskSize:
    """Changes a disk's size, one change after the other.

    `announce` tells the front end of a change, and what has come of that.
    """

    def __init__(self, disk: Disk, announce: Callable[[], Awaitable[Announced]]) -> None:
        self._disk = disk
        self._announce = announce
        self._changing = asyncio.Lock()

    async def resize(self, size: int, *, force: bool = False) -> ResizeResult:
        """Make the disk `size` bytes long and announce it.

        A shrinking disk is drained first.

        Raises:
            ImageError: The image cannot have that size.
            ConfigError: It would shrink, and `force` was not given.
            DrainTimeout: Requests in flight did not end in time; nothing was changed.
        """
        disk = self._disk
        async with self._changing:
            if size < (present := disk.size):
                if not force:
                    raise ConfigError(
                        f"{disk.image.path}: {size} bytes is less than the present {present}",
                        hint="shrinking loses what is beyond: --force does it all the same",
                    )
                async with disk.drained():
                    await disk.resize(size)
            else:
                await disk.resize(size)
            return ResizeResult(size, present, await self._announce())

    async def refresh(self) -> ResizeResult:
        """Measure the image; take the size to which it grew by other means, and announce it.

        One that shrank is an accident until `resize` says otherwise: the disk keeps its size,
        and what the guest reads beyond the image's end fails.
        """
        disk = self._disk
        async with self._changing:
            present = disk.size
            await disk.image.refresh()
            if (found := disk.image.limits.size) < present:
                log.error("image shrank under its disk", image=disk.image.path, size=found)
                return ResizeResult(present, present, "not-connected")
            await disk.take_size()
            return ResizeResult(found, present, await self._announce())

    async def watch(self) -> None:
        """Refresh the size each time that somebody else has changed the image; does not end."""
        async with contextlib.aclosing(looks(self._disk.image, WATCH_PERIOD)) as occasions:
            async for _ in occasions:
                await self._refresh_if_changed()

    async def _refresh_if_changed(self) -> None:
        image = self._disk.image
        try:
            size = await image.measure()  # before all else waits for it
            async with self._changing:  # a change under way takes the size that it makes
                known = image.limits.size
                changed = size != known or known > self._disk.size
            if changed:
                await self.refresh()
        except (OSError, ImageError) as error:
            log.warning("image cannot be measured", image=image.path, reason=str(error))

    @contextlib.asynccontextmanager
    async def unchanging(self, limit: float) -> AsyncIterator[None]:
        """No change is made within.  Raises TimeoutError if one lasts `limit` seconds longer."""
        async with asyncio.timeout(limit):
            await self._changing.acquire()
        try:
            yield
        finally:
            self._changing.release()
