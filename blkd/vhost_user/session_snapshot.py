# SPDX-License-Identifier: Apache-2.0
"""A session as a value, for another process to go on with; and a session restored from one.

What is restored is checked like the requests of a front end.
"""

import itertools
from dataclasses import dataclass, replace

from blkd.errors import RequestRefused
from blkd.vhost_user.checks import (
    require_alignment,
    require_asking,
    require_log_covers,
    require_log_place,
    require_size,
)
from blkd.vhost_user.requests import MAX_MEM_SLOTS
from blkd.vhost_user.session import MAX_INDEX, MAX_STATUS, OURS, Session
from blkd.vhost_user.session_vring import SessionVring
from blkd.vhost_user.wire import LogBase, MemoryRegion, ProtocolFeature, VirtioFeature, VringAddr


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """All that a session knows; for the meaning of each field see `Session`."""

    features: int
    based_on: int
    protocol_features: int
    status: int
    fetched: int | None
    regions: tuple[MemoryRegion, ...]
    log: LogBase | None
    vrings: tuple[SessionVring, ...]
    """All of them; in a snapshot to restore, those that differ from new ones are enough."""


def session_snapshot(session: Session) -> SessionSnapshot:
    """The session as it stands."""
    return SessionSnapshot(
        features=int(session.features),
        based_on=int(session.based_on),
        protocol_features=int(session.protocol_features),
        status=session.status,
        fetched=session.fetched,
        regions=session.regions,
        log=session.log,
        vrings=tuple(replace(vring) for vring in session.vrings),
    )


def restore_session(session: Session, snapshot: SessionSnapshot) -> None:
    """Bring a new session to the state of another one.

    Raises RequestRefused or ProtocolError on a state that no session could be in.
    """
    _negotiate(session, snapshot)
    _require_memory(snapshot.regions)
    if snapshot.log is not None:
        require_log_place(snapshot.log)
    session.regions, session.log = snapshot.regions, snapshot.log
    for vring in snapshot.vrings:
        _restore_vring(session, vring)


def _negotiate(session: Session, snapshot: SessionSnapshot) -> None:
    if excess := snapshot.protocol_features & ~session.offered_protocol_features:
        raise RequestRefused(f"protocol features {excess:#x} are not offered")
    if snapshot.status > MAX_STATUS:
        raise RequestRefused(f"a device status of {snapshot.status:#x}")
    require_asking(snapshot.features, ProtocolFeature(snapshot.protocol_features))
    session.device.accept(snapshot.features & ~OURS)
    session.features, session.based_on = snapshot.features, snapshot.based_on
    session.protocol_features = ProtocolFeature(snapshot.protocol_features)
    session.status, session.fetched = snapshot.status, snapshot.fetched


def _require_memory(regions: tuple[MemoryRegion, ...]) -> None:
    if len(regions) > MAX_MEM_SLOTS:
        raise RequestRefused(f"{len(regions)} memory regions")
    for region in regions:
        region.check()
    ordered = sorted(regions, key=lambda region: region.guest_address)
    for one, next_one in itertools.pairwise(ordered):
        if one.overlaps(next_one):
            raise RequestRefused(f"memory regions overlap at {next_one.guest_address:#x}")


def _restore_vring(session: Session, vring: SessionVring) -> None:
    """Take one vring; where it is started, the data path has yet to start it."""
    if vring.index >= len(session.vrings):
        raise RequestRefused(f"ring {vring.index} of {len(session.vrings)}")
    packed = bool(session.based_on & VirtioFeature.RING_PACKED)
    if vring.base is not None and vring.base > (0xFFFFFFFF if packed else MAX_INDEX):
        raise RequestRefused(f"ring {vring.index} from {vring.base:#x}")
    if vring.size:
        require_size(vring.index, vring.size, session.device.queue_size, session.features)
    if vring.addresses is not None:
        if vring.addresses.flags & ~VringAddr.LOG:
            raise RequestRefused(f"ring {vring.index} with flags {vring.addresses.flags:#x}")
        require_alignment(vring.addresses, session.features)
    if vring.started:
        setup = vring.setup(session.features)
        if setup is None:
            raise RequestRefused(f"ring {vring.index} runs without all that a ring needs")
        require_log_covers(setup, session.log)
    session.vrings = tuple(
        replace(vring) if known.index == vring.index else known for known in session.vrings
    )
