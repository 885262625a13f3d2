# SPDX-License-Identifier: Apache-2.0
"""A session as a value, to go on with elsewhere; and a session made of such a value.

What is restored is checked as what a front end says is.
"""

import itertools
from dataclasses import dataclass, replace

from blkd.errors import RequestRefused
from blkd.vhost_user.checks import refuse_misaligned, refuse_no_log, refuse_size, refuse_unlogged
from blkd.vhost_user.requests import MAX_MEM_SLOTS, OFFERED_PROTOCOL_FEATURES
from blkd.vhost_user.session import MAX_INDEX, MAX_STATUS, OURS, Session, SessionVring
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
    rings: tuple[SessionVring, ...]
    """All of them, or in one to restore those that differ from new ones."""


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
        rings=tuple(replace(ring) for ring in session.rings),
    )


def restore_session(session: Session, snapshot: SessionSnapshot) -> None:
    """Bring a new session to where another one was.

    Raises RequestRefused or ProtocolError on a state that no session could be in.
    """
    _negotiate(session, snapshot)
    _refuse_odd_memory(snapshot.regions)
    if snapshot.log is not None:
        refuse_no_log(snapshot.log)
    session.regions, session.log = snapshot.regions, snapshot.log
    for ring in snapshot.rings:
        _restore_ring(session, ring)


def _negotiate(session: Session, snapshot: SessionSnapshot) -> None:
    if excess := snapshot.protocol_features & ~int(OFFERED_PROTOCOL_FEATURES):
        raise RequestRefused(f"protocol features {excess:#x} are not offered")
    if snapshot.status > MAX_STATUS:
        raise RequestRefused(f"a device status of {snapshot.status:#x}")
    session.device.accept(snapshot.features & ~OURS)
    session.features, session.based_on = snapshot.features, snapshot.based_on
    session.protocol_features = ProtocolFeature(snapshot.protocol_features)
    session.status, session.fetched = snapshot.status, snapshot.fetched


def _refuse_odd_memory(regions: tuple[MemoryRegion, ...]) -> None:
    if len(regions) > MAX_MEM_SLOTS:
        raise RequestRefused(f"{len(regions)} memory regions")
    for region in regions:
        region.check()
    ordered = sorted(regions, key=lambda region: region.guest_address)
    for one, next_one in itertools.pairwise(ordered):
        if one.overlaps(next_one):
            raise RequestRefused(f"memory regions overlap at {next_one.guest_address:#x}")


def _restore_ring(session: Session, ring: SessionVring) -> None:
    """Take one ring, which is started as far as the session is concerned."""
    if ring.index >= len(session.rings):
        raise RequestRefused(f"ring {ring.index} of {len(session.rings)}")
    packed = bool(session.based_on & VirtioFeature.RING_PACKED)
    if ring.base is not None and ring.base > (0xFFFFFFFF if packed else MAX_INDEX):
        raise RequestRefused(f"ring {ring.index} from {ring.base:#x}")
    if ring.size:
        refuse_size(ring.index, ring.size, session.device.queue_size, session.features)
    if ring.addresses is not None:
        if ring.addresses.flags & ~VringAddr.LOG:
            raise RequestRefused(f"ring {ring.index} with flags {ring.addresses.flags:#x}")
        refuse_misaligned(ring.addresses, session.features)
    if ring.started:
        setup = ring.setup(session.features)
        if setup is None:
            raise RequestRefused(f"ring {ring.index} runs without all that a ring needs")
        refuse_unlogged(setup, session.log)
    session.rings = tuple(
        replace(ring) if known.index == ring.index else known for known in session.rings
    )
