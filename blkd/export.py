# SPDX-License-Identifier: Apache-2.0
"""One export: a listener, a device, an image and the rings between them."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from typing import Final, Literal

import structlog

from blkd import listener
from blkd.config import ExportConfig
from blkd.dataplane import Crew, DataPlane, probe_io_uring
from blkd.errors import BlkdError, ConfigError, DrainTimeout, ImageError, RequestRefused
from blkd.image.base import Image
from blkd.image.kinds import open_image
from blkd.image.raw import default_serial
from blkd.image.watch import looks
from blkd.vhost_user.connection import Connection, FrontEndState
from blkd.virtio.blk import SECTOR_BYTES, BlkDevice, BlkParameters

SOCKET_MODE: Final = 0o660  # the VMM's group may connect, nobody else
ANNOUNCE_LIMIT: Final = 5.0  # seconds that a front end has to fetch a new size
SIZE_PERIOD: Final = 1.0  # seconds between two looks at an image that grows by other means
ACCEPT_PERIOD: Final = 0.5  # seconds until accepting is tried again after it failed
DRAIN_LIMIT: Final = 30.0  # seconds to drain before an image shrinks or the export ends

Announced = Literal["fetched", "not-connected", "pending"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ResizeResult:
    """What became of a change of size, in bytes."""

    size: int
    previous: int
    announced: Announced
    """`pending`: a front end is connected and has not fetched the size yet; it is told again."""


@dataclass(frozen=True, slots=True)
class PauseResult:
    """How far a pause has come."""

    paused: bool
    in_flight: int
    """Requests that the deadline left unfinished."""


@dataclass(frozen=True, slots=True)
class ExportState:
    """All there is to know of an export but its counters."""

    name: str
    state: Literal["serving", "paused", "stopping"]
    image: str
    image_locked: bool
    """False before a guest is migrated here, and after it was migrated away."""
    socket: str | None
    size: int
    read_only: bool
    cache: str
    logical_block_size: int
    physical_block_size: int
    queues: int
    queue_size: int
    serial: str
    engine: str
    engine_reason: str
    workers: int
    cpus: tuple[int, ...]
    poll_us: int
    memory_registered: bool
    discard: bool
    features: int
    in_flight: int
    broken_rings: tuple[int, ...]
    front_end: FrontEndState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests answered since the export was opened."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    write_zeroes: int = 0
    get_ids: int = 0
    others: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    kicks: int = 0
    calls: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStats(Counts):
    """The counts of one ring."""

    ring: int


@dataclass(frozen=True, slots=True)
class ExportStats:
    """The counters of an export, ring by ring."""

    name: str
    total: Counts
    rings: tuple[RingStats, ...]


class Export:
    """Serves one image to one front end at a time, for as long as it is told to."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config
        self._image: Image
        self._device: BlkDevice
        self._plane: DataPlane
        self._listener: socket.socket
        self._serving: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._front_end: socket.socket | None = None
        self._ending = asyncio.Event()
        self._killed = False
        self._paused = False  # on somebody's order
        self._draining = False  # on our own, for a moment
        self._resizing = asyncio.Lock()
        self._resources = contextlib.ExitStack()

    async def open(self, inherited: socket.socket | None = None) -> None:
        """Open, lock and measure the image, and listen: front ends may connect afterwards.

        Args:
            inherited: A listening or connected socket to use, taken; None listens at the
                path that the configuration names.

        Raises:
            BlkdError: It cannot be served as configured; nothing stays open.
        """
        config = self.config
        probe_io_uring()  # rather now than at the first request
        with contextlib.ExitStack() as undo:
            if inherited is not None:
                undo.callback(inherited.close)
            elif config.socket is None:
                raise ConfigError("no socket to serve on")
            self._image = await open_image(
                config.image,
                read_only=config.read_only,
                direct=config.cache == "none",
                logical_block_size=config.logical_block_size,
                engine=config.engine,
                incoming=config.incoming,
            )
            undo.callback(self._image.close)
            self._device = BlkDevice(parameters(config, self._image))
            self._crew = crew(config)
            self._plane = DataPlane(self._image, self._device, config.queue_size, self._crew)
            undo.callback(self._plane.close)
            self._plane.on_fault = self._drop_front_end
            self._plane.before_first = self._claim_image
            self._plane.after_migration = self._hand_image_over
            self._listener = inherited or self._listen(undo)
            self._resources = undo.pop_all()

    def _listen(self, undo: contextlib.ExitStack) -> socket.socket:
        path = self.config.socket
        assert path is not None
        sock = listener.listen(path, SOCKET_MODE)
        undo.callback(sock.close)
        undo.callback(listener.unlink_if_ours, path)
        return sock

    async def serve(self) -> None:
        """Serve front ends, one after the other, until `stop` or `kill`.

        A socket that was handed over connected is served until it closes.  Everything is
        closed when this returns.  Raises DataPlaneError if a worker failed.
        """
        with self._resources:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch_size())
                accepting = tasks.create_task(self._accept())
                accepting.add_done_callback(lambda _: self._ending.set())
                self._plane.failed.add_done_callback(lambda _: self._ending.set())
                await self._ending.wait()
                watching.cancel()
                if self._killed:
                    self._plane.leave()
                with contextlib.suppress(DrainTimeout):
                    # First of all: a front end that sees the connection close resumes from
                    # the used index of that moment, which must not move any more.
                    await self._plane.pause(DRAIN_LIMIT)
                if self._connection is not None:
                    self._connection.close()
                if self._serving is not None:
                    await asyncio.wait([self._serving])
                accepting.cancel()
            if self._plane.failed.done():
                self._plane.failed.result()

    def close(self) -> None:
        """Release everything, unless `serve` has done so: for one that is never served."""
        self._resources.close()

    def stop(self) -> None:
        """Complete what is in flight, close the connection and have `serve` return."""
        self._ending.set()

    def kill(self) -> None:
        """Abandon what is in flight and have `serve` return at once."""
        self._killed = True
        if self._ending.is_set():
            self._plane.leave()
        self._ending.set()

    # ---- front ends ----

    async def _accept(self) -> None:
        """Serve whoever connects, one at a time; a second one is turned away."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            if not listener.is_listening(self._listener):
                self._serving = tasks.create_task(self._serve_one(self._listener))
                return
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    # One that came and went, or no descriptor left: the present disk goes on.
                    log.warning("no front end accepted", reason=error.strerror)
                    await asyncio.sleep(ACCEPT_PERIOD)
                    continue
                if self._serving and not self._serving.done():
                    if not self._has_left():
                        log.warning("second front end refused", export=self.config.name)
                        sock.close()
                        continue
                    await asyncio.wait([self._serving])
                self._serving = tasks.create_task(self._serve_one(sock))

    async def _serve_one(self, sock: socket.socket) -> None:
        """Serve one front end until it leaves; what it does wrong ends with it."""
        self._front_end = sock
        self._connection = Connection(sock, self._device, self._plane)
        log.info("front end connected", export=self.config.name)
        try:
            await self._connection.serve()
            log.info("front end left", export=self.config.name)
        except BlkdError as error:
            log.warning("front end dropped", export=self.config.name, reason=str(error))
        finally:
            self._connection = self._front_end = None
            self._device.reset()

    def _drop_front_end(self) -> None:
        """End the connection of a front end that took memory away which it had shared."""
        log.error("front end's memory shrank under its rings", export=self.config.name)
        if self._connection is not None:
            self._connection.close()

    def _has_left(self) -> bool:
        """Whether the present front end has closed its side, served to the end or not."""
        if self._front_end is None or self._front_end.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._front_end, select.POLLRDHUP)
        return bool(poll.poll(0))

    # ---- live migration ----

    async def _claim_image(self) -> None:
        """Have the image locked before a ring starts, and the disk as large as it is then."""
        if self._image.held:
            return
        try:
            await self._image.claim()
        except ImageError as error:
            log.error("image not locked", export=self.config.name, reason=str(error))  # noqa: TRY400
            raise RequestRefused(str(error), hint=error.hint) from error
        await self._take_size()

    async def _hand_image_over(self) -> None:
        """Give the image's lock up: the guest goes on elsewhere, or comes back to claim it."""
        try:
            await self._image.hand_over()
        except ImageError as error:
            log.error("image not handed over", export=self.config.name, reason=str(error))  # noqa: TRY400

    # ---- size ----

    async def resize(self, size: int, *, force: bool = False) -> ResizeResult:
        """Make the disk `size` bytes long and tell the front end.

        Returns when the front end has fetched the new size, or cannot be told now: then it
        is told when its rings start.  A shrinking disk is drained first.

        Raises:
            ImageError: The image cannot have that size.
            ConfigError: It would shrink, and `force` was not given.
            DrainTimeout: Requests in flight did not end in time; nothing was changed.
        """
        async with self._resizing:
            if size < (present := self._device.capacity * SECTOR_BYTES):
                if not force:
                    raise ConfigError(
                        f"{self._image.path}: {size} bytes is less than the present {present}",
                        hint="shrinking loses what is beyond: --force does it all the same",
                    )
                async with self._drained():
                    await self._image.resize(size)
                    await self._take_size()
            else:
                await self._image.resize(size)
                await self._take_size()
            return ResizeResult(size, present, await self._announce())

    async def refresh_size(self) -> ResizeResult:
        """Notice that the image grew by other means, and tell the front end.

        One that shrank is an accident until `resize` says otherwise: the disk keeps its size,
        and what the guest reads beyond the image's end fails.
        """
        async with self._resizing:
            present = self._device.capacity * SECTOR_BYTES
            self._image.refresh()
            if (found := self._image.limits.size) < present:
                log.error("image shrank under its disk", image=self._image.path, size=found)
                return ResizeResult(present, present, "not-connected")
            await self._take_size()
            return ResizeResult(found, present, await self._announce())

    @contextlib.asynccontextmanager
    async def _drained(self) -> AsyncIterator[None]:
        """Nothing in flight within; serving goes on afterwards unless it is paused anyway."""
        self._draining = True
        try:
            await self._plane.pause(DRAIN_LIMIT)
            yield
        finally:
            self._draining = False
            if not self._paused:
                await self._plane.resume()

    async def _take_size(self) -> None:
        """Bring device and data path to the image's size."""
        size = self._image.limits.size
        changed = size != self._device.capacity * SECTOR_BYTES
        self._device.resize(size // SECTOR_BYTES)
        await self._plane.refresh()
        if changed:
            log.info("size changed", export=self.config.name, size=size)

    async def _announce(self) -> Announced:
        if self._connection is None:
            return "not-connected"
        told = await self._connection.announce_config(ANNOUNCE_LIMIT)
        return "fetched" if told else "pending"

    async def _watch_size(self) -> None:
        """Look at the image's size each time that it may be another than the disk's."""
        async with contextlib.aclosing(looks(self._image, SIZE_PERIOD)) as occasions:
            async for _ in occasions:
                await self._look_at_size()

    async def _look_at_size(self) -> None:
        try:
            async with self._resizing:  # one under way takes the size that it makes
                changed = self._image.refresh()
            if changed:
                await self.refresh_size()
        except (OSError, ImageError) as error:
            log.warning("image cannot be measured", image=self._image.path, reason=str(error))

    # ---- pause and resume ----

    async def pause(self, deadline: float) -> PauseResult:
        """Fetch nothing more; wait up to `deadline` seconds for what is in flight."""
        self._paused = True
        try:
            await self._plane.pause(deadline)
        except DrainTimeout as error:
            log.warning("pause incomplete", export=self.config.name, reason=str(error))
        return PauseResult(paused=self._paused, in_flight=self._plane.in_flight)

    async def resume(self) -> None:
        """Serve on: requests that waited are fetched now, or once a shrink has drained."""
        self._paused = False
        if not self._draining:
            await self._plane.resume()

    # ---- views ----

    def show(self) -> ExportState:
        """The export's state now."""
        limits, device = self._image.limits, self._device
        return ExportState(
            name=self.config.name,
            state=self._state(),
            image=self._image.path,
            image_locked=self._image.held,
            socket=self.config.socket,
            size=device.capacity * SECTOR_BYTES,
            read_only=device.read_only,
            cache=self.config.cache,
            logical_block_size=limits.logical_block_size,
            physical_block_size=limits.physical_block_size,
            queues=device.queues,
            queue_size=self.config.queue_size,
            serial=device.serial.rstrip(b"\0").decode(),
            engine=self._image.engine.name,
            engine_reason=self._image.engine.reason,
            workers=self._crew.workers,
            cpus=self._crew.cpus,
            poll_us=self._crew.poll_us,
            memory_registered=self._plane.memory_is_registered,
            discard=device.discard,
            features=device.features,
            in_flight=self._plane.in_flight,
            broken_rings=self._plane.broken_rings,
            front_end=self._connection.snapshot() if self._connection else None,
        )

    def _state(self) -> Literal["serving", "paused", "stopping"]:
        if self._ending.is_set():
            return "stopping"
        return "paused" if self._paused else "serving"

    def stats(self) -> ExportStats:
        """The counters now."""
        rings = [self._plane.counters(index) for index in range(self._device.queues)]
        total = {f.name: sum(ring.get(f.name, 0) for ring in rings) for f in fields(Counts)}
        return ExportStats(
            name=self.config.name,
            total=Counts(**total),
            rings=tuple(RingStats(ring=i, **counts) for i, counts in enumerate(rings)),
        )


def crew(config: ExportConfig) -> Crew:
    """The workers of an export.  Raises ConfigError where they may not run as configured."""
    allowed = os.sched_getaffinity(0)
    if missing := set(config.cpus) - allowed:
        raise ConfigError(
            f"CPU {min(missing)} cannot be used",
            hint=f"this process may run on {', '.join(map(str, sorted(allowed)))}",
        )
    # One CPU is left to the guest: workers that look on would keep its own CPUs from it.
    usable = len(set(config.cpus)) or max(1, len(allowed) - 1)
    workers = min(config.workers or usable, config.queues)
    return Crew(workers, config.cpus, config.poll_us, config.register_memory)


def parameters(config: ExportConfig, image: Image) -> BlkParameters:
    """The device that an image becomes under a configuration."""
    limits = image.limits
    return BlkParameters(
        capacity=limits.size // SECTOR_BYTES,
        logical_block_size=limits.logical_block_size,
        physical_block_size=limits.physical_block_size,
        optimal_io_size=limits.optimal_io_size,
        discard_granularity=limits.discard_granularity,
        read_only=config.read_only,
        write_back=config.cache != "writethrough",
        discard=config.discard,
        max_discard_segments=config.max_discard_segments,
        queues=config.queues,
        queue_size=config.queue_size,
        serial=config.serial if config.serial is not None else default_serial(image.path),
    )
