# SPDX-License-Identifier: Apache-2.0
"""The command or configuration by which each VMM attaches the socket of a device."""

import html
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from blkd.errors import ConfigError

QEMU_RECONNECT_MS = (9, 2)  # the first QEMU that knows reconnect-ms; later ones lose reconnect
WELL_FORMED = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)  # as QEMU wants an id
WELL_FORMED_DRIVE = re.compile(r"[A-Za-z0-9_]+", re.ASCII)  # as Firecracker wants a drive_id
TARGET = re.compile(r"vd[a-z]{1,3}")
MEMORY_STEP = 1 << 20  # bytes; what every VMM takes


@dataclass(frozen=True, slots=True)
class Attachment:
    """What is attached, and to which guest."""

    socket: str
    """Absolute path."""
    queues: int
    """Of a disk; of a network device, pairs of them."""
    queue_size: int
    """The default of QEMU and cloud-hypervisor, 128, is too few for a request of 1 MiB."""
    qemu: tuple[int, int] | None
    """Version of the QEMU that is installed, None if there is none."""
    name: str
    """The VMM's name for the device; each device of a guest has its own."""
    target: str
    """libvirt's name for the disk."""
    memory: int
    """Bytes of the guest's memory, all of which is shared with a vhost-user back end."""

    def __post_init__(self) -> None:
        if not WELL_FORMED.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} is no name for a VMM's device",
                hint="take letters, digits, '-', '.' and '_', a letter first",
            )
        if not TARGET.fullmatch(self.target):
            raise ConfigError(f"{self.target!r} is no target", hint="take vda, vdb, vdc and so on")
        if self.memory <= 0 or self.memory % MEMORY_STEP:
            raise ConfigError(f"a memory of {self.memory} bytes is not one or more MiB")

    @property
    def memory_text(self) -> str:
        """The memory as every VMM reads it."""
        mebibytes = self.memory // MEMORY_STEP
        return f"{mebibytes}M" if mebibytes % 1024 else f"{mebibytes // 1024}G"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to type or write for one VMM."""

    vmm: str
    text: str
    """A command, or a piece of configuration."""
    notes: tuple[str, ...]


def recipe(vmm: str, kind: str, device: Attachment) -> Recipe:
    """How `vmm`, one of `VMMS`, attaches a device of a kind of `KINDS`.

    Raises:
        ConfigError: the VMM has no way to attach such a device, or to write such a socket path.
    """
    makers = KINDS[kind]
    if vmm not in makers:
        able = ", ".join(makers)
        raise ConfigError(f"{vmm} attaches no {kind} device of vhost-user", hint=f"{able} can")
    return makers[vmm](device)


def _qemu(disk: Attachment) -> Recipe:
    device = (
        "vhost-user-blk-pci",
        f"chardev={disk.name}",
        f"num-queues={disk.queues}",
        f"queue-size={disk.queue_size}",
    )
    return Recipe(
        "qemu",
        _qemu_with(disk, _reconnect(disk), ["-device", ",".join(device)]),
        (
            "-m and size= are the guest's memory (--memory) and must be equal",
            "for another disk add only -chardev and -device, printed with another --id",
            "reconnect=1 is for QEMU before 9.2, reconnect-ms=1000 for later ones",
            "num-queues is best the number of the guest's CPUs, up to --queues of blkd serve",
        ),
    )


def _reconnect(device: Attachment) -> str:
    """What makes QEMU connect again after the back end went away."""
    old = device.qemu is not None and device.qemu < QEMU_RECONNECT_MS
    return ",reconnect=1" if old else ",reconnect-ms=1000"


def _qemu_with(device: Attachment, reconnect: str, *lines: list[str]) -> str:
    """A command of QEMU that has the guest's memory shared and a chardev named as the device."""
    path = device.socket.replace(",", ",,")  # as QEMU wants commas in values
    return _command(
        ["qemu-system-x86_64"],
        ["-m", device.memory_text],
        ["-object", f"memory-backend-memfd,id=ram,size={device.memory_text},share=on"],
        ["-machine", "q35,accel=kvm,memory-backend=ram"],
        ["-chardev", f"socket,id={device.name},path={path}{reconnect}"],
        *lines,
    )


def _libvirt(disk: Attachment) -> Recipe:
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
    <target dev='{disk.target}' bus='virtio'/>
  </disk>
</devices>""",
        (
            "memoryBacking goes directly into domain, the disk into its devices",
            "for another disk add only the disk element, printed with another --target",
            "needs libvirt 7.1, and 7.8 for queue_size",
            "QEMU's user, often libvirt-qemu, must be allowed to write to the socket",
        ),
    )


def _cloud_hypervisor(disk: Attachment) -> Recipe:
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
            ["--memory", f"size={disk.memory_text},shared=on"],
            ["--disk", ",".join(device)],
        ),
        (
            "for another disk add another value to the same --disk",
            "versions without a back-end channel see a new size only when the guest restarts",
        ),
    )


def _firecracker(disk: Attachment) -> Recipe:
    if not WELL_FORMED_DRIVE.fullmatch(disk.name):
        raise ConfigError(
            f"firecracker takes no drive called {disk.name}",
            hint="take letters, digits and '_'",
        )
    name = {"drive_id": disk.name}
    drive = {
        **name,
        "is_root_device": False,
        "cache_type": "Writeback",
        "socket": disk.socket,
    }
    return Recipe(
        "firecracker",
        _command(
            ["curl", "--unix-socket", "firecracker.sock"],
            ["-X", "PUT", f"http://localhost/drives/{disk.name}"],
            ["-H", "Content-Type: application/json"],
            ["-d", json.dumps(drive)],
        ),
        (
            "firecracker.sock is Firecracker's --api-sock; call it before InstanceStart",
            "without cache_type Writeback the guest cannot flush, so every write is made durable",
            f"one queue of 256; after a resize: PATCH /drives/{disk.name} with {json.dumps(name)}",
        ),
    )


def _crosvm(disk: Attachment) -> Recipe:
    path = _without_comma(disk.socket, "crosvm")
    return Recipe(
        "crosvm",
        _command(
            ["crosvm", "run"],
            ["--vhost-user", f"block,socket={path},max-queue-size={disk.queue_size}"],
        ),
        (
            "without max-queue-size crosvm takes 32768, more than blkd serves",
            "it uses all queues that blkd serve --queues offers",
        ),
    )


def _qemu_net(device: Attachment) -> Recipe:
    pairs = device.queues
    front_end = (
        "virtio-net-pci",
        f"netdev={device.name}-net",
        *((f"mq=on,vectors={2 * pairs + 2}",) if pairs > 1 else ()),
    )
    return Recipe(
        "qemu",
        _qemu_with(
            device,
            _reconnect(device),
            ["-netdev", f"vhost-user,id={device.name}-net,chardev={device.name},queues={pairs}"],
            ["-device", ",".join(front_end)],
        ),
        (
            "-m and size= are the guest's memory (--memory) and must be equal",
            "for another device add only -chardev, -netdev and -device, printed with another --id",
            "mac= of -device is what the guest sees: the VMM, not blkd, tells it",
        ),
    )


def _libvirt_net(device: Attachment) -> Recipe:
    return Recipe(
        "libvirt",
        f"""\
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<devices>
  <interface type='vhostuser'>
    <source type='unix' path='{html.escape(device.socket)}' mode='client'>
      <reconnect enabled='yes' timeout='1'/>
    </source>
    <model type='virtio'/>
    <driver queues='{device.queues}'/>
  </interface>
</devices>""",
        (
            "memoryBacking goes directly into domain, the interface into its devices",
            "QEMU's user, often libvirt-qemu, must be allowed to write to the socket",
        ),
    )


def _cloud_hypervisor_net(device: Attachment) -> Recipe:
    front_end = (
        "vhost_user=true",
        f"socket={_without_comma(device.socket, 'cloud-hypervisor')}",
        f"num_queues={2 * device.queues}",
        f"queue_size={device.queue_size}",
    )
    return Recipe(
        "cloud-hypervisor",
        _command(
            ["cloud-hypervisor"],
            ["--memory", f"size={device.memory_text},shared=on"],
            ["--net", ",".join(front_end)],
        ),
        ("num_queues counts both directions: two for each pair",),
    )


def _crosvm_net(device: Attachment) -> Recipe:
    path = _without_comma(device.socket, "crosvm")
    return Recipe(
        "crosvm",
        _command(
            ["crosvm", "run"],
            ["--vhost-user", f"net,socket={path},max-queue-size={device.queue_size}"],
        ),
        ("without max-queue-size crosvm takes 32768, more than blkd serves",),
    )


def _qemu_vsock(device: Attachment) -> Recipe:
    return Recipe(
        "qemu",
        _qemu_with(device, "", ["-device", f"vhost-user-vsock-pci,chardev={device.name}"]),
        (
            "-m and size= are the guest's memory (--memory) and must be equal",
            "a guest has one vsock device",
        ),
    )


def _crosvm_vsock(device: Attachment) -> Recipe:
    path = _without_comma(device.socket, "crosvm")
    return Recipe(
        "crosvm",
        _command(
            ["crosvm", "run"],
            ["--vhost-user", f"vsock,socket={path},max-queue-size={device.queue_size}"],
        ),
        ("without max-queue-size crosvm takes 32768, more than blkd serves",),
    )


Maker = Callable[[Attachment], Recipe]

KINDS: dict[str, dict[str, Maker]] = {
    "blk": {
        "qemu": _qemu,
        "libvirt": _libvirt,
        "cloud-hypervisor": _cloud_hypervisor,
        "firecracker": _firecracker,
        "crosvm": _crosvm,
    },
    "vsock": {"qemu": _qemu_vsock, "crosvm": _crosvm_vsock},
    "net": {
        "qemu": _qemu_net,
        "libvirt": _libvirt_net,
        "cloud-hypervisor": _cloud_hypervisor_net,
        "crosvm": _crosvm_net,
    },
}
"""The VMMs that attach each kind of device."""

VMMS = tuple(KINDS["blk"])


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
