# SPDX-License-Identifier: Apache-2.0
"""A network device and its TAP, as worker threads serve them: all that the data path has of net."""

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from blkd import network
from blkd.dataplane.plane import DataPlane
from blkd.dataplane.workers import WorkerPlan
from blkd.errors import RequestRefused
from blkd.host.blocking import ask
from blkd.host.fds import readable
from blkd.host.tap import LinkWatch, Offload, Tap
from blkd.virtio.device import MAX_QUEUE_SIZE
from blkd.virtio.net import Feature, NetDevice

TAP_LIMIT: Final = 5.0  # seconds that the kernel may take to change a TAP
NO_TAP: Final = -1

OFFLOADS: Final[Mapping[Feature, Offload]] = {
    Feature.GUEST_CSUM: Offload.CSUM,
    Feature.GUEST_TSO4: Offload.TSO4,
    Feature.GUEST_TSO6: Offload.TSO6,
    Feature.GUEST_ECN: Offload.TSO_ECN,
    Feature.GUEST_UFO: Offload.UFO,
}
SENDS: Final = {
    "tcp4": Feature.HOST_TSO4,
    "tcp6": Feature.HOST_TSO6,
    "udp": Feature.HOST_UFO,
}
TAKES: Final = {
    "tcp4": Feature.GUEST_TSO4,
    "tcp6": Feature.GUEST_TSO6,
    "udp": Feature.GUEST_UFO,
}

log = structlog.get_logger()


class Announcer(Protocol):
    """Who tells front ends of changes."""

    async def announce_config(self) -> object:
        """Announce that the device's configuration changed."""


class Place(Protocol):
    """Where the device is served."""

    @property
    def plane(self) -> DataPlane:
        """Its data path."""

    @property
    def front_ends(self) -> Announcer:
        """Those who connect."""


class ServedNet:
    """A network device whose packets go through a TAP; plays `export.device_export.DeviceKind`."""

    def __init__(self, device: NetDevice, tap: Tap, plan: WorkerPlan) -> None:
        """`tap` is taken."""
        self.device = device
        self.tap = tap
        self.longest_chain = MAX_QUEUE_SIZE
        self.note = None
        self._links = LinkWatch()
        self._has_command = asyncio.Event()
        self._agreed: tuple[int, Offload] | None = None
        self.plan = plan
        self._read_flags = tap.read_flags
        self._attached = [True] * len(tap.fds)
        self._command: tuple[int, int, int] | None = None
        self._answered, self._answer = 0, network.OK

    @property
    def name(self) -> str:
        """The TAP's name."""
        return self.tap.name

    def make_part(self, number: int, vrings: int) -> "NetPart":
        """A worker's ends of the TAP's queues."""
        indices = self.plan.vrings_of(number, self.device.queues)[:vrings]
        part = network.NetPart(
            [(index, self._fd(index), self._read_flags) for index in indices],
            largest=MAX_QUEUE_SIZE,
            longest_chain=self.longest_chain,
        )
        control = self.device.parameters.control_queue
        return NetPart(self, part, indices if control else [])

    def _fd(self, index: int) -> int:
        pair = index // 2
        return self.tap.fds[pair] if pair < len(self.tap.fds) else NO_TAP

    @property
    def configuration(self) -> bytes:
        """What was agreed upon with the driver, and the answer to its last command."""
        device, accepted = self.device, self.device.accepted
        return network.parameters(
            header_bytes=device.header_bytes,
            mergeable=Feature.MRG_RXBUF in accepted,
            checksums=Feature.CSUM in accepted,
            ecn=Feature.HOST_ECN in accepted,
            sends=[name for name, feature in SENDS.items() if feature in accepted],
            guest_checksums=Feature.GUEST_CSUM in device.offloads,
            guest_ecn=Feature.GUEST_ECN in device.offloads,
            longest=device.longest_frame,
            takes=[name for name, feature in TAKES.items() if feature in device.offloads],
            control=device.control_index,
            answered=self._answered,
            answer=self._answer,
        )

    def recall(self, _note: bytes) -> None:
        """Nothing was noted."""

    def facts(self) -> Mapping[str, object]:
        """The TAP, its link, and what was agreed upon with the driver."""
        p = self.device.parameters
        return {
            "tap": self.tap.name,
            "link_up": self.device.link_up,
            "pairs": p.pairs,
            "pairs_attached": sum(self._attached),
            "mac": p.mac.hex(":") if p.mac else None,
            "mtu": p.mtu,
            "offloads": [feature.name for feature in OFFLOADS if feature in self.device.offloads],
        }

    def close(self) -> None:
        """Close the TAP's queues: the workers have ended."""
        self._links.close()
        self.tap.close()

    async def watch(self, place: Place) -> None:
        """Keep TAP and device as the driver, the front end and the host want each; endless."""
        plane = place.plane
        plane.before_configuring = self.adapt
        plane.after_enabling = functools.partial(self.attach, plane)
        plane.on_announce = self.announce
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._carry_out_commands(plane))
            tasks.create_task(self._follow_link(place))

    async def _follow_link(self, place: Place) -> None:
        """Show the guest a link that is up while the TAP is."""
        while True:
            if self.device.show_link(up=self.tap.is_up):
                log.info("link changed", tap=self.tap.name, up=self.device.link_up)
                await place.front_ends.announce_config()
            await readable(self._links.fileno())
            self._links.drop()

    # ---- the TAP, as the driver and the front end want it ----

    async def adapt(self) -> None:
        """Have the TAP give and take packets as was agreed upon with the driver.

        Raises RequestRefused where the kernel does not.
        """
        size, offload = self.device.header_bytes, Offload(0)
        for feature, each in OFFLOADS.items():
            if feature in self.device.offloads:
                offload |= each
        if self._agreed != (size, offload):
            self._agreed = None
            await self._change(lambda: self.tap.set_header_bytes(size))
            await self._change(lambda: self.tap.set_offload(offload))
            self._agreed = size, offload

    async def attach(self, plane: DataPlane) -> None:
        """Have the TAP put packets only where they are received: into queues of enabled vrings.

        The first queue always is one: a TAP without any could not keep a packet.
        """
        enabled = plane.enabled_vrings
        used = self.device.pairs if self.device.control_index is not None else len(self._attached)
        for pair in range(1, len(self._attached)):
            on = 2 * pair in enabled and pair < used
            if on != self._attached[pair]:
                await self._change(functools.partial(self.tap.attach, pair, on=on))
                self._attached[pair] = on

    async def _change(self, change: Callable[[], None]) -> None:
        try:
            await ask(change, TAP_LIMIT)
        except (OSError, TimeoutError) as error:
            raise RequestRefused(f"{self.tap.name} cannot be changed: {error}") from error

    # ---- the control queue ----

    def take_command(self, command: tuple[int, int, int]) -> None:
        """Have a command of the driver carried out."""
        self._command = command
        self._has_command.set()

    async def _carry_out_commands(self, plane: DataPlane) -> None:
        """Do what the driver's commands ask for; its worker has each answer with what changes."""
        while True:
            await self._has_command.wait()
            self._has_command.clear()
            assert self._command is not None
            number, kind, value = self._command
            done = await self._carry_out(plane, kind, value)
            self._answer = network.OK if done else network.ERROR
            self._answered = number
            await plane.post_configuration()  # and no more of the TAP: the driver has its answer

    async def _carry_out(self, plane: DataPlane, kind: int, value: int) -> bool:
        """Do what one command asks for: whether it could be done."""
        before = self.device.pairs, self.device.offloads
        try:
            if kind == network.PAIRS and self.device.choose_pairs(value):
                await self.attach(plane)
                return True
            if kind == network.OFFLOADS and self.device.choose_offloads(value):
                await self.adapt()
                return True
        except RequestRefused as error:  # by the kernel
            self.device.pairs, self.device.offloads = before
            log.warning("command not carried out", tap=self.tap.name, reason=str(error))
        return False

    # ---- announcing ----

    def announce(self, mac: bytes) -> None:
        """Have the network learn where a guest is that has just come here."""
        try:
            self.tap.send(rarp(mac), self.device.header_bytes)
        except OSError as error:
            log.warning("guest not announced", tap=self.tap.name, reason=str(error))


class NetPart:
    """A network device's part of one worker thread; plays `served.DevicePart`."""

    def __init__(self, served: ServedNet, part: network.NetPart, control: list[int]) -> None:
        """`control` has the device's numbers of the vrings, where one can be a control queue."""
        self.capsule = part.capsule
        self._served = served
        self._part = part
        self._control = control

    def counters(self, ring: int) -> Mapping[str, int]:
        """Packets and bytes, and what was dropped."""
        return self._part.counters(ring)

    def report(self, code: int) -> None:
        """Log that the TAP is gone, or have a command carried out."""
        if code == network.TAP_GONE:
            log.error("TAP gone", tap=self._served.name, hint="make it again, and start blkd anew")
            return
        index = self._served.device.control_index
        if index in self._control:
            self._served.take_command(self._part.command(self._control.index(index)))

    def close(self) -> None:
        """There is nothing to end."""


def rarp(mac: bytes) -> bytes:
    """A request that asks for the address of `mac` itself, to everybody (RFC 903)."""
    ethernet = b"\xff" * 6 + mac + b"\x80\x35"
    hardware, protocol, request = b"\0\1" + b"\x08\0" + b"\6\4", bytes(4), b"\0\3"
    return (ethernet + hardware + request + (mac + protocol) * 2).ljust(60, b"\0")
