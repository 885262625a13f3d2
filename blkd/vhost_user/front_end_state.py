# SPDX-License-Identifier: Apache-2.0
"""What a front end has negotiated and set up, as values for people to see."""

from dataclasses import dataclass

from blkd.vhost_user.session import Session
from blkd.vhost_user.wire import MemoryRegion, ProtocolFeature, VirtioFeature


@dataclass(frozen=True, slots=True)
class FrontEndVring:
    """A vring as the front end has set it up; the size is in descriptors, 0 where it is not set."""

    index: int
    size: int
    started: bool
    enabled: bool


@dataclass(frozen=True, slots=True)
class FrontEndState:
    """A front end's session."""

    features: int
    feature_names: tuple[str, ...]
    """Of those features that belong to no one kind of device."""
    protocol_features: int
    protocol_feature_names: tuple[str, ...]
    status: int
    """The virtio device status."""
    back_channel: bool
    """Whether there is a back-end channel."""
    memory_regions: tuple[MemoryRegion, ...]
    rings: tuple[FrontEndVring, ...]


def front_end_state(session: Session, *, back_channel: bool) -> FrontEndState:
    """The session as it stands."""
    return FrontEndState(
        features=session.features,
        feature_names=names(VirtioFeature(session.features)),
        protocol_features=int(session.protocol_features),
        protocol_feature_names=names(session.protocol_features),
        status=session.status,
        back_channel=back_channel,
        memory_regions=session.regions,
        rings=tuple(
            FrontEndVring(vring.index, vring.size, vring.started, vring.enabled)
            for vring in session.vrings
        ),
    )


def names(flags: ProtocolFeature | VirtioFeature) -> tuple[str, ...]:
    """The names of the bits set, as the specifications have them."""
    return tuple(flag.name for flag in type(flags) if flag in flags and flag.name)
