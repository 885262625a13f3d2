# SPDX-License-Identifier: Apache-2.0
"""One front end's session: what it has negotiated and shared, and what each request changes.

No I/O happens here.  What a request does is a *plan*: a generator that yields the commands to
carry out, is sent their results, and returns the answer.  The lines after a `yield` run only if
the command succeeded, so that the session never records a change that did not happen.
"""

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace

from blkd.errors import RequestRefused
from blkd.vhost_user.checks import (
    require_alignment,
    require_asking,
    require_inflight_place,
    require_log_covers,
    require_log_place,
    require_no_overlap,
    require_queues,
    require_size,
    require_translation,
)
from blkd.vhost_user.commands import (
    AddMemory,
    Announce,
    Command,
    Configure,
    EnableVring,
    InvalidateIotlb,
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
    TranslateAddresses,
    UpdateIotlb,
    UseInflight,
)
from blkd.vhost_user.inflight import Inflight, part_bytes
from blkd.vhost_user.iotlb import IotlbKind, IotlbMessage
from blkd.vhost_user.requests import MAX_MEM_SLOTS, OFFERED_PROTOCOL_FEATURES
from blkd.vhost_user.session_vring import SessionVring
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import (
    U64,
    Config,
    Empty,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    SingleRegion,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
)
from blkd.virtio.device import Device

TRANSPORT_OFFSET = 0x100  # of virtio-mmio's configuration space (virtio 1.3, 4.2.2)
MAC_BYTES = 6
MAX_INDEX = 0xFFFF  # of a split vring
MAX_STATUS = 0xFF  # virtio 1.3, 2.1: eight bits

OURS = int(VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.LOG_ALL)
"""Features of the back end itself, whatever its device.  A number, since the complement of a flag
ends at the highest bit that is known."""

DONE = U64(0)
"""An acknowledgement."""

Answer = U64 | VringState | Config | Inflight
"""The payload of a reply."""
Steps = Generator[Command, int | None, None]
"""A part of a plan: commands without an answer."""
Plan = Generator[Command, int | None, Answer | None]
"""Commands, each sent its result where it has one; then the answer, or None where none is due."""
Handler = Callable[[Payload], Plan | Answer | None]
"""What one request does: a plan, or the answer itself where nothing has to be carried out."""


class Session:
    """The protocol's state of one connection, and what each request does to it.

    A request is handled by the method of its name: its docstring is for what blkd does, the
    declaration in `requests` for payload, descriptors and features, and the vhost-user document,
    "Front-end message types", for the request as such.  Where a request cannot be granted, the
    method raises RequestRefused, at once or as a plan, and the session stays as it was but for
    the commands that have succeeded.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.features = 0
        self.based_on = 0
        """The features that the vrings' bases belong to; RESET_DEVICE does not change them."""
        self.protocol_features = ProtocolFeature(0)
        self.status = 0
        """The virtio device status, as it was last set (virtio 1.3, 2.1)."""
        self.regions: tuple[MemoryRegion, ...] = ()
        self._repeated: Counter[MemoryRegion] = Counter()
        """How often each region was added beyond the first time."""
        self.log: LogBase | None = None
        self.vrings = tuple(SessionVring(index) for index in range(device.queues))
        self.fetched: int | None = None
        """The device's generation when what changes with it was last read; None before."""

    @property
    def serving(self) -> frozenset[int]:
        """The vrings that are started and enabled, by their indices.

        While there are none, no change is announced on the back-end channel.
        """
        return frozenset(vring.index for vring in self.vrings if vring.started and vring.enabled)

    @property
    def is_suspended(self) -> bool:
        """Whether no vring is started: no request at all goes out on the back-end channel."""
        return not any(vring.started for vring in self.vrings)

    def setups(self) -> dict[int, VringSetup]:
        """How each started vring was set up, by its index; the base is that of its start."""
        started = (vring for vring in self.vrings if vring.started)
        return {vring.index: setup for vring in started if (setup := vring.setup(self.features))}

    @property
    def is_stale(self) -> bool:
        """Whether the device's configuration has changed since the front end read it."""
        return self.fetched != self.device.generation

    @property
    def offered_protocol_features(self) -> int:
        """Those of every device, and those of this kind."""
        return int(OFFERED_PROTOCOL_FEATURES) | self.device.protocol_features

    def has_negotiated(self, feature: ProtocolFeature | VirtioFeature) -> bool:
        """Whether the front end has accepted a feature that was offered."""
        if isinstance(feature, ProtocolFeature):
            return feature in self.protocol_features
        return bool(self.features & feature)

    def may_rely_on(self, feature: ProtocolFeature | VirtioFeature) -> bool:
        """Whether a request that needs a feature is in place.

        QEMU's network devices enable their vrings before a driver has chosen features; that there
        are protocol features was agreed upon by then all the same.
        """
        is_early = self.features == 0 and bool(self.protocol_features)
        early = is_early and feature is VirtioFeature.PROTOCOL_FEATURES
        return early or self.has_negotiated(feature)

    # Features

    def get_features(self, _: Empty) -> Answer:
        """Offer the features of the device and of the back end itself."""
        return U64(self.device.features | OURS)

    def set_features(self, wanted: U64) -> Steps:
        """Take the driver's choice; while a vring is started only LOG_ALL can change."""
        features, changed = wanted.value, wanted.value ^ self.features
        require_asking(features, self.protocol_features)
        if changed & ~int(VirtioFeature.LOG_ALL):
            yield from self._end_all_disabled()
            if not self.is_suspended:
                raise RequestRefused(
                    f"features {features:#x} while rings run with {self.features:#x}"
                )
        self.device.accept(features & ~OURS)
        if (features | changed) & VirtioFeature.ACCESS_PLATFORM and self.is_suspended:
            # Again, too: after a reset QEMU says nothing of what it has taken back.
            yield TranslateAddresses(bool(features & VirtioFeature.ACCESS_PLATFORM))
        if changed & VirtioFeature.LOG_ALL:
            yield LogData(bool(features & VirtioFeature.LOG_ALL))
        if (features ^ self.based_on) & VirtioFeature.RING_PACKED:
            for vring in self.vrings:
                vring.base = None  # of the other layout
        self.features = self.based_on = features
        yield Configure()
        if changed & VirtioFeature.LOG_ALL:
            yield from self._forget_log()
        if not self.has_negotiated(VirtioFeature.PROTOCOL_FEATURES):
            for vring in self.vrings:
                yield from self._enable(vring, enabled=True)

    def get_protocol_features(self, _: Empty) -> Answer:
        """Offer the extensions of the protocol that blkd supports."""
        return U64(self.offered_protocol_features)

    def set_protocol_features(self, wanted: U64) -> None:
        """Take the front end's choice."""
        excess = wanted.value & ~self.offered_protocol_features
        if excess:
            raise RequestRefused(f"protocol features {excess:#x} were not offered")
        require_asking(self.features, ProtocolFeature(wanted.value))
        self.protocol_features = ProtocolFeature(wanted.value)

    # The device

    def set_owner(self, _: Empty) -> None:
        """Do nothing: a session begins with its connection."""

    def reset_owner(self, _: Empty) -> Steps:
        """Disable all vrings, which is all that the document still asks for."""
        for vring in self.vrings:
            yield from self._enable(vring, enabled=False)

    def reset_device(self, _: Empty) -> Steps:
        """Bring the device and its vrings to their initial state; memory and channels stay."""
        for vring in self.vrings:
            yield from self._stop(vring)
            yield from self._enable(vring, enabled=False)
        self.device.reset()
        if self.has_negotiated(VirtioFeature.LOG_ALL):
            yield LogData(on=False)
        if self.has_negotiated(VirtioFeature.ACCESS_PLATFORM):
            yield TranslateAddresses(on=False)
        self.features &= VirtioFeature.PROTOCOL_FEATURES
        self.status = 0
        yield Configure()
        yield from self._forget_log()

    def get_status(self, _: Empty) -> Answer:
        """Answer the device status as it was last set."""
        return U64(self.status)

    def set_status(self, status: U64) -> None:
        """Record the device status; nothing else depends on it."""
        if status.value > MAX_STATUS:
            raise RequestRefused(f"a device status of {status.value:#x}")
        self.status = status.value

    def get_config(self, wanted: Config) -> Answer:
        """Answer a part of the configuration space; zeroes beyond its end."""
        offset, size = config_offset(wanted), len(wanted.data)
        data = self.device.config(offset, size)
        changing = self.device.changing
        if offset <= changing.start and changing.stop <= offset + size:
            self.fetched = self.device.generation
        return Config(wanted.offset, wanted.flags, data)

    def set_config(self, written: Config) -> Steps:
        """Write a part of the configuration space.  Raises RequestRefused where it is read-only."""
        self.device.write_config(config_offset(written), written.data)
        yield Configure()

    def send_rarp(self, address: U64) -> Steps:
        """Have the network learn where a guest is: its MAC address, the first byte lowest."""
        yield Announce(address.value.to_bytes(8, "little")[:MAC_BYTES])

    def set_backend_req_fd(self, _: Empty) -> Steps:
        """Use a socket for requests to the front end ("Back-end communication")."""
        yield OpenBackChannel()

    # Memory

    def set_mem_table(self, table: MemoryTable) -> Steps:
        """Replace all of guest memory."""
        for at, region in enumerate(table.regions):
            require_no_overlap(region, table.regions[:at])
        yield SetMemory(table.regions)
        self.regions = table.regions
        self._repeated.clear()

    def get_max_mem_slots(self, _: Empty) -> Answer:
        """Answer how many memory regions there can be."""
        return U64(MAX_MEM_SLOTS)

    def add_mem_reg(self, single: SingleRegion) -> Steps:
        """Add a memory region.

        QEMU up to 7.2 has a vhost device for each pair of a network device's vrings, and each of
        them adds all regions, and removes them: one goes when it was removed as often as added.
        """
        if single.region in self.regions:
            self._repeated[single.region] += 1
            return
        if len(self.regions) >= MAX_MEM_SLOTS:
            raise RequestRefused(f"all {MAX_MEM_SLOTS} memory slots are in use")
        require_no_overlap(single.region, self.regions)
        yield AddMemory(single.region)
        self.regions += (single.region,)

    def rem_mem_reg(self, single: SingleRegion) -> Steps:
        """Remove the memory region of these addresses and this size."""
        for region in self.regions:
            if region.is_same(single.region):
                if self._repeated[region]:
                    self._repeated[region] -= 1
                    return
                yield RemoveMemory(region)
                self.regions = tuple(other for other in self.regions if other is not region)
                return
        raise RequestRefused(
            f"no memory region of {single.region.size} bytes"
            f" at {single.region.guest_address:#x} to remove"
        )

    def iotlb_msg(self, message: IotlbMessage) -> Plan:
        """Take a translation, or forget those of a range; nothing uses them when it is answered.

        MISS and ACCESS_FAIL are a back end's own.
        """
        match message.kind:
            case IotlbKind.UPDATE:
                require_translation(message.entry)
                yield UpdateIotlb(message.entry)
            case IotlbKind.INVALIDATE:
                yield InvalidateIotlb(message.iova, message.end - message.iova)
            case _:
                raise RequestRefused(f"{message.kind.name} from a front end")
        return DONE

    # Requests in flight

    def get_inflight_fd(self, wanted: Inflight) -> Plan:
        """Make a region with a part for each vring ("Inflight I/O tracking"): its description.

        Each part has room for the largest vring: the front end may start larger ones than it
        names here.
        """
        require_queues(wanted, len(self.vrings), self.device.queue_size)
        packed = self.has_negotiated(VirtioFeature.RING_PACKED)
        part = part_bytes(self.device.queue_size, packed=packed)
        region = replace(wanted, mmap_size=wanted.queues * part, mmap_offset=0)
        yield OfferInflight(region)
        return region

    def set_inflight_fd(self, region: Inflight) -> Steps:
        """Use a region, of an earlier back end or new: vrings start from what it says."""
        packed = self.has_negotiated(VirtioFeature.RING_PACKED)
        require_queues(region, len(self.vrings), self.device.queue_size)
        require_inflight_place(region)
        for vring in self.vrings:
            yield from self._end_disabled(vring)
            if vring.started:
                raise RequestRefused(f"an in-flight region while ring {vring.index} runs")
        yield UseInflight(region, packed)

    # The dirty log

    def set_log_base(self, log: LogBase) -> Plan:
        """Mark dirty pages in this log ("Migration"); nothing uses an earlier one when answered."""
        require_log_place(log)
        for vring in self.vrings:
            if vring.started and (setup := vring.setup(self.features)):
                require_log_covers(setup, log)
        yield SetLog(log)
        self.log = log
        return DONE

    def set_log_fd(self, _: Empty) -> None:
        """Take an eventfd that would signal marks in the dirty log; it is closed, unused."""

    def _forget_log(self) -> Steps:
        """Unmap a log once nothing is marked in it any more: each migration brings its own."""
        marked = any(vring.started and vring.is_logged for vring in self.vrings)
        if self.log and not marked and not self.has_negotiated(VirtioFeature.LOG_ALL):
            yield SetLog(None)
            self.log = None

    # Vrings

    def get_queue_num(self, _: Empty) -> Answer:
        """Answer how many vrings there are ("Multiple queue support")."""
        return U64(len(self.vrings))

    def set_vring_num(self, state: VringState) -> Steps:
        """Set a vring's size, in descriptors."""
        vring, size = self._vring(state.index), state.num
        require_size(vring.index, size, self.device.queue_size, self.features)
        yield from self._end_disabled(vring)
        if vring.started and size != vring.size:
            raise RequestRefused(f"ring {vring.index} runs with {vring.size} descriptors")
        vring.size = size
        if vring.enabled:
            yield from self._start(vring)

    def set_vring_addr(self, addresses: VringAddr) -> Steps:
        """Set a vring's addresses, and whether its used ring is logged; a started one moves."""
        vring = self._vring(addresses.index)
        if addresses.flags & ~VringAddr.LOG:
            raise RequestRefused(f"ring {vring.index} with flags {addresses.flags:#x}")
        require_alignment(addresses, self.features)
        setup = replace(vring, addresses=addresses).setup(self.features)
        if vring.started and setup and addresses != vring.addresses:
            require_log_covers(setup, self.log)
            yield MoveVring(vring.index, setup)
        was_logged, vring.addresses = vring.is_logged, addresses
        if was_logged and not vring.is_logged:
            yield from self._forget_log()
        if vring.enabled:
            yield from self._start(vring)

    def set_vring_base(self, state: VringState) -> Steps:
        """Set where a vring is to start."""
        vring = self._vring(state.index)
        yield from self._end_disabled(vring)
        if vring.started:
            raise RequestRefused(f"ring {vring.index} runs: its base cannot change")
        if state.num > MAX_INDEX and not self.has_negotiated(VirtioFeature.RING_PACKED):
            raise RequestRefused(f"ring {vring.index} from {state.num:#x}: no split ring's index")
        vring.base = state.num

    def get_vring_base(self, state: VringState) -> Plan:
        """Stop a vring: its base, where it is to start next time."""
        vring = self._vring(state.index)
        yield from self._stop(vring)
        return VringState(vring.index, vring.position(self.features))

    def set_vring_kick(self, eventfd: VringFd) -> Steps:
        """Take a vring's kick eventfd, which starts it if nothing else is missing.

        The document has a vring start at its first kick; here what is available already is
        served right away.
        """
        vring = self._vring(eventfd.index)
        if not eventfd.has_fd:
            raise RequestRefused(f"ring {vring.index} without a kick: polling is not supported")
        yield SetKick(vring.index)
        vring.has_kick = True
        yield from self._start(vring)

    def set_vring_call(self, eventfd: VringFd) -> Steps:
        """Take a vring's call eventfd; it may come before anything else of the vring."""
        yield SetCall(self._vring(eventfd.index).index)

    def set_vring_err(self, eventfd: VringFd) -> Steps:
        """Take a vring's error eventfd."""
        yield SetError(self._vring(eventfd.index).index)

    def set_vring_enable(self, state: VringState) -> Steps:
        """Serve a vring, or pause it; it stays started ("Ring states")."""
        vring = self._vring(state.index)
        if state.num not in (0, 1):
            raise RequestRefused(f"ring {vring.index} enabled by {state.num}, not 0 or 1")
        yield from self._enable(vring, enabled=bool(state.num))

    def _vring(self, index: int) -> SessionVring:
        if index >= len(self.vrings):
            raise RequestRefused(f"ring {index} of {len(self.vrings)}")
        return self.vrings[index]

    def _start(self, vring: SessionVring) -> Steps:
        """Start a vring that is stopped, if nothing is missing."""
        setup = vring.setup(self.features)
        if setup and not vring.started:
            assert vring.addresses is not None
            # Features and log may have changed since the requests that set these were checked.
            require_size(vring.index, vring.size, self.device.queue_size, self.features)
            require_alignment(vring.addresses, self.features)
            require_log_covers(setup, self.log)
            yield StartVring(vring.index, setup)
            vring.started = True

    def _stop(self, vring: SessionVring) -> Steps:
        """Stop a vring, if it is started; it loses its kick and keeps its base."""
        if vring.started:
            base = yield StopVring(vring.index)
            assert base is not None
            vring.base, vring.started = base, False
        vring.has_kick = False

    def _end_disabled(self, vring: SessionVring) -> Steps:
        """Stop a disabled vring that is about to be set up anew.

        Some front ends never send GET_VRING_BASE: they disable a vring and set it up again.
        """
        if vring.started and not vring.enabled:
            yield from self._stop(vring)

    def _end_all_disabled(self) -> Steps:
        for vring in self.vrings:
            yield from self._end_disabled(vring)

    def _enable(self, vring: SessionVring, *, enabled: bool) -> Steps:
        """Enable or disable a vring; one that is enabled starts if nothing is missing."""
        if vring.enabled != enabled:
            yield EnableVring(vring.index, enabled)
            vring.enabled = enabled
        if enabled:
            yield from self._start(vring)


def config_offset(access: Config) -> int:
    """Where in the device's configuration space an access begins, in bytes.

    Some front ends count from the beginning of virtio-mmio's registers.
    """
    if access.offset >= TRANSPORT_OFFSET:
        return access.offset - TRANSPORT_OFFSET
    return access.offset
