# SPDX-License-Identifier: Apache-2.0
"""Devices that are no disks: what one process serves of them, from its start to its end."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from blkd.dataplane import DataPlane, WorkerPlan, probe_io_uring
from blkd.dataplane.served import ServedDevice
from blkd.errors import RequestRefused
from blkd.export.endpoint import Endpoint, Stage, listen
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.pauses import Pauses
from blkd.export.views import PauseResult
from blkd.host.sandbox_policy import Confinement
from blkd.vhost_user.front_end_state import FrontEndState


class DeviceKind(ServedDevice, Protocol):
    """A device of another kind than a disk, with what stands behind it."""

    def facts(self) -> Mapping[str, object]:
        """What there is to know of it beside what all devices have, by name; for msgspec."""

    async def watch(self, endpoint: Endpoint) -> None:
        """See to what changes behind it while it is served; cancelled when that ends."""

    def close(self) -> None:
        """Close what stands behind it: the workers have ended."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """All there is to know of one device but its counters."""

    name: str
    socket: str
    features: int
    in_flight: int
    broken_rings: tuple[int, ...]
    broken_reasons: tuple[str, ...]
    """Why, of each of `broken_rings`."""
    facts: Mapping[str, object]
    front_end: FrontEndState | None


@dataclass(frozen=True, slots=True)
class DeviceExportState:
    """All there is to know of the devices of a process."""

    name: str
    device: str
    """Their kind."""
    state: Stage
    devices: tuple[DeviceState, ...]
    sandbox: Confinement | None
    """What is in force of it; None without one."""


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """The counters of one vring of a device, by name."""

    name: str
    ring: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DeviceExportStats:
    """The counters of all vrings that were used."""

    name: str
    rings: tuple[DeviceStats, ...]


@dataclass(frozen=True, slots=True)
class _Device:
    """A device, and where it is served."""

    socket: str
    served: DeviceKind
    plane: DataPlane
    endpoint: Endpoint


class DeviceExport:
    """Serves devices of one kind, each to one front end at a time, until `stop` or `kill`.

    `add` each, then `serve`.
    """

    def __init__(self, config: EndpointConfig, kind: str) -> None:
        self.config = config
        self.confinement: Confinement | None = None
        """What is in force of the sandbox that this process is in."""
        self._kind = kind
        self._devices: list[_Device] = []
        self._resources = contextlib.ExitStack()

    async def add(
        self,
        name: str,
        path: str,
        served: DeviceKind,
        plan: WorkerPlan,
        listener: socket.socket | None = None,
    ) -> None:
        """Serve a device, taken, at a socket of its own: front ends may connect afterwards.

        A `listener` that is given is taken, and the file at `path` is somebody else's.

        Raises BlkdError: it is closed.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(served.close)
            if listener is not None:
                undo.callback(listener.close)
            probe_io_uring()  # rather now than at the first chain
            plane = DataPlane(served, plan)
            undo.callback(plane.close)
            if listener is None:
                listener = await listen(path, self.config, undo)
            endpoint = Endpoint(name, listener, served.device, plane, Pauses(plane))
            self._devices.append(_Device(path, served, plane, endpoint))
            self._resources.push(undo.pop_all())

    async def start_workers(self) -> None:
        """Start all threads that serve vrings now, and not when a front end needs them."""
        for device in self._devices:
            await device.plane.start_workers()

    @property
    def is_restricted(self) -> bool:
        """Whether the io_urings of these threads do only what they were made for."""
        return all(device.plane.is_restricted for device in self._devices)

    @property
    def statistics(self) -> Sequence[int]:
        """None: only disks have a statistics area."""
        return ()

    @property
    def listeners(self) -> tuple[socket.socket, ...]:
        """Where front ends connect, for each device; borrowed."""
        return tuple(device.endpoint.listener for device in self._devices)

    async def serve(self) -> None:
        """Serve front ends until `stop` or `kill`, as `Endpoint.serve` does; then close all."""
        with self._resources:
            async with asyncio.TaskGroup() as tasks:
                for device in self._devices:
                    tasks.create_task(device.endpoint.serve(_watching(device)))

    def close(self) -> None:
        """Release everything, unless `serve` has done so: for one that is never served."""
        self._resources.close()

    def stop(self) -> None:
        """Complete what is in flight, close the connections and have `serve` return."""
        for device in self._devices:
            device.endpoint.stop()

    def kill(self) -> None:
        """Abandon what is in flight and have `serve` return at once."""
        for device in self._devices:
            device.endpoint.kill()

    # ---- calls ----

    async def refresh(self) -> None:
        """Do nothing: what stands behind such a device is watched all the time."""

    async def resize(self, size: int, **_: bool) -> object:
        """Refuse: only a disk has a size."""
        raise RequestRefused(f"a {self._kind} device has no size that could become {size}")

    def in_flight(self) -> object:
        """Refuse: only a disk lists its requests."""
        raise RequestRefused(f"a {self._kind} device lists no requests", hint="see its stats")

    def figures(self) -> object:
        """Refuse: only disks have figures."""
        raise RequestRefused(f"a {self._kind} device has no figures", hint="see its stats")

    def limits(self) -> object:
        """Refuse: only a disk has limits."""
        raise RequestRefused(f"a {self._kind} device has no limits")

    async def limit(self, text: str) -> object:  # noqa: ARG002 - as a disk has it
        """Refuse: only a disk has limits."""
        raise RequestRefused(f"a {self._kind} device has no limits")

    async def retry(self) -> object:
        """Refuse: only a disk holds requests."""
        raise RequestRefused(f"a {self._kind} device holds no requests")

    async def pause(self, deadline: float) -> PauseResult:
        """Fetch nothing more; wait up to `deadline` seconds for what is in flight."""
        results = await asyncio.gather(*(d.endpoint.pause(deadline) for d in self._devices))
        return PauseResult(
            paused=all(result.paused for result in results),
            drained=all(result.drained for result in results),
            in_flight=sum(result.in_flight for result in results),
        )

    async def resume(self) -> None:
        """Fetch again."""
        for device in self._devices:
            await device.endpoint.resume()

    def show(self) -> DeviceExportState:
        """The state now."""
        return DeviceExportState(
            name=self.config.name,
            device=self._kind,
            state=self._devices[0].endpoint.stage,
            devices=tuple(map(_state, self._devices)),
            sandbox=self.confinement,
        )

    def stats(self) -> DeviceExportStats:
        """The counters now."""
        rings = tuple(
            DeviceStats(device.endpoint.name, index, counts)
            for device in self._devices
            for index in range(device.served.device.queues)
            if (counts := device.plane.counters(index))
        )
        return DeviceExportStats(self.config.name, rings)


def _watching(device: _Device) -> Callable[[], Awaitable[None]]:
    return lambda: device.served.watch(device.endpoint)


def _state(device: _Device) -> DeviceState:
    connection = device.endpoint.front_ends.connection
    broken = device.plane.broken_vrings
    return DeviceState(
        name=device.endpoint.name,
        socket=device.socket,
        features=device.served.device.features,
        in_flight=device.plane.in_flight,
        broken_rings=tuple(broken),
        broken_reasons=tuple(broken.values()),
        facts=device.served.facts(),
        front_end=connection.show() if connection else None,
    )
