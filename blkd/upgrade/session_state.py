# SPDX-License-Identifier: Apache-2.0
"""A session written down for another process, and one made of what another has written.

What comes from there is checked as what comes from a front end is.
"""

import itertools

from blkd.errors import HandoverError, ProtocolError, RequestRefused
from blkd.upgrade import messages
from blkd.upgrade.descriptors import Incoming, Outgoing
from blkd.vhost_user.checks import (
    refuse_misaligned,
    refuse_no_log,
    refuse_no_rings,
    refuse_size,
    refuse_unfit,
    refuse_unlogged,
)
from blkd.vhost_user.inflight import Inflight, part_entries
from blkd.vhost_user.requests import MAX_MEM_SLOTS, OFFERED_PROTOCOL_FEATURES
from blkd.vhost_user.rings import GivenRing, HeldRing, Rings
from blkd.vhost_user.session import MAX_INDEX, MAX_STATUS, OURS, Ring, Session
from blkd.vhost_user.wire import LogBase, MemoryRegion, ProtocolFeature, VirtioFeature, VringAddr


def written_rings(
    session: Session | None, rings: Rings, out: Outgoing
) -> tuple[messages.Ring, ...]:
    """Every ring that differs from a new one; the data path is at rest."""
    held = {ring.index: ring for ring in rings.held_rings()}
    known = session.rings if session else [Ring(index) for index in held]
    return tuple(
        _written_ring(ring, held.get(ring.index), out)
        for ring in known
        if ring.index in held or ring != Ring(ring.index)
    )


def _written_ring(ring: Ring, held: HeldRing | None, out: Outgoing) -> messages.Ring:
    held = held or HeldRing(ring.index)
    if ring.started and held.lost:
        raise HandoverError(
            f"ring {ring.index} lies in no memory at the moment",
            hint="try again: the front end is about to change its memory",
        )
    return messages.Ring(
        index=ring.index,
        size=ring.size,
        addresses=None if ring.addresses is None else _written_addresses(ring.addresses),
        base=held.base if ring.started else ring.base,
        started=ring.started,
        enabled=ring.enabled,
        broken=held.broken,
        kick=out.add_any(held.fds.get("kick")),
        call=out.add_any(held.fds.get("call")),
        error=out.add_any(held.fds.get("error")),
        counters=dict(held.counters),
    )


def _written_addresses(where: VringAddr) -> messages.Addresses:
    return messages.Addresses(
        flags=where.flags, desc=where.desc, used=where.used, avail=where.avail, log=where.log
    )


def written_regions(session: Session, rings: Rings, out: Outgoing) -> tuple[messages.Region, ...]:
    """Guest memory, each region with its descriptor."""
    fds = rings.held_memory()
    return tuple(
        messages.Region(
            guest_address=region.guest_address,
            size=region.size,
            user_address=region.user_address,
            mmap_offset=region.mmap_offset,
            memory=out.add(fds[region]),
        )
        for region in session.regions
    )


def written_inflight(rings: Rings, out: Outgoing) -> messages.Inflight | None:
    """The in-flight region, if there is one."""
    held = rings.held_inflight()
    if held is None:
        return None
    return messages.Inflight(
        mmap_size=held.region.mmap_size,
        mmap_offset=held.region.mmap_offset,
        queues=held.region.queues,
        queue_size=held.region.queue_size,
        packed=held.packed,
        memory=out.add(held.fd),
    )


def written_log(session: Session, rings: Rings, out: Outgoing) -> messages.Log | None:
    """The dirty log, if there is one."""
    fd = rings.held_log()
    if session.log is None or fd is None:
        return None
    return messages.Log(size=session.log.size, offset=session.log.offset, memory=out.add(fd))


def given_inflight(session: Session, given: messages.Inflight) -> Inflight:
    """The in-flight region to go on with.

    Raises HandoverError, also where it is none that requests could be recorded in: the other
    process does that, and serves on.
    """
    region = Inflight(given.mmap_size, given.mmap_offset, given.queues, given.queue_size)
    largest = session.device.queue_size
    try:
        refuse_no_rings(region, len(session.rings), largest)
        refuse_unfit(region)
    except RequestRefused as error:
        raise HandoverError(f"cannot be taken over: {error}") from error
    if not part_entries(region, largest, packed=given.packed):
        raise HandoverError(
            f"cannot be taken over: an in-flight region of {region.mmap_size} bytes for"
            f" {region.queues} rings of {region.queue_size} descriptors"
        )
    return region


def restore_session(
    session: Session, front_end: messages.FrontEnd, rings: tuple[messages.Ring, ...]
) -> None:
    """Bring a new session to where another process has left it.

    Raises:
        HandoverError: It is no state that a session could be in.
    """
    try:
        _negotiate(session, front_end)
        session.regions, session.log = _regions(front_end), _log(front_end)
        for ring in rings:
            _place(session, ring)
    except (RequestRefused, ProtocolError) as error:
        raise HandoverError(f"cannot be taken over: {error}", hint=error.hint) from error


def _negotiate(session: Session, front_end: messages.FrontEnd) -> None:
    if excess := front_end.protocol_features & ~int(OFFERED_PROTOCOL_FEATURES):
        raise RequestRefused(f"protocol features {excess:#x} are not offered")
    if front_end.status > MAX_STATUS:
        raise RequestRefused(f"a device status of {front_end.status:#x}")
    session.device.accept(front_end.features & ~OURS)
    session.features, session.based_on = front_end.features, front_end.based_on
    session.protocol_features = ProtocolFeature(front_end.protocol_features)
    session.status, session.fetched = front_end.status, front_end.fetched


def _regions(front_end: messages.FrontEnd) -> tuple[MemoryRegion, ...]:
    regions = tuple(
        MemoryRegion(r.guest_address, r.size, r.user_address, r.mmap_offset)
        for r in front_end.regions
    )
    if len(regions) > MAX_MEM_SLOTS:
        raise RequestRefused(f"{len(regions)} memory regions")
    for region in regions:
        region.check()
    ordered = sorted(regions, key=lambda region: region.guest_address)
    for one, next_one in itertools.pairwise(ordered):
        if one.overlaps(next_one):
            raise RequestRefused(f"memory regions overlap at {next_one.guest_address:#x}")
    return regions


def _log(front_end: messages.FrontEnd) -> LogBase | None:
    if front_end.log is None:
        return None
    log = LogBase(front_end.log.size, front_end.log.offset)
    refuse_no_log(log)
    return log


def _place(session: Session, given: messages.Ring) -> None:
    """Set one ring up, short of starting it."""
    if given.index >= len(session.rings):
        raise RequestRefused(f"ring {given.index} of {len(session.rings)}")
    ring = session.rings[given.index]
    packed = bool(session.based_on & VirtioFeature.RING_PACKED)
    if given.base is not None and given.base > (0xFFFFFFFF if packed else MAX_INDEX):
        raise RequestRefused(f"ring {ring.index} from {given.base:#x}")
    if given.size:
        refuse_size(ring.index, given.size, session.device.queue_size, session.features)
    if (where := given.addresses) is not None:
        if where.flags & ~VringAddr.LOG:
            raise RequestRefused(f"ring {ring.index} with flags {where.flags:#x}")
        ring.addresses = VringAddr(
            ring.index, where.flags, where.desc, where.used, where.avail, where.log
        )
        refuse_misaligned(ring.addresses, session.features)
    ring.size, ring.base, ring.enabled = given.size, given.base, given.enabled
    ring.has_kick, ring.started = given.kick is not None, given.started
    if ring.started:
        setup = ring.setup(session.features)
        if setup is None:
            raise RequestRefused(f"ring {ring.index} runs without all that a ring needs")
        refuse_unlogged(setup, session.log)


def given_rings(
    session: Session | None, rings: tuple[messages.Ring, ...], fds: Incoming
) -> tuple[GivenRing, ...]:
    """What the data path is to go on with; takes the rings' descriptors."""
    return tuple(
        GivenRing(
            ring.index,
            fds={
                kind: fds.take(place)
                for kind, place in (("kick", ring.kick), ("call", ring.call), ("error", ring.error))
                if place is not None
            },
            setup=session.rings[ring.index].setup(session.features)
            if session and ring.started
            else None,
            enabled=ring.enabled,
            broken=ring.broken,
            counters=ring.counters,
        )
        for ring in rings
    )
