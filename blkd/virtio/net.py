# SPDX-License-Identifier: Apache-2.0
"""The virtio network device as its driver sees it: features and configuration space.

Section numbers are those of virtio 1.3.  Packets and commands are the data plane's affair.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from blkd.errors import RequestRefused
from blkd.virtio.device import MAX_QUEUE_SIZE
from blkd.virtio.flaws import OF_DEVICE

HEADER_BYTES: Final = 12
LEGACY_HEADER_BYTES: Final = 10
"""Of a driver that knows neither virtio 1 nor merged buffers (5.1.6.1)."""

RARP: Final = 1 << 2  # vhost-user's VHOST_USER_PROTOCOL_F_RARP

LINK_UP: Final = 1  # of the status (5.1.4)
STATUS: Final = range(6, 8)
"""Where the status stands: what a link that goes up or down changes."""
LAYOUT: Final = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu (5.1.4)

FRAMING_BYTES: Final = 18  # of Ethernet, with a tag of a VLAN
MOST_PAIRS: Final = 16
LEAST_MTU: Final = 68  # 5.1.4.1
LONGEST_MTU: Final = 65521  # of Linux's TAP

FLAWS: Final[Mapping[int, str]] = {
    OF_DEVICE: "chain to receive into: {value} of its buffers are to be read",
    OF_DEVICE + 1: "chain to receive into: {value} bytes, no room for a header of {limit}",
    OF_DEVICE + 2: "command: no byte for its answer, for none of its {value} buffers is"
    " to be written",
}
"""What breaks a vring, numbered as in `src/net/state.pxd`."""


class Feature(IntFlag):
    """Feature bits that blkd knows for a network device (5.1.3, 6)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34


GUEST_OFFLOADS: Final = (
    Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.GUEST_UFO
)
"""What a guest may take of a card's work, and may change its mind about (5.1.6.5.6)."""
OF_THE_CONTROL_QUEUE: Final = Feature.CTRL_GUEST_OFFLOADS
"""Needs a control queue that is ours: a front end which keeps it tells nobody."""
OF_THE_FRONT_END: Final = Feature.GUEST_ANNOUNCE
"""... and what only a front end that keeps it can ask of a driver."""
GIVEN_BY_PARAMETERS: Final = Feature.MTU | Feature.MAC | Feature.MQ
ALWAYS: Final = (
    Feature(sum(Feature)) & ~GIVEN_BY_PARAMETERS & ~OF_THE_CONTROL_QUEUE & ~OF_THE_FRONT_END
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetParameters:
    """What makes one network device differ from another."""

    pairs: int
    """Pairs of vrings, from 1."""
    mac: bytes | None
    """Six bytes; None leaves the choice to the driver, or to the front end."""
    mtu: int | None
    """Bytes; None leaves it open."""
    control_queue: bool
    """Whether the front end hands the control queue over, as the vring behind the pairs."""


class NetDevice:
    """A virtio network device without its transport; plays `virtio.device.Device`."""

    def __init__(self, parameters: NetParameters, *, link_up: bool) -> None:
        self.parameters = parameters
        self.queues = 2 * parameters.pairs + parameters.control_queue
        self.queue_size = MAX_QUEUE_SIZE
        self.features = int(_offered(parameters))
        self.protocol_features = RARP
        self.generation = 0
        self.changing = STATUS
        self.flaws = FLAWS
        self.accepted = Feature(0)
        """The driver's choice."""
        self.offloads = Feature(0)
        """Of GUEST_OFFLOADS, those that the guest takes now."""
        self.pairs = 1
        """How many pairs the driver uses, by a command of its own."""
        self._link_up = link_up

    @property
    def longest_frame(self) -> int:
        """Bytes of the longest packet for the guest, large segments aside; 0 for any (5.1.4.1)."""
        if Feature.MTU not in self.accepted or self.parameters.mtu is None:
            return 0
        return self.parameters.mtu + FRAMING_BYTES

    @property
    def header_bytes(self) -> int:
        """Bytes of the header before each packet."""
        whole = Feature.VERSION_1 | Feature.MRG_RXBUF
        return HEADER_BYTES if self.accepted & whole else LEGACY_HEADER_BYTES

    @property
    def control_index(self) -> int | None:
        """The number of the control queue, if that is ours: behind the pairs in use (5.1.2)."""
        if not self.parameters.control_queue or Feature.CTRL_VQ not in self.accepted:
            return None
        return 2 * (self.parameters.pairs if Feature.MQ in self.accepted else 1)

    def config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space from `offset`, zero-padded past its end."""
        p = self.parameters
        space = LAYOUT.pack(p.mac or bytes(6), LINK_UP if self._link_up else 0, p.pairs, p.mtu or 0)
        return space[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Refuse it: of virtio 1 no field can be written."""
        raise RequestRefused(f"config bytes {offset} to {offset + len(data)} cannot be written")

    def accept(self, features: int) -> None:
        """Take the driver's choice of features.  Raises RequestRefused on a bit never offered."""
        if unknown := features & ~self.features:
            raise RequestRefused(f"features {unknown:#x} were accepted but never offered")
        require_complete(Feature(features) & GUEST_OFFLOADS)
        self.accepted = Feature(features)
        self.offloads = self.accepted & GUEST_OFFLOADS

    def reset(self) -> None:
        """Forget the driver's choices."""
        self.accepted = self.offloads = Feature(0)
        self.pairs = 1

    def choose_offloads(self, offloads: int) -> bool:
        """Take the guest's choice of what it does of a card's work: whether it may choose that."""
        if Feature.CTRL_GUEST_OFFLOADS not in self.accepted:
            return False
        if offloads & ~int(self.accepted & GUEST_OFFLOADS):
            return False
        try:
            require_complete(Feature(offloads))
        except RequestRefused:
            return False
        self.offloads = Feature(offloads)
        return True

    def choose_pairs(self, pairs: int) -> bool:
        """Take the driver's choice of how many pairs it uses: whether there are as many."""
        if Feature.MQ not in self.accepted or not 0 < pairs <= self.parameters.pairs:
            return False
        self.pairs = pairs
        return True

    @property
    def link_up(self) -> bool:
        """Whether the driver is shown a link that is up."""
        return self._link_up

    def show_link(self, *, up: bool) -> bool:
        """Show a link that is up or down from now on: whether that is new."""
        if up == self._link_up:
            return False
        self._link_up = up
        self.generation += 1
        return True


def require_complete(offloads: Feature) -> None:
    """Raise RequestRefused on what a guest takes without what it needs for that (5.1.3.1)."""
    segments = Feature.GUEST_TSO4 | Feature.GUEST_TSO6
    if offloads & (segments | Feature.GUEST_UFO) and Feature.GUEST_CSUM not in offloads:
        raise RequestRefused(f"large segments without GUEST_CSUM: {offloads!r}")
    if Feature.GUEST_ECN in offloads and not offloads & segments:
        raise RequestRefused(f"GUEST_ECN without large segments: {offloads!r}")


def _offered(p: NetParameters) -> Feature:
    offered = ALWAYS | (OF_THE_CONTROL_QUEUE if p.control_queue else OF_THE_FRONT_END)
    if p.mac is not None:
        offered |= Feature.MAC
    if p.mtu is not None:
        offered |= Feature.MTU
    if p.pairs > 1:
        offered |= Feature.MQ
    return offered
