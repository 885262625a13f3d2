# SPDX-License-Identifier: Apache-2.0
"""What blkd makes of each message and feature bit of vhost-user, said once.

The session checks messages against these declarations and finds its handler by a request's
name; the message cap, the offered feature bits and `docs/protocol.md` follow from them too.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Any, Final

from blkd.errors import ProtocolError, RequestRefused
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.iotlb import IotlbMessage
from blkd.vhost_user.wire import (
    U64,
    BackendRequest,
    Config,
    ConfigWrite,
    Empty,
    Header,
    LogBase,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    SingleRegion,
    Unread,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
)

MAX_MEM_SLOTS: Final = 509  # what KVM gives a guest, and other back ends offer


class Support(enum.Enum):
    """How far blkd goes."""

    YES = "supported"
    LATER = "not offered yet"
    NO = "refused"
    OF_DEVICE = "network devices"
    """Supported, but offered by devices of this kind only: `Device.protocol_features`."""
    FOREIGN = "n.a."
    """Means nothing to a block device, or to this kind of back end."""


@dataclass(frozen=True, slots=True)
class Fds:
    """How many descriptors come with a request, which can depend on its payload."""

    text: str
    expected: Callable[[Any], range]

    def allow(self, payload: Payload, count: int) -> bool:
        """Whether `count` descriptors are right for this payload."""
        return count in self.expected(payload)


NO_FDS = Fds("0", lambda _: range(1))
ONE_FD = Fds("1", lambda _: range(1, 2))
UNWANTED_FD = Fds("0, or 1 that is closed", lambda _: range(2))
FD_UNLESS_FLAGGED = Fds("1, or 0 with bit 8", lambda vring: range(vring.has_fd, vring.has_fd + 1))
FD_PER_REGION = Fds("1 a region", lambda table: range(len(table.regions), len(table.regions) + 1))


@dataclass(frozen=True, slots=True)
class Declaration:
    """One request: what it looks like, when it is allowed and how it is answered."""

    payload: type[Payload] = Empty
    fds: Fds = NO_FDS
    needs: ProtocolFeature | VirtioFeature | None = None
    """The feature that has to be negotiated first."""
    replies: bool = False
    """Whether it has a reply of its own, so that NEED_REPLY changes nothing."""
    refusal: bytes | None = None
    """The payload by which a reply of its own says no; None where there is no such form."""
    support: Support = Support.YES
    note: str = ""
    """What is worth knowing; for a request that is not supported, why."""


def declined(
    support: Support, note: str, *, replies: bool = False, refusal: bytes | None = None
) -> Declaration:
    """A request that is always refused, whatever it carries."""
    return Declaration(Unread, support=support, note=note, replies=replies, refusal=refusal)


NOT_ZERO = U64(1).encode()  # how a reply that is one u64 says no
NOTHING = b""  # how GET_CONFIG says no
NO_REGION = Inflight(0, 0, 0, 0, padded=True).encode()  # how GET_INFLIGHT_FD says no

REQUESTS: Final = MappingProxyType(
    {
        Request.GET_FEATURES: Declaration(replies=True),
        Request.SET_FEATURES: Declaration(
            U64,
            note="may be repeated; without bit 30 it enables all rings; "
            "of running rings only LOG_ALL may change",
        ),
        Request.SET_OWNER: Declaration(note="may come late, early or twice"),
        Request.RESET_OWNER: Declaration(note="disables all rings, nothing else"),
        Request.SET_MEM_TABLE: Declaration(MemoryTable, FD_PER_REGION, note="also while rings run"),
        Request.SET_LOG_BASE: Declaration(
            LogBase,
            ONE_FD,
            needs=ProtocolFeature.LOG_SHMFD,
            replies=True,
            refusal=NOT_ZERO,
            note="replaces an earlier one, also while rings run",
        ),
        Request.SET_LOG_FD: Declaration(
            fds=ONE_FD, note="taken and closed: front ends look at the log by themselves"
        ),
        Request.SET_VRING_NUM: Declaration(
            VringState, note="up to 1024, a power of two if split; only while stopped"
        ),
        Request.SET_VRING_ADDR: Declaration(
            VringAddr, note="moves a running ring, and switches its logging (flag bit 0)"
        ),
        Request.SET_VRING_BASE: Declaration(VringState, note="only while the ring is stopped"),
        Request.GET_VRING_BASE: Declaration(
            VringState, replies=True, note="completes all requests in flight, then stops the ring"
        ),
        Request.SET_VRING_KICK: Declaration(
            VringFd,
            FD_UNLESS_FLAGGED,
            note="starts a ring that has size and addresses; polling (bit 8) is refused",
        ),
        Request.SET_VRING_CALL: Declaration(VringFd, FD_UNLESS_FLAGGED),
        Request.SET_VRING_ERR: Declaration(VringFd, FD_UNLESS_FLAGGED),
        Request.GET_PROTOCOL_FEATURES: Declaration(replies=True),
        Request.SET_PROTOCOL_FEATURES: Declaration(U64, note="before or after SET_FEATURES"),
        Request.GET_QUEUE_NUM: Declaration(replies=True),
        Request.SET_VRING_ENABLE: Declaration(
            VringState, needs=VirtioFeature.PROTOCOL_FEATURES, note="a disabled ring stays started"
        ),
        Request.SEND_RARP: Declaration(
            U64,
            needs=ProtocolFeature.RARP,
            support=Support.OF_DEVICE,
            note="announces a guest that was migrated here; the address is the first six bytes",
        ),
        Request.NET_SET_MTU: declined(Support.FOREIGN, "network devices"),
        Request.SET_BACKEND_REQ_FD: Declaration(
            fds=ONE_FD, needs=ProtocolFeature.BACKEND_REQ, note="replaces an earlier one"
        ),
        Request.IOTLB_MSG: Declaration(
            IotlbMessage,
            needs=VirtioFeature.ACCESS_PLATFORM,
            replies=True,
            refusal=NOT_ZERO,
            note="UPDATE at any time; INVALIDATE waits for what touches the range; "
            "payload of 26 or 32 bytes",
        ),
        Request.SET_VRING_ENDIAN: declined(Support.NO, "CROSS_ENDIAN is not offered"),
        Request.GET_CONFIG: Declaration(
            Config,
            needs=ProtocolFeature.CONFIG,
            replies=True,
            refusal=NOTHING,
            note="any offset and length, zeroes past the end; from 0x100 on relative to that",
        ),
        Request.SET_CONFIG: Declaration(
            ConfigWrite, needs=ProtocolFeature.CONFIG, note="writable fields only"
        ),
        Request.CREATE_CRYPTO_SESSION: declined(Support.FOREIGN, "crypto devices", replies=True),
        Request.CLOSE_CRYPTO_SESSION: declined(Support.FOREIGN, "crypto devices"),
        Request.POSTCOPY_ADVISE: declined(Support.NO, "PAGEFAULT is not offered", replies=True),
        Request.POSTCOPY_LISTEN: declined(Support.NO, "PAGEFAULT is not offered"),
        Request.POSTCOPY_END: declined(
            Support.NO, "PAGEFAULT is not offered", replies=True, refusal=NOT_ZERO
        ),
        Request.GET_INFLIGHT_FD: Declaration(
            Inflight,
            needs=ProtocolFeature.INFLIGHT_SHMFD,
            replies=True,
            refusal=NO_REGION,
            note="a new region, sealed, with room for rings of any size; payload of 20 or 24 bytes",
        ),
        Request.SET_INFLIGHT_FD: Declaration(
            Inflight,
            ONE_FD,
            needs=ProtocolFeature.INFLIGHT_SHMFD,
            note="only while all rings are stopped; what is in flight is carried out again",
        ),
        Request.GPU_SET_SOCKET: declined(Support.FOREIGN, "graphics devices"),
        Request.RESET_DEVICE: Declaration(
            needs=ProtocolFeature.RESET_DEVICE,
            note="stops and disables all rings; GET_VRING_BASE still tells where they stopped",
        ),
        Request.VRING_KICK: declined(Support.NO, "INBAND_NOTIFICATIONS is not offered"),
        Request.GET_MAX_MEM_SLOTS: Declaration(
            needs=ProtocolFeature.CONFIGURE_MEM_SLOTS, replies=True, note=f"{MAX_MEM_SLOTS}"
        ),
        Request.ADD_MEM_REG: Declaration(
            SingleRegion,
            ONE_FD,
            needs=ProtocolFeature.CONFIGURE_MEM_SLOTS,
            note="also while rings run; one that is there is to be removed as often as added",
        ),
        Request.REM_MEM_REG: Declaration(
            SingleRegion,
            UNWANTED_FD,
            needs=ProtocolFeature.CONFIGURE_MEM_SLOTS,
            note="waits for the I/O that uses the region",
        ),
        Request.SET_STATUS: Declaration(
            U64,
            needs=ProtocolFeature.STATUS,
            note="remembered; 0 stops no ring, for front ends send it before GET_VRING_BASE",
        ),
        Request.GET_STATUS: Declaration(needs=ProtocolFeature.STATUS, replies=True),
        Request.GET_SHARED_OBJECT: declined(Support.FOREIGN, "graphics devices", replies=True),
        Request.SET_DEVICE_STATE_FD: declined(
            Support.NO, "DEVICE_STATE is not offered", replies=True, refusal=NOT_ZERO
        ),
        Request.CHECK_DEVICE_STATE: declined(
            Support.NO, "DEVICE_STATE is not offered", replies=True, refusal=NOT_ZERO
        ),
    }
)


def declared(header: Header) -> tuple[Request, Declaration]:
    """The declaration of the request that a header announces.

    Raises ProtocolError on a reply, RequestRefused on a request of no specification.
    """
    if header.is_reply:
        raise ProtocolError(f"a reply to request {header.request}, which nobody sent")
    try:
        request = Request(header.request)
    except ValueError:
        raise RequestRefused(f"request {header.request} is unknown") from None
    return request, REQUESTS[request]


MAX_PAYLOAD: Final = max(declaration.payload.LONGEST for declaration in REQUESTS.values())
"""Bytes; a header that announces more ends the connection before they are read."""


@dataclass(frozen=True, slots=True)
class Stance:
    """What blkd makes of one feature bit or one back-end request."""

    support: Support
    note: str = ""


PROTOCOL_FEATURES: Final = MappingProxyType(
    {
        ProtocolFeature.MQ: Stance(Support.YES),
        ProtocolFeature.LOG_SHMFD: Stance(Support.YES, "dirty log of live migration"),
        ProtocolFeature.RARP: Stance(Support.OF_DEVICE, "announces after a migration"),
        ProtocolFeature.REPLY_ACK: Stance(Support.YES),
        ProtocolFeature.MTU: Stance(Support.FOREIGN, "network devices"),
        ProtocolFeature.BACKEND_REQ: Stance(Support.YES, "carries CONFIG_CHANGE_MSG and IOTLB_MSG"),
        ProtocolFeature.CROSS_ENDIAN: Stance(Support.NO, "big-endian legacy drivers"),
        ProtocolFeature.CRYPTO_SESSION: Stance(Support.FOREIGN, "crypto devices"),
        ProtocolFeature.PAGEFAULT: Stance(Support.NO, "postcopy migration"),
        ProtocolFeature.CONFIG: Stance(Support.YES),
        ProtocolFeature.BACKEND_SEND_FD: Stance(Support.NO, "no message of ours carries one"),
        ProtocolFeature.HOST_NOTIFIER: Stance(Support.FOREIGN, "hardware doorbells"),
        ProtocolFeature.INFLIGHT_SHMFD: Stance(
            Support.YES, "requests in flight outlive a back end that is killed"
        ),
        ProtocolFeature.RESET_DEVICE: Stance(Support.YES),
        ProtocolFeature.INBAND_NOTIFICATIONS: Stance(Support.NO, "eventfds only"),
        ProtocolFeature.CONFIGURE_MEM_SLOTS: Stance(Support.YES, f"{MAX_MEM_SLOTS} regions"),
        ProtocolFeature.STATUS: Stance(Support.YES),
        ProtocolFeature.XEN_MMAP: Stance(Support.FOREIGN, "Xen"),
        ProtocolFeature.SHARED_OBJECT: Stance(Support.FOREIGN, "graphics devices"),
        ProtocolFeature.DEVICE_STATE: Stance(Support.NO, "a raw disk's state is its image"),
    }
)

OFFERED_PROTOCOL_FEATURES: Final = reduce(
    or_, (bit for bit, stance in PROTOCOL_FEATURES.items() if stance.support is Support.YES)
)

VIRTIO_FEATURES: Final = MappingProxyType(
    {
        VirtioFeature.NOTIFY_ON_EMPTY: Stance(Support.NO, "legacy; EVENT_IDX does more"),
        VirtioFeature.LOG_ALL: Stance(Support.YES, "vhost's own: live migration"),
        VirtioFeature.ANY_LAYOUT: Stance(Support.NO, "legacy; any framing is served anyway"),
        VirtioFeature.INDIRECT_DESC: Stance(Support.YES),
        VirtioFeature.EVENT_IDX: Stance(Support.YES),
        VirtioFeature.PROTOCOL_FEATURES: Stance(Support.YES, "vhost-user's own"),
        VirtioFeature.VERSION_1: Stance(
            Support.YES, "drivers without it are served on little-endian hosts"
        ),
        VirtioFeature.ACCESS_PLATFORM: Stance(
            Support.YES, "needs BACKEND_REQ and REPLY_ACK, negotiated before"
        ),
        VirtioFeature.RING_PACKED: Stance(Support.YES),
        VirtioFeature.IN_ORDER: Stance(Support.NO, "completions come as the disk has them"),
        VirtioFeature.ORDER_PLATFORM: Stance(Support.FOREIGN, "hardware devices"),
        VirtioFeature.SR_IOV: Stance(Support.FOREIGN, "PCI functions"),
        VirtioFeature.NOTIFICATION_DATA: Stance(Support.NO, "kicks are eventfds"),
        VirtioFeature.NOTIF_CONFIG_DATA: Stance(Support.FOREIGN, "the front end's transport"),
        VirtioFeature.RING_RESET: Stance(Support.NO),
        VirtioFeature.ADMIN_VQ: Stance(Support.FOREIGN, "PCI functions"),
    }
)

BACKEND_REQUESTS: Final = MappingProxyType(
    {
        BackendRequest.IOTLB_MSG: Stance(
            Support.YES,
            "MISS; what is answered without an UPDATE is denied, for its request only",
        ),
        BackendRequest.CONFIG_CHANGE_MSG: Stance(
            Support.YES, "after a resize, once the rings run and the main channel is quiet"
        ),
        BackendRequest.VRING_HOST_NOTIFIER_MSG: Stance(Support.FOREIGN, "hardware doorbells"),
        BackendRequest.VRING_CALL: Stance(Support.NO, "eventfds only"),
        BackendRequest.VRING_ERR: Stance(Support.NO, "eventfds only"),
        BackendRequest.SHARED_OBJECT_ADD: Stance(Support.FOREIGN, "graphics devices"),
        BackendRequest.SHARED_OBJECT_REMOVE: Stance(Support.FOREIGN, "graphics devices"),
        BackendRequest.SHARED_OBJECT_LOOKUP: Stance(Support.FOREIGN, "graphics devices"),
    }
)
