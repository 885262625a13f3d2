# SPDX-License-Identifier: Apache-2.0
"""One front end's session: what it negotiated, what its rings are like, what it may ask now.

No I/O happens here.  A request is admitted as a *plan*: a generator that yields the commands
to carry out, is sent their results, and returns the answer.  What stands after a `yield`
happens only if the command succeeded, so a session never records what is not so.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import cast

from blkd.errors import ProtocolError, RequestRefused
from blkd.vhost_user.checks import (
    refuse_misaligned,
    refuse_no_log,
    refuse_no_rings,
    refuse_overlap,
    refuse_size,
    refuse_unfit,
    refuse_unlogged,
)
from blkd.vhost_user.commands import (
    AddMemory,
    Command,
    Configure,
    EnableVring,
    LogData,
    MoveVring,
    OfferInflight,
    OpenBackChannel,
    RemoveMemory,
    SetCall,
    SetError,
    SetKick,
    SetLog,
    SetMemory,
    StartVring,
    StopVring,
    UseInflight,
)
from blkd.vhost_user.inflight import Inflight, part_bytes
from blkd.vhost_user.requests import (
    MAX_MEM_SLOTS,
    NOT_ZERO,
    OFFERED_PROTOCOL_FEATURES,
    REQUESTS,
    Declaration,
    Support,
    declared,
)
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import (
    U64,
    Config,
    Empty,
    Header,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    SingleRegion,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
    reply,
)
from blkd.virtio.device import Device

TRANSPORT_OFFSET = 0x100  # where virtio-mmio has the config space; some front ends add it
MAX_INDEX = 0xFFFF  # of a split ring
PACKED_START = 0x80008000  # avail and used at 0, both wrap counters 1 (virtio 1.3, 2.8.1)
MAX_STATUS = 0xFF  # virtio 1.3, 2.1: eight bits

OURS = int(VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.LOG_ALL)
"""Features that are the back end's, not the device's.  A number, since the complement of a flag
ends at the highest bit that is known."""

DONE = U64(0)  # an acknowledgement

Answer = U64 | VringState | Config | Inflight
Steps = Generator[Command, int | None, None]
Plan = Generator[Command, int | None, Answer | None]
Handler = Callable[[Payload], Plan | Answer | None]


@dataclass(slots=True)
class SessionVring:
    """What is known of one ring."""

    index: int
    size: int = 0
    """Descriptors; 0 until SET_VRING_NUM."""
    addresses: VringAddr | None = None
    base: int | None = None
    """What to serve first when it starts, or where it stopped; None for its beginning."""
    has_kick: bool = False
    started: bool = False
    enabled: bool = False

    def setup(self, features: int) -> VringSetup | None:
        """All that it takes to start the ring; None while something is missing."""
        if not (self.size and self.addresses and self.has_kick):
            return None
        where, base = self.addresses, self.position(features)
        return VringSetup(
            self.size, where.desc, where.avail, where.used, base, features, where.logged_at
        )

    @property
    def is_logged(self) -> bool:
        """Whether writes to its own areas are."""
        return self.addresses is not None and self.addresses.logged_at is not None

    def position(self, features: int) -> int:
        """The base, with that of a fresh ring where none was ever given."""
        if self.base is not None:
            return self.base
        return PACKED_START if features & VirtioFeature.RING_PACKED else 0


class Session:
    """The protocol's state for one connection, and what each request does to it.

    The method named like a request answers it; `requests` says everything else about it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.features = 0
        self.based_on = 0
        """The driver's features that the rings' bases are of."""
        self.protocol_features = ProtocolFeature(0)
        self.status = 0
        self.regions: tuple[MemoryRegion, ...] = ()
        self.log: LogBase | None = None
        self.rings = tuple(SessionVring(index) for index in range(device.queues))
        self.fetched: int | None = None
        """The device's generation when what changes with it was last read; None before."""

    @property
    def serving(self) -> frozenset[int]:
        """The rings that are started and enabled; without any we may not call on the peer."""
        return frozenset(ring.index for ring in self.rings if ring.started and ring.enabled)

    def setups(self) -> dict[int, VringSetup]:
        """What each started ring, by its index, runs with; its base is where it was started."""
        started = (ring for ring in self.rings if ring.started)
        return {ring.index: setup for ring in started if (setup := ring.setup(self.features))}

    @property
    def is_stale(self) -> bool:
        """Whether the front end has not read the configuration as it is now."""
        return self.fetched != self.device.generation

    # Admission and answers

    def admit(self, header: Header, payload: bytes, fd_count: int) -> Plan:
        """Check a request against its declaration and plan it.

        Raises ProtocolError on a malformed request and RequestRefused on one that cannot be
        granted, when the plan is begun or between its commands.
        """
        request, declaration = declared(header)
        if declaration.support is not Support.YES:
            raise RequestRefused(f"{request.name}: {declaration.note}")
        try:
            content = declaration.payload.decode(payload)
        except ProtocolError as error:
            raise ProtocolError(f"{request.name}: {error}") from error
        if not declaration.fds.allow(content, fd_count):
            raise ProtocolError(
                f"{request.name}: {fd_count} descriptors, not {declaration.fds.text}"
            )
        if declaration.needs is not None and not self._has(declaration.needs):
            raise RequestRefused(f"{request.name}: {declaration.needs.name} is not negotiated")
        handler = cast("Handler", getattr(self, request.name.lower()))
        outcome = handler(content)
        return (yield from outcome) if isinstance(outcome, Generator) else outcome

    def accepted(self, header: Header, answer: Answer | None) -> bytes | None:
        """The reply to a request that was carried out, whole; None where none is due."""
        if answer is None and not self._owes_acknowledgement(header):
            return None
        return reply(header.request, (answer or DONE).encode())

    def refused(self, header: Header, error: RequestRefused) -> bytes:
        """The reply that says no.  Raises ProtocolError where the front end would not hear it.

        Left in the dark, it would go on with a state that we do not have.
        """
        declaration = REQUESTS.get(cast("Request", header.request), Declaration())
        refusal = declaration.refusal
        if not declaration.replies and self._owes_acknowledgement(header):
            refusal = NOT_ZERO
        if refusal is None:
            raise ProtocolError(str(error), hint=error.hint) from error
        return reply(header.request, refusal)

    def _owes_acknowledgement(self, header: Header) -> bool:
        return header.needs_reply and self._has(ProtocolFeature.REPLY_ACK)

    def _has(self, feature: ProtocolFeature | VirtioFeature) -> bool:
        if isinstance(feature, ProtocolFeature):
            return feature in self.protocol_features
        return bool(self.features & feature)

    # Features

    def get_features(self, _: Empty) -> Answer:
        """Offer what the device has, and ours."""
        return U64(self.device.features | OURS)

    def set_features(self, wanted: U64) -> Steps:
        """Take the driver's choice; under a running ring only LOG_ALL can change."""
        features, changed = wanted.value, wanted.value ^ self.features
        if changed & ~int(VirtioFeature.LOG_ALL):
            for ring in self.rings:
                yield from self._end_disabled(ring)
            if any(ring.started for ring in self.rings):
                raise RequestRefused(
                    f"features {features:#x} while rings run with {self.features:#x}"
                )
        self.device.accept(features & ~OURS)
        if changed & VirtioFeature.LOG_ALL:
            yield LogData(bool(features & VirtioFeature.LOG_ALL))
        if (features ^ self.based_on) & VirtioFeature.RING_PACKED:
            for ring in self.rings:
                ring.base = None  # of the other layout
        self.features = self.based_on = features
        yield Configure()
        if changed & VirtioFeature.LOG_ALL:
            yield from self._forget_log()
        if not self._has(VirtioFeature.PROTOCOL_FEATURES):
            for ring in self.rings:
                yield from self._enable(ring, enabled=True)

    def get_protocol_features(self, _: Empty) -> Answer:
        """Offer the extensions that work whole."""
        return U64(OFFERED_PROTOCOL_FEATURES)

    def set_protocol_features(self, wanted: U64) -> None:
        """Take the front end's choice."""
        excess = wanted.value & ~int(OFFERED_PROTOCOL_FEATURES)
        if excess:
            raise RequestRefused(f"protocol features {excess:#x} were not offered")
        self.protocol_features = ProtocolFeature(wanted.value)

    # The device

    def set_owner(self, _: Empty) -> None:
        """Know that a session starts: it did with the connection."""

    def reset_owner(self, _: Empty) -> Steps:
        """Disable all rings, which is all that the specification still wants of it."""
        for ring in self.rings:
            yield from self._enable(ring, enabled=False)

    def reset_device(self, _: Empty) -> Steps:
        """Bring device and rings to their initial state, memory and channels aside."""
        for ring in self.rings:
            yield from self._stop(ring)
            yield from self._enable(ring, enabled=False)
        self.device.reset()
        if self._has(VirtioFeature.LOG_ALL):
            yield LogData(on=False)
        self.features &= VirtioFeature.PROTOCOL_FEATURES
        self.status = 0
        yield Configure()
        yield from self._forget_log()

    def get_status(self, _: Empty) -> Answer:
        """Tell the device status as it was last set."""
        return U64(self.status)

    def set_status(self, status: U64) -> None:
        """Remember the device status."""
        if status.value > MAX_STATUS:
            raise RequestRefused(f"a device status of {status.value:#x}")
        self.status = status.value

    def get_config(self, wanted: Config) -> Answer:
        """Read the configuration space."""
        offset, size = config_offset(wanted), len(wanted.data)
        data = self.device.config(offset, size)
        changing = self.device.changing
        if offset <= changing.start and changing.stop <= offset + size:
            self.fetched = self.device.generation
        return Config(wanted.offset, wanted.flags, data)

    def set_config(self, written: Config) -> Steps:
        """Write the configuration space, where that can be written."""
        self.device.write_config(config_offset(written), written.data)
        yield Configure()

    def set_backend_req_fd(self, _: Empty) -> Steps:
        """Take the channel for our own requests."""
        yield OpenBackChannel()

    # Memory

    def set_mem_table(self, table: MemoryTable) -> Steps:
        """Replace all of guest memory."""
        for at, region in enumerate(table.regions):
            refuse_overlap(region, table.regions[:at])
        yield SetMemory(table.regions)
        self.regions = table.regions

    def get_max_mem_slots(self, _: Empty) -> Answer:
        """Tell how many regions we take."""
        return U64(MAX_MEM_SLOTS)

    def add_mem_reg(self, single: SingleRegion) -> Steps:
        """Add a region."""
        if len(self.regions) >= MAX_MEM_SLOTS:
            raise RequestRefused(f"all {MAX_MEM_SLOTS} memory slots are in use")
        refuse_overlap(single.region, self.regions)
        yield AddMemory(single.region)
        self.regions += (single.region,)

    def rem_mem_reg(self, single: SingleRegion) -> Steps:
        """Remove a region, found by its addresses and size."""
        for region in self.regions:
            if region.is_same(single.region):
                yield RemoveMemory(region)
                self.regions = tuple(other for other in self.regions if other is not region)
                return
        raise RequestRefused(
            f"no memory region of {single.region.size} bytes"
            f" at {single.region.guest_address:#x} to remove"
        )

    # Requests in flight

    def get_inflight_fd(self, wanted: Inflight) -> Plan:
        """Make a region that has room for the requests in flight of all rings.

        The front end may start larger rings than it names here: each part is for the largest.
        """
        refuse_no_rings(wanted, len(self.rings), self.device.queue_size)
        part = part_bytes(self.device.queue_size, packed=self._has(VirtioFeature.RING_PACKED))
        region = replace(wanted, mmap_size=wanted.queues * part, mmap_offset=0)
        yield OfferInflight(region)
        return region

    def set_inflight_fd(self, region: Inflight) -> Steps:
        """Take a region, of an earlier back end or fresh: rings start from what it says."""
        packed = self._has(VirtioFeature.RING_PACKED)
        refuse_no_rings(region, len(self.rings), self.device.queue_size)
        refuse_unfit(region)
        for ring in self.rings:
            yield from self._end_disabled(ring)
            if ring.started:
                raise RequestRefused(f"an in-flight region while ring {ring.index} runs")
        yield UseInflight(region, packed)

    # The dirty log

    def set_log_base(self, log: LogBase) -> Plan:
        """Mark in another log; one that is in use is not looked at before it is complete."""
        refuse_no_log(log)
        for ring in self.rings:
            if ring.started and (setup := ring.setup(self.features)):
                refuse_unlogged(setup, log)
        yield SetLog(log)
        self.log = log
        return DONE

    def set_log_fd(self, _: Empty) -> None:
        """Take an eventfd by which the front end could be told of marks."""

    def _forget_log(self) -> Steps:
        """Give up a log that nothing is marked in any more: a migration brings its own."""
        marked = any(ring.started and ring.is_logged for ring in self.rings)
        if self.log and not marked and not self._has(VirtioFeature.LOG_ALL):
            yield SetLog(None)
            self.log = None

    # Rings

    def get_queue_num(self, _: Empty) -> Answer:
        """Tell how many rings there are."""
        return U64(len(self.rings))

    def set_vring_num(self, state: VringState) -> Steps:
        """Size a ring."""
        ring, size = self._ring(state.index), state.num
        refuse_size(ring.index, size, self.device.queue_size, self.features)
        yield from self._end_disabled(ring)
        if ring.started and size != ring.size:
            raise RequestRefused(f"ring {ring.index} runs with {ring.size} descriptors")
        ring.size = size
        if ring.enabled:
            yield from self._start(ring)

    def set_vring_addr(self, addresses: VringAddr) -> Steps:
        """Place a ring, and say whether its own areas are logged; a running one moves."""
        ring = self._ring(addresses.index)
        if addresses.flags & ~VringAddr.LOG:
            raise RequestRefused(f"ring {ring.index} with flags {addresses.flags:#x}")
        refuse_misaligned(addresses, self.features)
        setup = replace(ring, addresses=addresses).setup(self.features)
        if ring.started and setup and addresses != ring.addresses:
            refuse_unlogged(setup, self.log)
            yield MoveVring(ring.index, setup)
        was_logged, ring.addresses = ring.is_logged, addresses
        if was_logged and not ring.is_logged:
            yield from self._forget_log()
        if ring.enabled:
            yield from self._start(ring)

    def set_vring_base(self, state: VringState) -> Steps:
        """Say where a ring's service begins."""
        ring = self._ring(state.index)
        yield from self._end_disabled(ring)
        if ring.started:
            raise RequestRefused(f"ring {ring.index} runs: its base cannot change")
        if state.num > MAX_INDEX and not self._has(VirtioFeature.RING_PACKED):
            raise RequestRefused(f"ring {ring.index} from {state.num:#x}: no split ring's index")
        ring.base = state.num

    def get_vring_base(self, state: VringState) -> Plan:
        """Stop a ring and tell where."""
        ring = self._ring(state.index)
        yield from self._stop(ring)
        return VringState(ring.index, ring.position(self.features))

    def set_vring_kick(self, vring: VringFd) -> Steps:
        """Take a ring's kick, which starts it if nothing else is missing."""
        ring = self._ring(vring.index)
        if not vring.has_fd:
            raise RequestRefused(f"ring {ring.index} without a kick: polling is not supported")
        yield SetKick(ring.index)
        ring.has_kick = True
        yield from self._start(ring)

    def set_vring_call(self, vring: VringFd) -> Steps:
        """Take a ring's call, long before the ring has addresses if need be."""
        yield SetCall(self._ring(vring.index).index)

    def set_vring_err(self, vring: VringFd) -> Steps:
        """Take a ring's error eventfd."""
        yield SetError(self._ring(vring.index).index)

    def set_vring_enable(self, state: VringState) -> Steps:
        """Let a ring be served or have it wait."""
        ring = self._ring(state.index)
        if state.num not in (0, 1):
            raise RequestRefused(f"ring {ring.index} enabled by {state.num}, not 0 or 1")
        yield from self._enable(ring, enabled=bool(state.num))

    def _ring(self, index: int) -> SessionVring:
        if index >= len(self.rings):
            raise RequestRefused(f"ring {index} of {len(self.rings)}")
        return self.rings[index]

    def _start(self, ring: SessionVring) -> Steps:
        """Start a ring that is stopped and lacks nothing."""
        setup = ring.setup(self.features)
        if setup and not ring.started:
            assert ring.addresses is not None
            # Other features, and a log, may have come since they were checked before.
            refuse_size(ring.index, ring.size, self.device.queue_size, self.features)
            refuse_misaligned(ring.addresses, self.features)
            refuse_unlogged(setup, self.log)
            yield StartVring(ring.index, setup)
            ring.started = True

    def _stop(self, ring: SessionVring) -> Steps:
        """Stop a ring that is started; it loses its kick and keeps its place."""
        if ring.started:
            base = yield StopVring(ring.index)
            assert base is not None
            ring.base, ring.started = base, False
        ring.has_kick = False

    def _end_disabled(self, ring: SessionVring) -> Steps:
        """Stop a ring that was disabled and is now set up anew.

        Some front ends never send GET_VRING_BASE: a disabled ring is all they leave behind.
        """
        if ring.started and not ring.enabled:
            yield from self._stop(ring)

    def _enable(self, ring: SessionVring, *, enabled: bool) -> Steps:
        """Enable or disable a ring; enabled at last, it starts if it lacks nothing."""
        if ring.enabled != enabled:
            yield EnableVring(ring.index, enabled)
            ring.enabled = enabled
        if enabled:
            yield from self._start(ring)


def config_offset(access: Config) -> int:
    """Where in the device's own configuration space an access begins."""
    if access.offset >= TRANSPORT_OFFSET:
        return access.offset - TRANSPORT_OFFSET
    return access.offset
