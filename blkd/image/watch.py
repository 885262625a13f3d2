# SPDX-License-Identifier: Apache-2.0
"""When an image may have got another size: by the kernel's events, or else by the clock."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator
from typing import Final

import structlog

from blkd.image import kernel
from blkd.image.base import Image, Watch
from blkd.image.inotify import Modification
from blkd.image.opener import Opener
from blkd.image.uevents import CapacityChange

ANNOUNCING_DEVICES: Final = re.compile(
    r"(?:sd|vd|xvd)[a-z]+|nvme\d+(?:c\d+)?n\d+|(?:dm-|md|loop|nbd|rbd|rnbd|drbd|zram)\d+"
)
"""Whole disks of the drivers that send an event with each change of capacity (in the kernel:
set_capacity_and_notify).  There is none when a partition is resized (BLKPG_RESIZE_PARTITION)."""

log = structlog.get_logger()


class AnyMoment:
    """Stands in where the kernel announces nothing: any moment may be an occasion."""

    async def arm(self) -> None:
        """Do nothing."""

    async def wait(self) -> None:
        """Return at once."""

    def close(self) -> None:
        """Do nothing."""


class NoOccasion(AnyMoment):
    """Stands in where nobody else can change the size."""

    async def wait(self) -> None:
        """Never return."""
        await asyncio.Event().wait()


async def looks(image: Image, period: float) -> AsyncGenerator[None, None]:
    """Come each time that the size of `image` is to be looked at, first of all at once.

    Never twice within `period` seconds, and not later than that after a change.  Nothing wakes
    the process while the image rests, unless the kernel announces nothing: then each `period` does.
    """
    loop = asyncio.get_running_loop()
    watch = image.watch(period)
    try:
        while True:
            next_one = loop.time() + period
            yield
            try:
                await watch.wait()
            except OSError as error:
                watch.close()
                watch = _clock(image, period, error.strerror)
            await asyncio.sleep(next_one - loop.time())
            await watch.arm()  # before the look: no change falls between the two
    finally:
        watch.close()


class Announcements:
    """What the kernel announces of an image: found out while the whole host is seen."""

    def __init__(self, fd: int, *, is_block_device: bool, opener: Opener | None) -> None:
        """Borrows `fd`, the image.

        With an `opener`, the process is about to lose sight of the host: what is to be listened to
        then is open afterwards.
        """
        self._device: CapacityChange | None = None
        self._is_block_device = is_block_device
        self._opener = opener
        try:
            self._reason = _why_unannounced(fd, is_block_device=is_block_device)
            if self._reason is None and is_block_device and opener is not None:
                self._device = CapacityChange(os.fstat(fd).st_rdev)
        except OSError as error:
            self._reason = error.strerror

    def watch(self, image: Image, fd: int, period: float) -> Watch:
        """The best watch for `image`, open as `fd`; the log says where that is the clock."""
        reason = self._reason
        try:
            if reason is None and self._is_block_device:
                early, self._device = self._device, None
                return early or CapacityChange(os.fstat(fd).st_rdev)
            if reason is None:
                return Modification(fd, None if self._opener is None else self._opener.arm)
        except OSError as error:
            reason = error.strerror
        return _clock(image, period, reason)

    def close(self) -> None:
        """Listen to nothing, unless `watch` has given that away."""
        if self._device is not None:
            self._device.close()


def _clock(image: Image, period: float, reason: str | None) -> Watch:
    log.info("size looked at by the clock", image=image.path, period=period, reason=reason)
    return AnyMoment()


def _why_unannounced(fd: int, *, is_block_device: bool) -> str | None:
    """Why the kernel would not announce another size, or None if it would."""
    if not is_block_device:
        filesystem = kernel.filesystem(fd)
        return None if filesystem in kernel.LOCAL_FILESYSTEMS else f"a file on {filesystem}"
    name = kernel.device_name(os.fstat(fd).st_rdev)
    if not ANNOUNCING_DEVICES.fullmatch(name):
        return f"{name} does not announce its size"
    return None if kernel.hears_of_devices() else "no events reach a user namespace"
