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
from blkd.image.uevents import CapacityChange

LOCAL_FILESYSTEMS: Final = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "tmpfs", "overlay"}
)
"""Whose files change by this kernel only.  In all others somebody else may change them unheard:
another host, or the process behind a FUSE mount."""

ANNOUNCING_DEVICES: Final = re.compile(
    r"(?:sd|vd|xvd)[a-z]+|nvme\d+(?:c\d+)?n\d+|(?:dm-|md|loop|nbd|rbd|rnbd|drbd|zram)\d+"
)
"""Whole disks of the drivers that send an event with each change of capacity (in the kernel:
set_capacity_and_notify).  There is none when a partition is resized (BLKPG_RESIZE_PARTITION)."""

log = structlog.get_logger()


class AnyMoment:
    """Stands in where the kernel announces nothing: any moment may be an occasion."""

    def arm(self) -> None:
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
            watch.arm()  # before the look: no change falls between the two
    finally:
        watch.close()


def watch_file(image: Image, fd: int, period: float) -> Watch:
    """The best watch for the image that `fd` is; the log says where that is the clock."""
    try:
        reason = _why_unannounced(image, fd)
        if reason is None and image.limits.is_block_device:
            return CapacityChange(os.fstat(fd).st_rdev)
        if reason is None:
            return Modification(fd)
    except OSError as error:
        reason = error.strerror
    return _clock(image, period, reason)


def _clock(image: Image, period: float, reason: str | None) -> Watch:
    log.info("size looked at by the clock", image=image.path, period=period, reason=reason)
    return AnyMoment()


def _why_unannounced(image: Image, fd: int) -> str | None:
    """Why the kernel would not announce another size, or None if it would."""
    if not image.limits.is_block_device:
        filesystem = kernel.filesystem(fd)
        return None if filesystem in LOCAL_FILESYSTEMS else f"a file on {filesystem}"
    name = kernel.device_name(os.fstat(fd).st_rdev)
    if not ANNOUNCING_DEVICES.fullmatch(name):
        return f"{name} does not announce its size"
    return None if kernel.hears_of_devices() else "no events reach a user namespace"
