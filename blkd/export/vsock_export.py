# SPDX-License-Identifier: Apache-2.0
"""Socket devices of one process: their sockets made, their groups formed."""

import contextlib
import resource
import socket
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
    message_path,
)
from blkd.errors import ConfigError
from blkd.export.device_export import DeviceExport
from blkd.export.vsock_config import Guest, VsockConfig
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
    if len(config.forward) > MOST_FORWARDS or len(config.cid) > MOST_GUESTS:
        raise ConfigError(f"more than {MOST_GUESTS} guests, or {MOST_FORWARDS} times --forward")
    groups = {
        name: Group([guest.cid for guest in config.guests if guest.group == name])
        for name in {guest.group for guest in config.guests}
    }
    with contextlib.ExitStack() as undo:
        export = DeviceExport(config, "vsock")
        undo.callback(export.close)
        for guest in config.guests:
            await _add(export, config, guest, groups[guest.group])
        undo.pop_all()
    return export


async def _add(export: DeviceExport, config: VsockConfig, guest: Guest, group: Group) -> None:
    device = VsockDevice(guest.cid)
    host = None if guest.uds is None else await _listen(guest.uds, config)
    forwards = [(each.port, each.address) for each in config.forward]
    served = ServedVsock(device, host, forwards, group, _most_connections(len(config.cid)))
    await export.add(served.name, guest.socket, served, ONE_WORKER)


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
    if len(message_path(path).encode()) > MOST_PATH:
        raise ConfigError(f"the path {path} is too long, for a port follows it")
    group = unix_socket.group_number(config.socket_group)
    with contextlib.ExitStack() as undo:
        listening = []
        for where, kind in (
            (path, socket.SOCK_STREAM),
            (message_path(path), socket.SOCK_SEQPACKET),
        ):
            sock = await unix_socket.listen_soon(
                where, config.socket_mode, group, kind, descriptors=False
            )
            undo.callback(sock.close)
            undo.callback(unix_socket.unlink_if_ours, where, kind)
            listening.append(sock)
        undo.pop_all()
    return HostSide(path, *listening)
