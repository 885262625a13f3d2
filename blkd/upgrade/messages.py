# SPDX-License-Identifier: Apache-2.0
"""What two processes say to each other when one takes a disk over from the other.

A field that is not known is refused, and one that has its default is not sent: so what is new
stands in nobody's way until it is used.  `docs/upgrade.md` tells the meaning of each field.
"""

from typing import Annotated, Final, Literal

import msgspec

from blkd.vhost_user.requests import MAX_MEM_SLOTS

FORMAT: Final = 1
"""The version of all that stands here; another one if a field changes its meaning."""

DEVICE: Final = "device"
"""In a hello: `Offer.device` is understood."""
STATISTICS: Final = "statistics"
"""Likewise `Offer.statistics`."""

MAX_DESCRIPTORS: Final = 1024  # 509 regions, 64 rings of 3, and some sockets
MAX_RINGS: Final = 64
MAX_SECTORS: Final = 2**54 - 1  # what off_t counts
MAX_BEGUN: Final = 1 << 16  # bytes of a message that is not whole; the longest has fewer
MAX_TEXT: Final = 4096  # bytes of a reason or a path
MAX_ERRNO: Final = 4095  # of Linux

BlockSize = Literal[512, 4096]  # bytes
Number = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Descriptor = Annotated[int, msgspec.Meta(ge=0, lt=MAX_DESCRIPTORS)]
"""Which of its message's descriptors is meant, counted from 0."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The taker speaks first.  The same in every format: what it does not know it passes over."""

    formats: Annotated[tuple[Number, ...], msgspec.Meta(max_length=64)]
    """Those that it can take."""
    version: Text
    pid: Number
    knows: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)] = ()
    """What it understands of an offer that not every version does: `device`, `statistics`."""


class Device(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What the guest was shown of the device when it was started; bytes unless said."""

    features: Number
    """Offered, vhost-user's own bit not among them."""
    size_max: Size
    seg_max: Size
    physical_block_size: Size
    optimal_io_size: Size
    discard_granularity: Size
    max_discard_sectors: Size
    max_discard_segments: Size
    max_write_zeroes_sectors: Size
    max_write_zeroes_segments: Size
    write_zeroes_may_unmap: bool


class Offer(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is served, for the taker to prepare for while it still is served."""

    version: Text
    pid: Number
    directory: Text
    """Where relative paths of the configuration begin."""
    config: msgspec.Raw
    """An `ExportConfig`."""
    logical_block_size: BlockSize
    device: Device | None = None
    """Only for one that knows it; without it the taker shows what version 0.1 would."""
    image: Descriptor | None = None
    """The open image; None for one without a descriptor."""
    image_locked: bool = True
    """Whether it is: not before a guest is migrated here, and after it was migrated away."""
    listener: Descriptor
    """Where front ends connect."""
    control: Descriptor
    """Where the control API is called."""
    rings: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_RINGS)] = ()
    """Those that the front end has had to do with, as far as is known yet."""
    statistics: Descriptor | None = None
    """The statistics area; only for one that knows it."""
    notify: Text | None = None
    """NOTIFY_SOCKET of the service manager."""


class Ready(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The taker has prepared all that can be prepared."""


class Region(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One region of guest memory, as in the front end's memory table."""

    guest_address: Number
    size: Number
    user_address: Number
    mmap_offset: Number
    memory: Descriptor


class Addresses(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A ring's place, as SET_VRING_ADDR gave it."""

    flags: Number = 0
    desc: Number
    used: Number
    avail: Number
    log: Number = 0


class Ring(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One ring, and its requests since the disk is served."""

    index: Number
    size: Number = 0
    addresses: Addresses | None = None
    base: Number | None = None
    """Of a started ring what GET_VRING_BASE would answer, else what SET_VRING_BASE gave."""
    started: bool = False
    enabled: bool = False
    broken: bool = False
    kick: Descriptor | None = None
    call: Descriptor | None = None
    error: Descriptor | None = None
    counters: dict[Text, Number] = {}


class Begun(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What has come of a message of the front end that is not whole yet."""

    data: Annotated[bytes, msgspec.Meta(max_length=MAX_BEGUN)]
    descriptors: Annotated[tuple[Descriptor, ...], msgspec.Meta(max_length=8)] = ()
    """Those that came along, in their order."""


class BackChannel(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The socket for our requests to the front end."""

    socket: Descriptor
    overdue: Number = 0
    """Acknowledgements that may still come for requests of the giver."""
    begun: Begun | None = None
    """An acknowledgement of which a part has come."""


class Inflight(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The region in which requests in flight are recorded."""

    mmap_size: Number
    mmap_offset: Number
    queues: Number
    queue_size: Number
    packed: bool
    """Whether it is laid out for packed rings."""
    memory: Descriptor
    lent: bool = True
    """Whether SET_INFLIGHT_FD gave it; else the giver has made it."""


class Log(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The dirty log of a migration, as SET_LOG_BASE gave it."""

    size: Number
    offset: Number
    memory: Descriptor


class FrontEnd(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A connected front end: its socket, and all that it has set."""

    socket: Descriptor
    features: Number
    based_on: Number
    """The features that the rings' bases are of."""
    protocol_features: Number
    status: Number
    fetched: Number | None = None
    """Generation of the configuration space as it was last read; None before."""
    back_channel: BackChannel | None = None
    begun: Begun | None = None
    """A request of which a part has come."""
    regions: Annotated[tuple[Region, ...], msgspec.Meta(max_length=MAX_MEM_SLOTS)] = ()
    inflight: Inflight | None = None
    log: Log | None = None


class State(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The disk at rest: nothing is read from the front end and nothing is in flight."""

    began: Number
    """When the pause began, in nanoseconds of CLOCK_MONOTONIC."""
    paused: bool = False
    """Whether somebody ordered a pause, which goes on then."""
    capacity: Annotated[int, msgspec.Meta(gt=0, le=MAX_SECTORS)]
    """Sectors that the guest is shown."""
    generation: Number
    """Of the configuration space."""
    write_back: bool
    """The driver's last choice of a cache mode."""
    sync_error: Annotated[int, msgspec.Meta(ge=0, le=MAX_ERRNO)] = 0
    """The errno of the image's first failed sync; 0 without one."""
    rings: Annotated[tuple[Ring, ...], msgspec.Meta(max_length=MAX_RINGS)] = ()
    front_end: FrontEnd | None = None


class Taken(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The taker could serve from now on, and touches nothing before it may."""


class Go(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The disk is the taker's."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the two cannot go on; the giver goes on serving.

    The same in every format, so that each understands why it is refused by the other.
    """

    reason: Text


Document = Hello | Offer | Ready | State | Taken | Go | Refusal

OF_ANY_FORMAT: Final = (Hello, Refusal)
"""What is understood whatever format its envelope tells; what is not known in it is passed over."""
