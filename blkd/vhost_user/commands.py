# SPDX-License-Identifier: Apache-2.0
"""What a session asks its connection to do.  Descriptors stay with who received them."""

from dataclasses import dataclass

from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.iotlb import IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import LogBase, MemoryRegion


@dataclass(frozen=True, slots=True)
class SetMemory:
    """Replace the memory table, one descriptor a region."""

    regions: tuple[MemoryRegion, ...]


@dataclass(frozen=True, slots=True)
class AddMemory:
    """Add a region, with its descriptor."""

    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class RemoveMemory:
    """Remove a region."""

    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class SetLog:
    """Mark in the dirty log whose descriptor came along, or in none."""

    log: LogBase | None


@dataclass(frozen=True, slots=True)
class LogData:
    """Mark what requests write into guest memory, or do not."""

    on: bool


@dataclass(frozen=True, slots=True)
class SetKick:
    """Give a ring the eventfd that came along."""

    index: int


@dataclass(frozen=True, slots=True)
class SetCall:
    """Give a ring the eventfd that came along, or none."""

    index: int


@dataclass(frozen=True, slots=True)
class SetError:
    """Give a ring the eventfd that came along, or none."""

    index: int


@dataclass(frozen=True, slots=True)
class StartVring:
    """Start a ring."""

    index: int
    setup: VringSetup


@dataclass(frozen=True, slots=True)
class MoveVring:
    """Give a running ring other addresses."""

    index: int
    setup: VringSetup


@dataclass(frozen=True, slots=True)
class EnableVring:
    """Let a ring be served, or have it wait."""

    index: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class StopVring:
    """Drain and stop a ring.  Its result is the avail index to serve next."""

    index: int


@dataclass(frozen=True, slots=True)
class Configure:
    """Serve with the device's present parameters, such as capacity and cache mode."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Have the network learn that the guest of this MAC address is here."""

    mac: bytes


@dataclass(frozen=True, slots=True)
class OpenBackChannel:
    """Use the socket that came along for requests to the front end."""


@dataclass(frozen=True, slots=True)
class OfferInflight:
    """Make an in-flight region and send its descriptor along with the answer."""

    region: Inflight


@dataclass(frozen=True, slots=True)
class UseInflight:
    """Record what is in flight in the region that came along."""

    region: Inflight
    packed: bool
    """Whether it is laid out for packed rings."""


@dataclass(frozen=True, slots=True)
class TranslateAddresses:
    """Have descriptors and vrings at IOVAs, or not; no vring is started."""

    on: bool


@dataclass(frozen=True, slots=True)
class UpdateIotlb:
    """Translate by this entry from now on."""

    entry: IotlbEntry


@dataclass(frozen=True, slots=True)
class InvalidateIotlb:
    """Forget what is known of these IOVAs; nothing uses their memory when it is carried out."""

    iova: int
    size: int


VringCommand = SetKick | SetCall | SetError | StartVring | MoveVring | EnableVring | StopVring
MemoryCommand = SetMemory | AddMemory | RemoveMemory | SetLog | LogData
InflightCommand = OfferInflight | UseInflight
IotlbCommand = TranslateAddresses | UpdateIotlb | InvalidateIotlb
Command = (
    MemoryCommand
    | IotlbCommand
    | InflightCommand
    | Announce
    | Configure
    | OpenBackChannel
    | VringCommand
)
