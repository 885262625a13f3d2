# SPDX-License-Identifier: Apache-2.0
"""A network device and its TAP, as their settings ask for."""

import os
import socket
from typing import Final

from blkd.dataplane import ServedNet, WorkerPlan
from blkd.export.device_export import DeviceExport
from blkd.export.net_config import NetConfig, mac_bytes
from blkd.host.tap import Tap
from blkd.virtio.net import NetDevice, NetParameters

PAIR: Final = 2  # vrings: one to receive into and one to transmit from


async def net_export(config: NetConfig) -> DeviceExport:
    """The device, ready to be served.  Raises BlkdError."""
    return await export_of(config, open_tap(config))


def open_tap(config: NetConfig) -> ServedNet:
    """The device with its TAP, open; what needs the right to change the host's network is done.

    Raises BlkdError.
    """
    tap = Tap.adopt(config.tap_fd) if config.tap is None else Tap.open(config.tap, config.pairs)
    try:
        return _served(config, tap)
    except BaseException:
        tap.close()
        raise


async def export_of(
    config: NetConfig, served: ServedNet, listener: socket.socket | None = None
) -> DeviceExport:
    """A device, taken, ready to be served, at a `listener` if that is given; it is taken, too.

    Raises BlkdError.
    """
    export = DeviceExport(config, "net")
    await export.add(config.name, config.socket, served, served.plan, listener)
    return export


def _served(config: NetConfig, tap: Tap) -> ServedNet:
    if config.mtu is not None and config.mtu != tap.mtu:
        tap.set_mtu(config.mtu)
    usable = max(1, len(set(config.cpus)) or len(os.sched_getaffinity(0)) - 1)
    workers = config.workers or min(config.pairs, usable)
    parameters = NetParameters(
        pairs=config.pairs,
        mac=None if config.mac is None else mac_bytes(config.mac),
        mtu=config.mtu or tap.mtu,
        control_queue=config.control_queue,
    )
    device = NetDevice(parameters, link_up=tap.is_up)
    plan = WorkerPlan(workers, config.cpus, config.poll_us, group=PAIR)
    return ServedNet(device, tap, plan)
