# SPDX-License-Identifier: Apache-2.0
"""What a session checks of rings, memory and logs, beyond what their layouts say."""

from blkd.errors import RequestRefused
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import LARGEST_OFFSET, LogBase, MemoryRegion, VirtioFeature, VringAddr


def refuse_size(index: int, size: int, limit: int, features: int) -> None:
    """Raise RequestRefused unless a ring of this layout may have `size` descriptors."""
    packed = bool(features & VirtioFeature.RING_PACKED)
    if not 1 <= size <= limit or (size & (size - 1) and not packed):
        kind = "number" if packed else "power of two"
        raise RequestRefused(
            f"ring {index} of {size} descriptors, not a {kind} up to {limit}",
            hint=f"give the front end a queue size of at most {limit}",
        )


def refuse_no_rings(region: Inflight, rings: int, limit: int) -> None:
    """Raise RequestRefused unless an in-flight region is for rings as we have them."""
    if not (1 <= region.queues <= rings and 1 <= region.queue_size <= limit):
        raise RequestRefused(
            f"an in-flight region for {region.queues} rings of {region.queue_size}"
            f" descriptors, not up to {rings} of {limit}"
        )


def refuse_unfit(region: Inflight) -> None:
    """Raise RequestRefused unless a file can have an in-flight region where it is said to be."""
    if not region.mmap_size or not region.fits_a_file:
        raise RequestRefused(
            f"an in-flight region of {region.mmap_size} bytes at {region.mmap_offset:#x}"
        )


def refuse_misaligned(where: VringAddr, features: int) -> None:
    """Raise RequestRefused unless each part of a ring is aligned as virtio wants it."""
    setup = VringSetup(0, where.desc, where.avail, where.used, 0, features)
    for address, _, align in setup.parts:
        if address % align:
            raise RequestRefused(
                f"ring {where.index}: a part of it at {address:#x}, not aligned to {align}"
            )


def refuse_no_log(log: LogBase) -> None:
    """Raise RequestRefused unless a file can have a dirty log where it is said to be."""
    if not log.size or log.offset + log.size > LARGEST_OFFSET:
        raise RequestRefused(f"a dirty log of {log.size} bytes at {log.offset:#x}")


def refuse_unlogged(setup: VringSetup, log: LogBase | None) -> None:
    """Raise RequestRefused if the log has no bits for a ring that is to be logged.

    Without a log that is left open: QEMU gives it after it has started the rings, and before it
    enables them.
    """
    _, size, _ = setup.parts[2]
    if log and setup.logged_at is not None and setup.logged_at + size > log.covered:
        raise RequestRefused(
            f"a used ring logged at {setup.logged_at:#x}, with a log up to {log.covered:#x}"
        )


def refuse_overlap(region: MemoryRegion, others: tuple[MemoryRegion, ...]) -> None:
    """Raise RequestRefused if a guest address would be in two regions."""
    for other in others:
        if region.overlaps(other):
            raise RequestRefused(
                f"memory regions overlap: {region.size} bytes at {region.guest_address:#x}"
                f" and {other.size} at {other.guest_address:#x}"
            )
