# SPDX-License-Identifier: Apache-2.0
"""How each VMM attaches a vhost-user-blk socket, word for word."""

import html
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from blkd.errors import ConfigError

QEMU_RECONNECT_MS = (9, 2)  # the first QEMU that knows reconnect-ms; later ones lose reconnect
MEMORY = "4G"  # of the guest: a vhost-user back end needs all of it shared


@dataclass(frozen=True, slots=True)
class Disk:
    """What is attached."""

    socket: str
    """Absolute path."""
    queues: int = 4
    queue_size: int = 256
    """QEMU and cloud-hypervisor would take 128: too few for a request of 1 MiB."""
    qemu: tuple[int, int] | None = None
    """Version of the QEMU at hand, None if there is none."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to type or write for one VMM."""

    vmm: str
    text: str
    """A command, or a piece of configuration."""
    notes: tuple[str, ...]


def recipe(vmm: str, disk: Disk) -> Recipe:
    """How `vmm`, one of `VMMS`, attaches `disk`.

    Raises:
        ConfigError: the VMM has no way to write such a socket path.
    """
    return VMMS[vmm](disk)


def _qemu(disk: Disk) -> Recipe:
    old = disk.qemu is not None and disk.qemu < QEMU_RECONNECT_MS
    reconnect = "reconnect=1" if old else "reconnect-ms=1000"
    path = disk.socket.replace(",", ",,")  # as QEMU wants commas in values
    device = (
        "vhost-user-blk-pci",
        "chardev=blkd",
        f"num-queues={disk.queues}",
        f"queue-size={disk.queue_size}",
    )
    return Recipe(
        "qemu",
        _command(
            ["qemu-system-x86_64"],
            ["-m", MEMORY],
            ["-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on"],
            ["-machine", "q35,accel=kvm,memory-backend=ram"],
            ["-chardev", f"socket,id=blkd,path={path},{reconnect}"],
            ["-device", ",".join(device)],
        ),
        (
            "-m and size= are the guest's memory: one value in both places",
            "before QEMU 9.2 it is reconnect=1, from then on reconnect-ms=1000",
            "num-queues may be the number of virtual CPUs, up to the export's --queues",
        ),
    )


def _libvirt(disk: Disk) -> Recipe:
    return Recipe(
        "libvirt",
        f"""\
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<devices>
  <disk type='vhostuser' device='disk' snapshot='no'>
    <driver name='qemu' type='raw' queues='{disk.queues}' queue_size='{disk.queue_size}'/>
    <source type='unix' path='{html.escape(disk.socket)}'>
      <reconnect enabled='yes' timeout='1'/>
    </source>
    <target dev='vdb' bus='virtio'/>
  </disk>
</devices>""",
        (
            "memoryBacking stands directly under domain, the disk among its devices",
            "libvirt 7.1 or newer; queue_size from 7.8 on",
            "QEMU's user, often libvirt-qemu, must be allowed to write to the socket",
        ),
    )


def _cloud_hypervisor(disk: Disk) -> Recipe:
    device = (
        "vhost_user=true",
        f"socket={_without_comma(disk.socket, 'cloud-hypervisor')}",
        f"num_queues={disk.queues}",
        f"queue_size={disk.queue_size}",
    )
    return Recipe(
        "cloud-hypervisor",
        _command(
            ["cloud-hypervisor"],
            ["--memory", f"size={MEMORY},shared=on"],
            ["--disk", ",".join(device)],
        ),
        (
            "further disks are further values of the same --disk",
            "versions without a back-end channel see a new size only after a restart of the guest",
        ),
    )


def _firecracker(disk: Disk) -> Recipe:
    drive = {
        "drive_id": "blkd",
        "is_root_device": False,
        "cache_type": "Writeback",
        "socket": disk.socket,
    }
    return Recipe(
        "firecracker",
        _command(
            ["curl", "--unix-socket", "firecracker.sock"],
            ["-X", "PUT", "http://localhost/drives/blkd"],
            ["-H", "Content-Type: application/json"],
            ["-d", json.dumps(drive)],
        ),
        (
            "firecracker.sock is Firecracker's --api-sock; the call comes before InstanceStart",
            "without cache_type Writeback the guest cannot flush, and every write is made durable",
            'one queue of 256; after a resize: PATCH /drives/blkd with {"drive_id": "blkd"}',
        ),
    )


def _crosvm(disk: Disk) -> Recipe:
    path = _without_comma(disk.socket, "crosvm")
    return Recipe(
        "crosvm",
        _command(
            ["crosvm", "run"],
            ["--vhost-user", f"block,socket={path},max-queue-size={disk.queue_size}"],
        ),
        (
            "without max-queue-size crosvm takes 32768, more than blkd serves",
            "it takes as many queues as the export offers",
        ),
    )


VMMS: dict[str, Callable[[Disk], Recipe]] = {
    "qemu": _qemu,
    "libvirt": _libvirt,
    "cloud-hypervisor": _cloud_hypervisor,
    "firecracker": _firecracker,
    "crosvm": _crosvm,
}


def _command(*lines: list[str]) -> str:
    """A shell command, one option a line."""
    return " \\\n    ".join(shlex.join(line) for line in lines)


def _without_comma(path: str, vmm: str) -> str:
    if "," in path:
        raise ConfigError(
            f"{vmm} takes a comma in {path} for the end of the path",
            hint="choose a socket path without a comma",
        )
    return path
