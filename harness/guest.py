# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in QEMU: it boots in seconds, has vhost-user devices and runs what it is sent.

machine = await Machine.prepare()
async with machine.boot(Disk(socket)) as guest:
    print(await guest.run("blkdiscard /dev/vda"))
"""

import asyncio
import contextlib
import enum
import os
import re
import socket
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from harness.account import account, stolen
from harness.agent import Agent, Answer, GuestError
from harness.initramfs import Kernel, MissingPart, build
from harness.process import kill, spawn
from harness.qmp import Qmp

QEMU = "qemu-system-x86_64"
MEMORY = "512M"
KERNEL_ARGUMENTS = "console=ttyS0 loglevel=7 log_buf_len=4M panic=-1"
BOOT_LIMIT = 90.0
"""A guest boots in ten seconds.  Emulated ones were seen to stand still, some hundred boots apart,
until their kernel looked after its processors at 21 s, and then to go on."""
KVM_PROBE_LIMIT = 10.0
"""A guest boots under KVM in about a second; under one that hangs in the BIOS it never does."""
RECONNECT_MS_SINCE = (9, 2)
"""QEMU took `reconnect-ms` then, and later dropped `reconnect`, which is in seconds."""
INIT_STARTS = "Run /init as init process"
"""What the kernel logs when its own start is over, before it loads a driver of ours."""
DISK_IS_THERE = "[vda]"
"""What it logs when its driver has found the first disk."""
LOG_LEVEL_ERR = 3
"""The kernel's KERN_ERR: a line of this level or a lower one reports an error."""
LOG_TAIL = 60  # lines shown when the guest fails
MIGRATION_LIMIT = 60.0
MIGRATION_PERIOD = 0.05  # seconds between two looks at a migration
MIGRATION_ENDS = {"completed", "cancelled", "failed"}
MIGRATION_CRAWL = 1 << 20
"""Bytes a second: so slow that there is time to cancel it."""
MIGRATION_SPEED = 8 << 30
"""Bytes a second: as fast as it goes."""
LONGEST_DOWNTIME = 1000
"""Milliseconds that QEMU may take for the last part of a migration, with the guest stopped."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A vhost-user-blk device of the guest: the first is /dev/vda, and so on."""

    reconnects: ClassVar[bool] = True
    socket: Path
    queues: int = 4
    queue_size: int = 256
    packed: bool = False
    """Whether the driver is offered packed virtqueues."""
    translated: bool = False
    """Whether the driver may use no addresses but those of the guest's IOMMU."""
    ats: bool = True
    """... which is one that knows devices with translations of their own."""

    def arguments(self, chardev: str) -> tuple[str, ...]:
        """What makes QEMU have it, on this chardev."""
        ring = f"num-queues={self.queues},queue-size={self.queue_size}"
        ring += ",packed=on" if self.packed else ""
        if self.translated:
            ring += f",iommu_platform=on,ats={'on' if self.ats else 'off'},disable-legacy=on"
        return "-device", f"vhost-user-blk-pci,chardev={chardev},{ring}"


@dataclass(frozen=True, slots=True)
class Net:
    """A virtio-net device with a vhost-user back end, which listens: the first is eth0, and so on.

    It has no MSI-X vectors: under TCG, QEMU 7.2 dies of a null pointer when one changes.
    """

    reconnects: ClassVar[bool] = True
    socket: Path
    packed: bool = False
    pairs: int = 1
    """Pairs of queues."""
    mtu: int | None = None
    """What the guest is told, if anything."""
    mac: str | None = None

    def arguments(self, chardev: str) -> tuple[str, ...]:
        """What makes QEMU have it, on this chardev."""
        ring = ",packed=on" if self.packed else ""
        ring += ",mq=on" if self.pairs > 1 else ""
        ring += f",host_mtu={self.mtu}" if self.mtu else ""
        ring += f",mac={self.mac}" if self.mac else ""
        netdev = f"vhost-user,id=net-{chardev},chardev={chardev},queues={self.pairs}"
        return "-netdev", netdev, "-device", f"virtio-net-pci,netdev=net-{chardev},vectors=0{ring}"


@dataclass(frozen=True, slots=True)
class Vsock:
    """A virtio-vsock device; its vhost-user back end, which listens, gives the guest its CID.

    QEMU has no way to connect it a second time, and with a chardev that reconnects not even a
    first: such a chardev connects only after the device has asked for its features.
    """

    reconnects: ClassVar[bool] = False
    socket: Path
    packed: bool = False

    def arguments(self, chardev: str) -> tuple[str, ...]:
        """What makes QEMU have it, on this chardev."""
        ring = ",packed=on" if self.packed else ""
        return "-device", f"vhost-user-vsock-pci,chardev={chardev}{ring}"


@dataclass(frozen=True, slots=True)
class Wire:
    """A network card, "eth0" and so on, wired to that of another guest: no back end of ours.

    Each frame is a datagram from one socket to the other; QEMU makes its own, and those sent
    before the other is there are lost, as on a wire.
    """

    local: Path
    remote: Path
    number: int
    """From 1: another one for each card on the wire, for its address."""

    def arguments(self, name: str) -> tuple[str, ...]:
        """What makes QEMU have it, under this name."""
        ends = (
            f"{end}.type=unix,{end}.path={path}"
            for end, path in (("local", self.local), ("remote", self.remote))
        )
        mac = f"52:54:00:00:00:{self.number:02x}"
        netdev = f"dgram,id=net-{name},{','.join(ends)}"
        return "-netdev", netdev, "-device", f"virtio-net-pci,netdev=net-{name},mac={mac}"


@dataclass(frozen=True, slots=True)
class OwnTap:
    """A network card, "eth0" and so on, over a TAP that QEMU serves itself: no back end of ours."""

    name: str
    pairs: int = 1
    vhost: bool = False
    """Whether the host's kernel serves it."""

    def arguments(self, name: str) -> tuple[str, ...]:
        """What makes QEMU have it, under this name."""
        vhost = "on" if self.vhost else "off"
        netdev = f"tap,id=net-{name},ifname={self.name},script=no,downscript=no,vhost={vhost}"
        several = ",mq=on" if self.pairs > 1 else ""
        netdev += f",queues={self.pairs}" if self.pairs > 1 else ""
        return "-netdev", netdev, "-device", f"virtio-net-pci,netdev=net-{name},vectors=0{several}"


Device = Disk | Net | Vsock | Wire | OwnTap


INTEL_IOMMU = "intel-iommu,device-iotlb=on,caching-mode=on"
VIRTIO_IOMMU = "virtio-iommu-pci"


class Iommu(enum.Enum):
    """A guest's IOMMU, and what it does to the devices behind it."""

    STRICT = INTEL_IOMMU, "intel_iommu=on iommu.strict=1"
    """Each buffer of a driver is mapped for as long as it is used, and unmapped at once."""
    PASSTHROUGH = INTEL_IOMMU, "intel_iommu=on iommu=pt"
    """Devices see all of the guest's memory, at the guest's own addresses."""
    VIRTIO_STRICT = VIRTIO_IOMMU, "iommu.strict=1"
    """As STRICT; the guest's kernel has a driver of it from Debian 13 on."""

    def __init__(self, device: str, option: str) -> None:
        self.device = device
        """What QEMU has."""
        self.option = option
        """What the guest's kernel is told."""


@dataclass(frozen=True, slots=True)
class SpareMemory:
    """Room for memory that comes and goes while the guest runs.

    The guest puts it to use at once, and for nothing that cannot be moved out of it again.
    """

    slots: int = 8
    """For DIMMs."""
    most: str = "4G"
    virtio_mem: str | None = None
    """Size of a virtio-mem device "spare", empty at first; None for none."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What one guest's machine is made of."""

    devices: tuple[Device, ...] = ()
    cpus: int = 4
    spare: SpareMemory | None = None
    iommu: Iommu | None = None


@dataclass(frozen=True, slots=True)
class Migration:
    """What QEMU says of a migration that is completed."""

    seconds: float
    downtime: float
    """Seconds that the guest stood still, as the source tells it."""
    bytes: int
    """Sent over, zero pages aside."""


class KernelHangs(GuestError):
    """The guest's kernel started and then came to a halt before it had to do with a disk."""


class CommandFailed(GuestError):
    """A script in the guest ended with another status than 0."""

    def __init__(self, script: str, answer: Answer) -> None:
        super().__init__(f"status {answer.status} from {script!r}: {answer.stdout}{answer.stderr}")
        self.answer = answer


class Guest:
    """A booted guest, or one that is to come by migration.  Made by `Machine`."""

    def __init__(
        self, agent: Agent, qmp: Qmp, process: Process, logs: Path, iommu: Iommu | None
    ) -> None:
        self.qmp = qmp
        self._errors_since = DISK_IS_THERE if iommu else INIT_STARTS
        self._agent = agent
        self._process = process
        self._logs = logs
        self._stolen_before = stolen()
        self.kernel = ""
        """Release of the kernel that runs in the guest."""

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._process.pid

    async def run(self, script: str, *, limit: float = 60.0) -> str:
        """What a shell script in the guest printed.  Raises CommandFailed, or GuestError."""
        try:
            async with asyncio.timeout(limit):
                answer = await self._agent.ask(script)
        except TimeoutError as error:
            raise GuestError(f"no answer in {limit} s to {script!r}") from error
        except GuestError as error:
            raise GuestError(f"{error} during {script!r}") from error
        if answer.status != 0:
            raise CommandFailed(script, answer)
        return answer.stdout

    async def booted(self, limit: float = BOOT_LIMIT) -> None:
        """Wait until the guest runs scripts.  Raises GuestError."""
        try:
            async with asyncio.timeout(limit):
                self.kernel = await self._agent.ready
        except (TimeoutError, GuestError) as error:
            log = (self._logs / "serial").read_text(errors="replace")
            kind = KernelHangs if log and INIT_STARTS not in log else GuestError
            raise kind(f"the guest has not booted in {limit} s") from error

    async def reboot(self) -> None:
        """Reset the machine; returns when it runs scripts again."""
        self._agent.expect_boot()
        self._agent.ask("reboot -f")
        await self.booted()

    async def power_off(self, limit: float = 20.0) -> int:
        """Have the guest switch itself off: QEMU's exit status.  Raises TimeoutError."""
        self._agent.ask("poweroff -f")
        async with asyncio.timeout(limit):
            return await self._process.wait()

    async def migrate(self, to: "Guest") -> Migration:
        """Send the guest to where `to`, an incoming one, waits; it then stands still at both ends.

        Either it goes on there (`take_over`) or here (`resume`).  Raises QmpError, or GuestError
        where QEMU gives the migration up.
        """
        await self._begin_to_migrate(to, MIGRATION_SPEED)
        seen = await self._migration("completed")
        return Migration(
            seen["total-time"] / 1000, seen["downtime"] / 1000, seen["ram"]["transferred"]
        )

    async def begin_and_cancel(self, to: "Guest") -> None:
        """Begin to migrate to `to` and cancel it while memory is copied; the guest never stops."""
        await self._begin_to_migrate(to, MIGRATION_CRAWL)
        await self._migration("active")
        await self.qmp.execute("migrate_cancel")
        await self._migration("cancelled")

    async def _begin_to_migrate(self, to: "Guest", speed: int) -> None:
        uri = f"unix:{to._logs / 'migration'}"  # noqa: SLF001 - another of our kind
        await to.qmp.execute("migrate-incoming", uri=uri)
        await self.qmp.execute(
            "migrate-set-parameters", max_bandwidth=speed, downtime_limit=LONGEST_DOWNTIME
        )
        await self.qmp.execute("migrate", uri=uri)

    async def _migration(self, wanted: str) -> dict[str, Any]:
        """What QEMU says of its migration once that is as `wanted`."""
        async with asyncio.timeout(MIGRATION_LIMIT):
            while True:
                seen: dict[str, Any] = await self.qmp.execute("query-migrate")
                if seen["status"] == wanted:
                    return seen
                if seen["status"] in MIGRATION_ENDS:
                    raise GuestError(f"a migration {seen['status']}")
                await asyncio.sleep(MIGRATION_PERIOD)

    async def take_over(self, source: "Guest") -> None:
        """Go on with the guest that has come from `source`, and answer what was asked there."""
        self.kernel = source.kernel
        self._agent.follow(source._agent)  # noqa: SLF001 - another of our kind
        await self.resume()

    async def resume(self) -> None:
        """Have a stopped guest go on."""
        await self.qmp.execute("cont")

    async def kill(self) -> None:
        """End QEMU at once."""
        await kill(self._process)

    async def until(self, condition: str, *, limit: float = 60.0) -> None:
        """Wait until a shell condition holds in the guest.  Raises GuestError."""
        await self.run(f"until {condition}; do sleep 0.02; done", limit=limit)

    async def size(self, disk: str) -> int:
        """Bytes that the guest's kernel takes the disk ("vda") to have."""
        return int(await self.run(f"blockdev --getsize64 /dev/{disk}"))

    async def sha256(self, disk: str) -> str:
        """Digest of all that the disk answers to reads, past the guest's page cache."""
        out = await self.run(
            f"set -o pipefail; dd if=/dev/{disk} bs=1M iflag=direct | sha256sum", limit=180
        )
        return out.split()[0]

    async def kernel_errors(self) -> list[str]:
        """Every line of level "err" or worse in the kernel's log since init was started.

        Before that no driver is loaded, and the kernel complains of emulated clocks.  With an IOMMU
        it is since there was a disk: QEMU 7.2 looks once more at the ring that the firmware has
        left, whose address says nothing any more, and the kernel logs that as a fault.
        """
        _, found, log = (await self.run("dmesg -r")).partition(self._errors_since)
        assert found, "the log is kept from the beginning"
        lines = re.findall(r"^<(\d+)>(.*)$", log, re.MULTILINE)
        return [text for level, text in lines if int(level) & 7 <= LOG_LEVEL_ERR]

    async def account(self) -> str:
        """What it and its host are at, and the last lines that its kernel and QEMU have written."""
        facts = await account(self.pid, self.qmp, self._stolen_before)
        logs = ((self._logs / log).read_text(errors="replace") for log in ("serial", "qemu"))
        return "\n".join((facts, *(line for log in logs for line in log.splitlines()[-LOG_TAIL:])))


@contextlib.asynccontextmanager
async def explained(guest: Guest) -> AsyncIterator[None]:
    """Have an error come with what the guest was at."""
    try:
        yield
    except Exception as error:
        error.add_note(await guest.account())
        raise


@dataclass(frozen=True, slots=True)
class Machine:
    """What guests are made of on this host."""

    kernel: Kernel
    initramfs: Path
    qemu_version: tuple[int, ...]
    accelerator: str
    """"kvm" where a guest was seen to boot under it, else "tcg"."""
    qemu: tuple[str, ...] = (QEMU,)
    """The command that QEMU is started by."""
    model: str = "q35"
    """QEMU's name of the machine: one with a version is the same in later QEMUs."""
    cpu: str = "max"

    @classmethod
    async def prepare(cls, qemu: tuple[str, ...] = (QEMU,)) -> Self:
        """Build what is not built yet and try KVM.  Raises MissingPart."""
        kernel = Kernel.fetched()
        machine = cls(kernel, build(kernel), await ask_version(qemu), "kvm", qemu)
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            with contextlib.suppress(GuestError):
                async with machine._boot(Parts(cpus=1), KVM_PROBE_LIMIT):
                    return machine
        return replace(machine, accelerator="tcg")

    @contextlib.asynccontextmanager
    async def boot(
        self,
        *devices: Device,
        cpus: int = 4,
        spare: SpareMemory | None = None,
        iommu: Iommu | None = None,
        limit: float = BOOT_LIMIT,
    ) -> AsyncIterator[Guest]:
        """A guest that has booted; at the end QEMU is killed if it still runs.

        Under TCG of QEMU 7.2 a kernel was seen to hang in its own start, some hundred boots
        apart, before any driver was loaded: only such a boot is tried a second time.
        """
        parts = Parts(devices, cpus, spare, iommu)
        async with contextlib.AsyncExitStack() as running:
            try:
                guest = await running.enter_async_context(self._boot(parts, limit))
            except KernelHangs:
                guest = await running.enter_async_context(self._boot(parts, limit))
            yield guest

    @contextlib.asynccontextmanager
    async def incoming(
        self, *devices: Device, cpus: int = 4, iommu: Iommu | None = None
    ) -> AsyncIterator[Guest]:
        """A machine that waits for a guest to be migrated to it (`Guest.migrate`)."""
        parts = Parts(devices, cpus, None, iommu)
        async with self._run(parts, "-incoming", "defer", "-S") as guest:
            yield guest

    @contextlib.asynccontextmanager
    async def _boot(self, parts: Parts, limit: float) -> AsyncIterator[Guest]:
        async with self._run(parts) as guest:
            await guest.booted(limit)
            yield guest

    @contextlib.asynccontextmanager
    async def _run(self, parts: Parts, *more: str) -> AsyncIterator[Guest]:
        ours, theirs = socket.socketpair()
        our_qmp, their_qmp = socket.socketpair()
        with tempfile.TemporaryDirectory(prefix="guest-") as directory, ours, our_qmp:
            logs = Path(directory)
            with theirs, their_qmp, (logs / "qemu").open("wb") as log:
                ends = {"agent": theirs.fileno(), "qmp": their_qmp.fileno()}
                process = await spawn(
                    *(*self.qemu, *self._arguments(parts, logs / "serial"), *more),
                    *(w for n, fd in ends.items() for w in ("-chardev", f"socket,id={n},fd={fd}")),
                    pass_fds=tuple(ends.values()),
                    stdout=log,
                    stderr=log,
                )
            try:
                loop = asyncio.get_running_loop()
                _, agent = await loop.create_connection(Agent, sock=ours)
                _, qmp = await loop.create_connection(Qmp, sock=our_qmp)
                guest = Guest(agent, qmp, process, logs, parts.iommu)
                async with explained(guest):
                    yield guest
            finally:
                await kill(process)

    def _arguments(self, parts: Parts, serial: Path) -> Iterator[str]:
        spare = parts.spare
        yield from ("-nodefaults", "-no-user-config", "-display", "none")
        yield from ("-accel", self.accelerator, "-cpu", self.cpu, "-smp", f"{parts.cpus}")
        room = f",slots={spare.slots},maxmem={spare.most}" if spare else ""
        yield from ("-machine", f"{self.model},memory-backend=memory", "-m", MEMORY + room)
        yield from ("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on")
        yield from ("-kernel", f"{self.kernel.image}", "-initrd", f"{self.initramfs}")
        more = " memhp_default_state=online_movable" if spare else ""
        if parts.iommu:
            yield from ("-device", parts.iommu.device)  # before any device that is behind it
            more += f" {parts.iommu.option}"
        yield from ("-append", KERNEL_ARGUMENTS + more, "-serial", f"file:{serial}")
        yield from ("-device", "virtio-serial-pci", "-mon", "chardev=qmp,mode=control")
        yield from ("-device", "virtserialport,chardev=agent,name=agent")
        if spare and spare.virtio_mem:
            size = f"size={spare.virtio_mem},share=on,reserve=off"
            yield from ("-object", f"memory-backend-memfd,id=spare-memory,{size}")
            yield from ("-device", "virtio-mem-pci,id=spare,memdev=spare-memory,requested-size=0")
        again = ",reconnect-ms=500" if self.qemu_version >= RECONNECT_MS_SINCE else ",reconnect=1"
        for n, device in enumerate(parts.devices):
            if not isinstance(device, Wire | OwnTap):
                reconnect = again if device.reconnects else ""
                yield from ("-chardev", f"socket,id=device{n},path={device.socket}{reconnect}")
            yield from device.arguments(f"device{n}")


async def ask_version(qemu: tuple[str, ...]) -> tuple[int, ...]:
    """The version of the QEMU that this command starts.  Raises MissingPart without one."""
    try:
        process = await asyncio.create_subprocess_exec(*qemu, "--version", stdout=PIPE)
    except FileNotFoundError as error:
        raise MissingPart(f"no {qemu[-1]} on this host", hint="install qemu-system-x86") from error
    words, _ = await process.communicate()
    return tuple(map(int, re.findall(r"\d+", words.decode())[:3]))
