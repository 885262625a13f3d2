# SPDX-License-Identifier: Apache-2.0
"""Socket devices of one process: their sockets made, their groups formed."""

import contextlib
import resource
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from blkd.dataplane.served_vsock import (
    MOST_CONNECTIONS,
    MOST_FORWARDS,
    MOST_GUESTS,
    MOST_PATH,
    ONE_WORKER,
    Group,
    HostSide,
    ServedVsock,
)
from blkd.errors import ConfigError
from blkd.export.device_export import DeviceExport
from blkd.export.vsock_config import VsockConfig
from blkd.host import unix_socket
from blkd.virtio.socket_device import VsockDevice

OTHER_DESCRIPTORS: Final = 256
"""What a process may have open beside connections: memory, eventfds, sockets."""
FEWEST_CONNECTIONS: Final = 16

log = structlog.get_logger()


async def open_vsock(config: VsockConfig) -> DeviceExport:
    """Make all guests' devices ready: front ends and host programs may connect.

    Raises BlkdError; nothing stays open.
    """
    return await export_of(config, await listen_for_programs(config))


async def listen_for_programs(config: VsockConfig) -> list[HostSide | None]:
    """Listen for the host programs of each guest, in order; None of one without `--uds`.

    The caller closes them.  Raises BlkdError; nothing stays open.
    """
    if len(config.forward) > MOST_FORWARDS or len(config.cid) > MOST_GUESTS:
        raise ConfigError(f"more than {MOST_GUESTS} guests, or {MOST_FORWARDS} times --forward")
    with contextlib.ExitStack() as undo:
        hosts: list[HostSide | None] = []
        for guest in config.guests:
            hosts.append(None if guest.uds is None else await _listen(guest.uds, config))
            if (host := hosts[-1]) is not None:
                undo.callback(host.close)
        undo.pop_all()
    return hosts


async def export_of(
    config: VsockConfig,
    hosts: Sequence[HostSide | None],
    listeners: Sequence[socket.socket] | None = None,
) -> DeviceExport:
    """All guests' devices, with what `listen_for_programs` has made: it is taken.

    Front ends connect at `listeners`, one a guest in order, if they are given: they are taken, too.

    Raises BlkdError; nothing stays open.
    """
    groups = {
        name: Group([guest.cid for guest in config.guests if guest.group == name])
        for name in {guest.group for guest in config.guests}
    }
    most = _most_connections(len(config.cid))
    forwards = [(each.port, each.address) for each in config.forward]
    with contextlib.ExitStack() as undo:
        export = DeviceExport(config, "vsock")
        undo.callback(export.close)
        waiting = deque(zip(hosts, listeners or (None,) * len(hosts), strict=True))
        undo.callback(_close, waiting)
        for guest in config.guests:
            host, listener = waiting.popleft()
            group = groups[guest.group]
            served = ServedVsock(VsockDevice(guest.cid), host, forwards, group, most)
            await export.add(served.name, guest.socket, served, ONE_WORKER, listener)
        undo.pop_all()
    return export


def _close(sockets: Iterable[tuple[HostSide | None, socket.socket | None]]) -> None:
    """Close what no guest has got."""
    for host, listener in sockets:
        if host is not None:
            host.close()
        if listener is not None:
            listener.close()


def most_descriptors(config: VsockConfig) -> int:
    """Descriptors that a process needs so that each guest may have all its connections."""
    return MOST_CONNECTIONS * len(config.cid) + OTHER_DESCRIPTORS


def _most_connections(guests: int) -> int:
    """Connections of each of so many guests: a descriptor each, and some are kept for the rest."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(FEWEST_CONNECTIONS, (limit - OTHER_DESCRIPTORS) // guests)
    if most < MOST_CONNECTIONS:
        log.warning(
            "few descriptors",
            connections=most,
            hint=f"{MOST_CONNECTIONS * guests + OTHER_DESCRIPTORS} files may be needed (ulimit -n)",
        )
    return min(most, MOST_CONNECTIONS)


async def _listen(path: str, config: VsockConfig) -> HostSide:
    """Listen for host programs, which may connect as front ends may.  Raises SocketError."""
    if len(unix_socket.message_path(path).encode()) > MOST_PATH:
        raise ConfigError(f"the path {path} is too long, for a port follows it")
    group = unix_socket.group_number(config.socket_group)
    with contextlib.ExitStack() as undo:
        listening = []
        for where, kind in (
            (path, socket.SOCK_STREAM),
            (unix_socket.message_path(path), socket.SOCK_SEQPACKET),
        ):
            sock = await unix_socket.listen_soon(
                where, config.socket_mode, group, kind, descriptors=False
            )
            undo.callback(sock.close)
            undo.callback(unix_socket.unlink_if_ours, where, kind)
            listening.append(sock)
        undo.pop_all()
    return HostSide(path, *listening)
