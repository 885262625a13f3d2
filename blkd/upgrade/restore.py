# SPDX-License-Identifier: Apache-2.0
"""A frozen export made of what the exchange says of it: what the taker does with that.

What comes from the giver is checked as what comes from a front end is.
"""

from collections.abc import Iterable, Mapping

import msgspec

from blkd.errors import ProtocolError, RequestRefused, UpgradeError
from blkd.export.disk import Disk
from blkd.export.export import Export
from blkd.export.pauses import Pause
from blkd.upgrade import messages
from blkd.upgrade.descriptors import IncomingFds
from blkd.vhost_user.backchannel import BackChannelSnapshot
from blkd.vhost_user.channel import PartialMessage
from blkd.vhost_user.checks import require_inflight_place, require_queues
from blkd.vhost_user.connection import ConnectionSnapshot
from blkd.vhost_user.data_path import RestoredVring
from blkd.vhost_user.inflight import Inflight, part_entries
from blkd.vhost_user.session_snapshot import SessionSnapshot
from blkd.vhost_user.session_vring import SessionVring
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import LogBase, MemoryRegion, VirtioFeature, VringAddr
from blkd.virtio.blk import SECTOR_BYTES, Shown


def shown(device: messages.Device | None) -> Shown | None:
    """What the guest has been shown of the device, if the giver says so."""
    return None if device is None else Shown(**msgspec.structs.asdict(device))


def require_rings(disk: Disk, indices: Iterable[int]) -> None:
    """Raise UpgradeError unless these are rings of the disk, each once."""
    seen = list(indices)
    if len(set(seen)) < len(seen) or max(seen, default=0) >= disk.device.queues:
        raise UpgradeError(f"rings {seen} of {disk.device.queues}")


async def restore(export: Export, state: messages.State, fds: IncomingFds) -> None:
    """Bring an export that was adopted to where the giver has left it; nothing is served yet.

    Raises BlkdError where that cannot be.
    """
    try:
        await _restore_disk(export.disk, state)
        setups: Mapping[int, VringSetup] = {}
        if state.front_end is not None:
            snapshot = connection(state.front_end, state.rings, fds)
            setups = export.endpoint.front_ends.restore(snapshot)
            await _restore_memory(export.disk, snapshot.session, state.front_end, fds)
        await export.disk.plane.restore_vrings(rings(setups, state.rings, fds))
        await export.disk.plane.configure()
    except (ProtocolError, RequestRefused) as error:
        raise UpgradeError(f"cannot be taken over: {error}", hint=error.hint) from error


async def _restore_disk(disk: Disk, state: messages.State) -> None:
    block = disk.image.limits.logical_block_size
    size = state.capacity * SECTOR_BYTES
    if size % block:
        raise UpgradeError(f"a disk of {size} bytes, not whole blocks of {block}")
    require_rings(disk, (ring.index for ring in state.rings))
    await disk.image.set_size(size)
    if state.paused:
        disk.pauses.keep(Pause.ORDERED)
    disk.device.restore(
        capacity=state.capacity, generation=state.generation, write_back=state.write_back
    )
    disk.note_size()
    if state.sync_error:
        disk.fail_sync(state.sync_error)


async def _restore_memory(
    disk: Disk, session: SessionSnapshot, front_end: messages.FrontEnd, fds: IncomingFds
) -> None:
    """Share with the front end what it has shared with the giver."""
    plane = disk.plane
    if front_end.log is not None:
        await plane.set_log(session.log, fds.take(front_end.log.memory))
    if front_end.features & VirtioFeature.LOG_ALL:
        await plane.log_data(on=True)
    if front_end.features & VirtioFeature.ACCESS_PLATFORM:
        await plane.translate_addresses(on=True)
    memory = [fds.take(region.memory) for region in front_end.regions]
    await plane.set_memory(session.regions, memory)
    if (record := front_end.inflight) is not None:
        region = _inflight(disk, record)
        memory_fd = fds.take(record.memory)
        await plane.use_inflight(region, memory_fd, packed=record.packed, is_lent=record.lent)


def _inflight(disk: Disk, given: messages.Inflight) -> Inflight:
    """The in-flight region to go on with.

    Raises UpgradeError or RequestRefused, also where it is none that requests could be recorded
    in: the giver does that, and serves on.
    """
    region = Inflight(given.mmap_size, given.mmap_offset, given.queues, given.queue_size)
    largest = disk.device.queue_size
    require_queues(region, disk.device.queues, largest)
    require_inflight_place(region)
    if not part_entries(region, largest, packed=given.packed):
        raise UpgradeError(
            f"cannot be taken over: an in-flight region of {region.mmap_size} bytes for"
            f" {region.queues} rings of {region.queue_size} descriptors"
        )
    return region


def connection(
    front_end: messages.FrontEnd, rings: tuple[messages.Ring, ...], fds: IncomingFds
) -> ConnectionSnapshot:
    """The connection as the giver has frozen it; takes its descriptors."""
    session = SessionSnapshot(
        features=front_end.features,
        based_on=front_end.based_on,
        protocol_features=front_end.protocol_features,
        status=front_end.status,
        fetched=front_end.fetched,
        regions=tuple(
            MemoryRegion(r.guest_address, r.size, r.user_address, r.mmap_offset)
            for r in front_end.regions
        ),
        log=None if (log := front_end.log) is None else LogBase(log.size, log.offset),
        vrings=tuple(map(_session_vring, rings)),
    )
    return ConnectionSnapshot(
        fd=fds.take(front_end.socket),
        session=session,
        partial=_partial(front_end.begun, fds),
        back_channel=_back_channel(front_end.back_channel, fds),
    )


def _back_channel(
    back: messages.BackChannel | None, fds: IncomingFds
) -> BackChannelSnapshot | None:
    if back is None:
        return None
    return BackChannelSnapshot(fds.take(back.socket), back.overdue, _partial(back.begun, fds))


def _partial(begun: messages.Begun | None, fds: IncomingFds) -> PartialMessage | None:
    if begun is None:
        return None
    return PartialMessage(begun.data, tuple(fds.take(place) for place in begun.descriptors))


def _session_vring(ring: messages.Ring) -> SessionVring:
    where = ring.addresses
    return SessionVring(
        index=ring.index,
        size=ring.size,
        addresses=None
        if where is None
        else VringAddr(ring.index, where.flags, where.desc, where.used, where.avail, where.log),
        base=ring.base,
        has_kick=ring.kick is not None,
        started=ring.started,
        enabled=ring.enabled,
    )


def rings(
    setups: Mapping[int, VringSetup], rings: tuple[messages.Ring, ...], fds: IncomingFds
) -> tuple[RestoredVring, ...]:
    """What the data path is to go on with; takes the rings' descriptors."""
    return tuple(
        RestoredVring(
            ring.index,
            fds={
                kind: fds.take(place)
                for kind, place in (("kick", ring.kick), ("call", ring.call), ("error", ring.error))
                if place is not None
            },
            setup=setups.get(ring.index),
            enabled=ring.enabled,
            broken=ring.broken,
            counters=ring.counters,
        )
        for ring in rings
    )
