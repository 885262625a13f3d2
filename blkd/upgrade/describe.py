# SPDX-License-Identifier: Apache-2.0
"""A running export in the words of the exchange: what the giver sends of it."""

import os
from dataclasses import asdict
from typing import cast

import msgspec

from blkd import __version__
from blkd.dataplane import DataPlane
from blkd.errors import UpgradeError
from blkd.export.disk import Disk
from blkd.export.export import Export
from blkd.export.pauses import Pause
from blkd.host import unix_socket
from blkd.upgrade import messages
from blkd.upgrade.descriptors import OutgoingFds
from blkd.upgrade.settings import settings_for_taker
from blkd.vhost_user.backchannel import BackChannelSnapshot
from blkd.vhost_user.channel import PartialMessage
from blkd.vhost_user.connection import ConnectionSnapshot
from blkd.vhost_user.data_path import VringSnapshot
from blkd.vhost_user.session_vring import SessionVring
from blkd.vhost_user.wire import VringAddr


def offer(export: Export, hello: messages.Hello, control: int, out: OutgoingFds) -> messages.Offer:
    """What is served, as far as the taker understands; `control` listens for the API.

    Raises UpgradeError where it cannot be given away.
    """
    if not unix_socket.is_listening(export.endpoint.listener):
        raise UpgradeError("it serves a front end that was handed over connected")
    disk = export.disk
    return messages.Offer(
        version=__version__,
        pid=os.getpid(),
        directory=_directory(),
        config=msgspec.Raw(settings_for_taker(export.config, disk.serial)),
        logical_block_size=cast("messages.BlockSize", disk.image.limits.logical_block_size),
        device=_shown(disk) if messages.DEVICE in hello.knows else None,
        image=out.add_any(disk.image.lent()),
        image_locked=disk.image.is_locked,
        listener=out.add(export.endpoint.listener.fileno()),
        control=out.add(control),
        statistics=out.add(disk.area.fd) if messages.STATISTICS in hello.knows else None,
        rings=tuple(vring.index for vring in disk.plane.vring_snapshots()),
        notify=os.environ.get("NOTIFY_SOCKET"),
    )


def state(export: Export, began: int, out: OutgoingFds) -> messages.State:
    """The frozen export; it has been so since `began`.

    Raises UpgradeError where a ring cannot be given away at the moment.
    """
    disk, connection = export.disk, export.endpoint.front_ends.connection
    snapshot = connection.snapshot() if connection else None
    return messages.State(
        began=began,
        paused=Pause.ORDERED in disk.pauses,
        capacity=disk.device.capacity,
        generation=disk.device.generation,
        write_back=disk.device.writeback_field,
        sync_error=disk.sync_error,
        front_end=front_end(snapshot, disk.plane, out) if snapshot else None,
        rings=rings(snapshot, disk.plane, out),
    )


def _shown(disk: Disk) -> messages.Device:
    return messages.Device(**asdict(disk.device.shown))


def _directory() -> str:
    """Where relative paths begin.  Raises UpgradeError if nobody could go there any more."""
    try:
        directory = os.getcwd()  # noqa: PTH109 - as text
        directory.encode()
        return directory  # noqa: TRY300
    except UnicodeEncodeError as error:
        raise UpgradeError(
            "the name of its working directory is no UTF-8",
            hint="stop the old process and start the new one instead",
        ) from error
    except OSError as error:
        raise UpgradeError(
            f"its working directory is gone: {error.strerror}",
            hint="stop the old process and start the new one instead",
        ) from error


def front_end(
    snapshot: ConnectionSnapshot, plane: DataPlane, out: OutgoingFds
) -> messages.FrontEnd:
    """The front end and all that it has shared; its rings aside."""
    session = snapshot.session
    return messages.FrontEnd(
        socket=out.add(snapshot.fd),
        features=session.features,
        based_on=session.based_on,
        protocol_features=session.protocol_features,
        status=session.status,
        fetched=session.fetched,
        back_channel=_back_channel(snapshot.back_channel, out),
        begun=_partial(snapshot.partial, out),
        regions=_regions(snapshot, plane, out),
        inflight=_inflight(plane, out),
        log=_log(snapshot, plane, out),
    )


def _back_channel(
    snapshot: BackChannelSnapshot | None, out: OutgoingFds
) -> messages.BackChannel | None:
    if snapshot is None:
        return None
    return messages.BackChannel(
        socket=out.add(snapshot.fd),
        overdue=snapshot.overdue,
        begun=_partial(snapshot.partial, out),
    )


def _partial(partial: PartialMessage | None, out: OutgoingFds) -> messages.Begun | None:
    if partial is None:
        return None
    return messages.Begun(data=partial.data, descriptors=tuple(out.add(fd) for fd in partial.fds))


def _regions(
    snapshot: ConnectionSnapshot, plane: DataPlane, out: OutgoingFds
) -> tuple[messages.Region, ...]:
    fds = plane.memory_fds
    return tuple(
        messages.Region(
            guest_address=region.guest_address,
            size=region.size,
            user_address=region.user_address,
            mmap_offset=region.mmap_offset,
            memory=out.add(fds[region]),
        )
        for region in snapshot.session.regions
    )


def _inflight(plane: DataPlane, out: OutgoingFds) -> messages.Inflight | None:
    file = plane.inflight_file
    if file is None:
        return None
    return messages.Inflight(
        mmap_size=file.region.mmap_size,
        mmap_offset=file.region.mmap_offset,
        queues=file.region.queues,
        queue_size=file.region.queue_size,
        packed=file.packed,
        memory=out.add(file.fd),
        lent=file.is_lent,
    )


def _log(snapshot: ConnectionSnapshot, plane: DataPlane, out: OutgoingFds) -> messages.Log | None:
    log, fd = snapshot.session.log, plane.log_fd
    if log is None or fd is None:
        return None
    return messages.Log(size=log.size, offset=log.offset, memory=out.add(fd))


def rings(
    snapshot: ConnectionSnapshot | None, plane: DataPlane, out: OutgoingFds
) -> tuple[messages.Ring, ...]:
    """Every ring that differs from a new one."""
    used = {vring.index: vring for vring in plane.vring_snapshots()}
    known = snapshot.session.vrings if snapshot else [SessionVring(index) for index in used]
    return tuple(
        _ring(vring, used.get(vring.index, VringSnapshot(vring.index)), out)
        for vring in known
        if vring.index in used or vring != SessionVring(vring.index)
    )


def _ring(known: SessionVring, used: VringSnapshot, out: OutgoingFds) -> messages.Ring:
    """One vring as its session knows it and as the data path uses it."""
    if known.started and used.lost:
        raise UpgradeError(
            f"ring {known.index} lies in no memory at the moment",
            hint="try again: the front end is about to change its memory",
        )
    return messages.Ring(
        index=known.index,
        size=known.size,
        addresses=None if known.addresses is None else _addresses(known.addresses),
        base=used.base if known.started else known.base,
        started=known.started,
        enabled=known.enabled,
        broken=used.broken,
        kick=out.add_any(used.fds.get("kick")),
        call=out.add_any(used.fds.get("call")),
        error=out.add_any(used.fds.get("error")),
        counters=dict(used.counters),
    )


def _addresses(where: VringAddr) -> messages.Addresses:
    return messages.Addresses(
        flags=where.flags, desc=where.desc, used=where.used, avail=where.avail, log=where.log
    )
