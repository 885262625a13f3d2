# SPDX-License-Identifier: Apache-2.0
"""Socket devices of one process: their sockets made, their groups formed."""

import contextlib
import socket

from blkd.dataplane.served_vsock import (
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
    served = ServedVsock(device, host, forwards, group)
    await export.add(served.name, guest.socket, served, ONE_WORKER)


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
