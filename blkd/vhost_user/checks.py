# SPDX-License-Identifier: Apache-2.0
"""What a session checks of vrings, memory and logs, beyond their layouts on the wire."""

from blkd.errors import RequestRefused
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.iotlb import IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import (
    ADDRESS_SPACE,
    LARGEST_OFFSET,
    LogBase,
    MemoryRegion,
    ProtocolFeature,
    VirtioFeature,
    VringAddr,
)

IOVA_PAGE = 0x1000
"""Bytes: the smallest page of any IOMMU."""

ASKING = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
"""What it takes to ask for a translation, and to learn that there is none."""


def require_size(index: int, size: int, limit: int, features: int) -> None:
    """Raise RequestRefused unless vring `index` may have `size` descriptors.

    `limit` is the largest size that is served; a split vring's is a power of two (virtio 1.3, 2.7).
    """
    packed = bool(features & VirtioFeature.RING_PACKED)
    if not 1 <= size <= limit or (size & (size - 1) and not packed):
        kind = "number" if packed else "power of two"
        raise RequestRefused(
            f"ring {index} of {size} descriptors, not a {kind} up to {limit}",
            hint=f"give the front end a queue size of at most {limit}",
        )


def require_queues(region: Inflight, vrings: int, limit: int) -> None:
    """Raise RequestRefused unless an in-flight region is for so many vrings of such sizes.

    `limit` is the largest size that is served, in descriptors.
    """
    if not (1 <= region.queues <= vrings and 1 <= region.queue_size <= limit):
        raise RequestRefused(
            f"an in-flight region for {region.queues} rings of {region.queue_size}"
            f" descriptors, not up to {vrings} of {limit}"
        )


def require_inflight_place(region: Inflight) -> None:
    """Raise RequestRefused unless a file can have an in-flight region at this offset."""
    if not region.mmap_size or not region.fits_a_file:
        raise RequestRefused(
            f"an in-flight region of {region.mmap_size} bytes at {region.mmap_offset:#x}"
        )


def require_alignment(where: VringAddr, features: int) -> None:
    """Raise RequestRefused unless each part of a vring is aligned (virtio 1.3, 2.7, 2.8.10.1)."""
    setup = VringSetup(0, where.desc, where.avail, where.used, 0, features)
    for address, _, align in setup.parts:
        if address % align:
            raise RequestRefused(
                f"ring {where.index}: a part of it at {address:#x}, not aligned to {align}"
            )


def require_log_place(log: LogBase) -> None:
    """Raise RequestRefused unless a file can have a dirty log at this offset."""
    if not log.size or log.offset + log.size > LARGEST_OFFSET:
        raise RequestRefused(f"a dirty log of {log.size} bytes at {log.offset:#x}")


def require_log_covers(setup: VringSetup, log: LogBase | None) -> None:
    """Raise RequestRefused unless the log has bits for the used ring of a vring that is logged.

    Without a log nothing is checked: QEMU sends it after it has started the vrings, and before it
    enables them.  Nor is it where addresses are IOVAs: where the used ring lies in guest memory
    shows when it is translated.
    """
    _, size, _ = setup.parts[2]
    if (
        log
        and not setup.translated
        and setup.logged_at is not None
        and setup.logged_at + size > log.covered
    ):
        raise RequestRefused(
            f"a used ring logged at {setup.logged_at:#x}, with a log up to {log.covered:#x}"
        )


def require_no_overlap(region: MemoryRegion, others: tuple[MemoryRegion, ...]) -> None:
    """Raise RequestRefused if a guest address is in `region` and in one of `others`."""
    for other in others:
        if region.overlaps(other):
            raise RequestRefused(
                f"memory regions overlap: {region.size} bytes at {region.guest_address:#x}"
                f" and {other.size} at {other.guest_address:#x}"
            )


def require_asking(features: int, protocol_features: ProtocolFeature) -> None:
    """Raise RequestRefused where addresses are IOVAs and nobody could be asked what they mean.

    A front end does not send translations of its own accord (vhost-user, "IOMMU support").
    """
    if features & VirtioFeature.ACCESS_PLATFORM and ASKING not in protocol_features:
        raise RequestRefused(
            f"ACCESS_PLATFORM with protocol features {int(protocol_features):#x}:"
            " BACKEND_REQ and REPLY_ACK have to be negotiated first"
        )


def require_translation(entry: IotlbEntry) -> None:
    """Raise RequestRefused unless an entry translates whole pages to addresses that there are."""
    if not entry.size or not entry.access:
        raise RequestRefused(f"a translation of {entry.size} bytes for {entry.access!r}")
    for start in (entry.iova, entry.user_address):
        if (start | entry.size) % IOVA_PAGE:
            raise RequestRefused(
                f"a translation of {entry.size} bytes at {start:#x}, no whole pages"
            )
        if start + entry.size > ADDRESS_SPACE:
            raise RequestRefused(f"a translation of {entry.size} bytes at {start:#x} wraps")
