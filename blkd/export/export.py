# SPDX-License-Identifier: Apache-2.0
"""One export: a listener, a device, an image and the rings between them."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Final, Literal, cast

import msgspec
import structlog

from blkd import __version__
from blkd.dataplane import DataPlane, ServedDisk, probe_io_uring
from blkd.errors import (
    ConfigError,
    DrainTimeout,
    HandoverError,
    ImageError,
    RequestRefused,
    SyncFailed,
)
from blkd.export.config import ExportConfig, for_successor
from blkd.export.frontends import FrontEnds
from blkd.export.settings import parameters, worker_plan
from blkd.export.views import (
    Announced,
    Counts,
    ExportState,
    ExportStats,
    PauseResult,
    ResizeResult,
    RingStats,
)
from blkd.host import unix_socket
from blkd.image.base import Opening
from blkd.image.kinds import adopt_image, open_image
from blkd.image.raw import default_serial
from blkd.image.watch import looks
from blkd.upgrade import messages
from blkd.upgrade.descriptors import Incoming, Outgoing
from blkd.upgrade.session_state import given_rings, written_rings
from blkd.virtio.blk import OLDEST_SET, SECTOR_BYTES, BlkDevice, Shown

if TYPE_CHECKING:
    from blkd.image.base import Image

ANNOUNCE_LIMIT: Final = 5.0  # seconds that a front end has to fetch a new size
SIZE_PERIOD: Final = 1.0  # seconds between two looks at an image that grows by other means
REST_LIMIT: Final = 1.0  # seconds to come to rest before another process takes over
DRAIN_LIMIT: Final = 30.0  # seconds to drain before an image shrinks or the export ends

log = structlog.get_logger()


class Export:
    """Serves one image to one front end at a time, for as long as it is told to."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config
        self._image: Image
        self._device: BlkDevice
        self._disk: ServedDisk
        self._plane: DataPlane
        self._listener: socket.socket
        self._front_ends: FrontEnds
        self._ending = asyncio.Event()
        self._killed = False
        self._paused = False  # on somebody's order
        self._draining = False  # on our own, for a moment
        self._rest = contextlib.AsyncExitStack()  # ends the rest before a handover
        self._handing = False  # nothing may change: another process is being told
        self.on_lock_change: Callable[[], None] = lambda: None
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
            self._plan = worker_plan(config)
            self._image = await open_image(
                config.image,
                Opening(
                    read_only=config.read_only,
                    direct=config.cache == "none",
                    logical_block_size=config.logical_block_size,
                    engine=config.engine,
                    incoming=config.incoming,
                    workers=self._plan.workers,
                    image_format=config.image_format,
                ),
            )
            self._make_disk(undo)
            self._admit_from(inherited or await self._listen(undo))
            self._resources = undo.pop_all()

    def _make_disk(self, undo: contextlib.ExitStack, shown: Shown | None = None) -> None:
        """Make the image a device with a data path, one that goes on showing what it showed."""
        undo.callback(self._close_image)
        self._device = BlkDevice(parameters(self.config, self._image), shown)
        self._disk = ServedDisk(self._image, self._device, self.config.queue_size)
        self._plane = DataPlane(self._disk, self._plan)
        undo.callback(self._plane.close)

    def _close_image(self) -> None:
        if not self._plane.has_abandoned:  # else somebody is still at it: the process ends
            self._image.close()

    def _admit_from(self, sock: socket.socket) -> None:
        self._listener = sock
        self._front_ends = FrontEnds(self.config.name, sock, self._device, self._plane)
        self._plane.on_fault = self._front_ends.drop
        self._plane.before_first = self._claim_image
        self._plane.after_migration = self._hand_image_over

    async def _listen(self, undo: contextlib.ExitStack) -> socket.socket:
        config = self.config
        path = config.socket
        assert path is not None
        group = unix_socket.group_number(config.socket_group)
        sock = await unix_socket.listen_soon(path, config.socket_mode, group)
        undo.callback(sock.close)
        undo.callback(unix_socket.unlink_if_ours, path)
        return sock

    async def serve(self) -> None:
        """Serve front ends, one after the other, until `stop` or `kill`.

        A socket that was handed over connected is served until it closes.  Everything is
        closed when this returns.  Raises DataPlaneError if a worker failed.
        """
        with self._resources:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch_size())
                accepting = tasks.create_task(self._front_ends.serve())
                accepting.add_done_callback(lambda _: self._ending.set())
                self._plane.failed.add_done_callback(lambda _: self._ending.set())
                await self._ending.wait()
                watching.cancel()
                if self._killed:
                    self._plane.leave()
                try:
                    # First of all: a front end that sees the connection close resumes from
                    # the used index of that moment, which must not move any more.
                    await self._plane.pause(DRAIN_LIMIT)
                except DrainTimeout:
                    self._plane.abandon()
                await self._front_ends.end()
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

    # ---- live migration ----

    async def _claim_image(self) -> None:
        """Have the image locked before a ring starts, and the disk as large as it is then."""
        if self._image.is_locked:
            return
        try:
            await self._image.take_lock()
        except ImageError as error:
            log.error("image not locked", export=self.config.name, reason=str(error))  # noqa: TRY400
            raise RequestRefused(str(error), hint=error.hint) from error
        finally:
            self.on_lock_change()
        await self._take_size()

    async def _hand_image_over(self) -> None:
        """Give the image's lock up: the guest goes on elsewhere, or comes back to claim it."""
        try:
            with self._sync_failures_noted():
                await self._image.release_lock()
        except ImageError as error:
            log.error("image not handed over", export=self.config.name, reason=str(error))  # noqa: TRY400
        finally:
            self.on_lock_change()

    @contextlib.contextmanager
    def _sync_failures_noted(self) -> Iterator[None]:
        """Do within what syncs the image: not after a sync of it has failed.

        Raises SyncFailed.
        """
        if error := self._disk.sync_error:
            raise SyncFailed(
                f"{self._image.path}: a sync of it has failed before: {os.strerror(error)}",
                error,
                hint="acknowledged writes are lost; end blkd, and start it anew",
            )
        try:
            yield
        except SyncFailed as failure:
            self._disk.fail_sync(failure.error)
            raise

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
        self._refuse_while_handing()
        async with self._resizing:
            if size < (present := self._device.capacity * SECTOR_BYTES):
                if not force:
                    raise ConfigError(
                        f"{self._image.path}: {size} bytes is less than the present {present}",
                        hint="shrinking loses what is beyond: --force does it all the same",
                    )
                async with self._drained():
                    await self._resize_image(size)
            else:
                await self._resize_image(size)
            return ResizeResult(size, present, await self._announce())

    async def _resize_image(self, size: int) -> None:
        with self._sync_failures_noted():
            await self._image.resize(size)
        await self._take_size()

    async def refresh_size(self) -> ResizeResult:
        """Notice that the image grew by other means, and tell the front end.

        One that shrank is an accident until `resize` says otherwise: the disk keeps its size,
        and what the guest reads beyond the image's end fails.
        """
        async with self._resizing:
            present = self._device.capacity * SECTOR_BYTES
            await self._image.refresh()
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
        if self._front_ends.connection is None:
            return "not-connected"
        told = await self._front_ends.connection.announce_config(ANNOUNCE_LIMIT)
        return "fetched" if told else "pending"

    async def _watch_size(self) -> None:
        """Look at the image's size each time that it may be another than the disk's."""
        async with contextlib.aclosing(looks(self._image, SIZE_PERIOD)) as occasions:
            async for _ in occasions:
                await self._look_at_size()

    async def _look_at_size(self) -> None:
        try:
            size = await self._image.measure()  # before all else waits for it
            async with self._resizing:  # one under way takes the size that it makes
                known = self._image.limits.size
                changed = size != known or known > self._device.capacity * SECTOR_BYTES
            if changed:
                await self.refresh_size()
        except (OSError, ImageError) as error:
            log.warning("image cannot be measured", image=self._image.path, reason=str(error))

    # ---- pause and resume ----

    async def pause(self, deadline: float) -> PauseResult:
        """Fetch nothing more; wait up to `deadline` seconds for what is in flight."""
        self._refuse_while_handing()
        self._paused, drained = True, True
        try:
            await self._plane.pause(deadline)
        except DrainTimeout as error:
            drained = False
            log.warning("pause incomplete", export=self.config.name, reason=str(error))
        else:
            log.info("paused", export=self.config.name)
        return PauseResult(self._paused, drained, self._plane.in_flight)

    async def resume(self) -> None:
        """Serve on: requests that waited are fetched now, or once a shrink has drained."""
        self._refuse_while_handing()
        if self._paused:
            log.info("resumed", export=self.config.name)
        self._paused = False
        if not self._draining:
            await self._plane.resume()

    # ---- handed to another process ----

    def offer(self, hello: messages.Hello, control: int, out: Outgoing) -> messages.Offer:
        """Describe what is served to `hello`, who may take it over; `control` listens for the API.

        Raises HandoverError where it cannot be given away.
        """
        self.require_rest()
        if not unix_socket.is_listening(self._listener):
            raise HandoverError("it serves a front end that was handed over connected")
        return messages.Offer(
            version=__version__,
            pid=os.getpid(),
            directory=_directory(),
            config=msgspec.Raw(for_successor(self.config, self._serial)),
            logical_block_size=cast("messages.BlockSize", self._image.limits.logical_block_size),
            device=self._shown if messages.DEVICE in hello.knows else None,
            image=out.add_any(self._image.lent()),
            image_locked=self._image.is_locked,
            listener=out.add(self._listener.fileno()),
            control=out.add(control),
            rings=tuple(held.index for held in self._plane.held_rings()),
            notify=os.environ.get("NOTIFY_SOCKET"),
        )

    async def hold(self, out: Outgoing) -> messages.State:
        """Come to rest and write down all that another process must know to go on.

        Until `release` nothing is accepted, read, fetched or changed.  Raises BlkdError where
        the rest does not come soon: `release` is due then too.
        """
        try:
            async with asyncio.timeout(REST_LIMIT):
                await self._rest.enter_async_context(self._resizing)
        except TimeoutError:
            raise HandoverError("the disk's size is being changed") from None
        self._rest.push_async_callback(self._go_on)
        self._handing = True
        await self._front_ends.hold(REST_LIMIT)
        began = time.monotonic_ns()
        await self._plane.pause(REST_LIMIT)
        self.require_rest()
        self._look_for_write_errors()
        return self._written(began, out)

    def _look_for_write_errors(self) -> None:
        """Take note of what could not be written back: the taker's own syncs may not be told."""
        if not self._image.direct and (error := self._image.write_error()):
            self._disk.fail_sync(error)

    def _written(self, began: int, out: Outgoing) -> messages.State:
        connection = self._front_ends.connection
        if connection is None:
            front_end, rings = None, written_rings(None, self._plane, out)
        else:
            front_end, rings = connection.written(out)
        return messages.State(
            began=began,
            paused=self._paused,
            capacity=self._device.capacity,
            generation=self._device.generation,
            write_back=self._device.writeback_field,
            sync_error=self._disk.sync_error,
            rings=rings,
            front_end=front_end,
        )

    def require_rest(self) -> None:
        """Raise HandoverError if the disk is about to end, or does not rest after `hold`."""
        if self._ending.is_set():
            raise HandoverError(f"{self.config.name} is about to end")
        if self._handing:
            self._front_ends.require_rest()

    async def release(self) -> None:
        """Go on as if `hold` had never been called."""
        await self._rest.aclose()

    async def _go_on(self) -> None:
        self._handing = False
        self._front_ends.release()
        if not (self._paused or self._ending.is_set()):
            await self._plane.resume()

    def _refuse_while_handing(self) -> None:
        if self._handing:
            raise RequestRefused(
                f"{self.config.name} is being handed to another process", hint="try again"
            )

    # ---- taken from another process ----

    async def adopt(self, offer: messages.Offer, fds: Incoming) -> None:
        """Open what another process serves; `restore` follows.  Raises BlkdError."""
        if offer.device is None:
            self.config = _as_0_1(self.config)
        config = self.config
        probe_io_uring()
        with contextlib.ExitStack() as undo:
            listening = unix_socket.adopt(fds.take(offer.listener))
            undo.callback(listening.close)
            if not unix_socket.is_listening(listening):
                raise HandoverError("front ends cannot connect to the socket that came")
            self._plan = worker_plan(config)
            self._image = adopt_image(
                config.image,
                fds.take_any(offer.image),
                Opening(
                    read_only=config.read_only,
                    direct=config.cache == "none",
                    logical_block_size=offer.logical_block_size,
                    engine=config.engine,
                    workers=self._plan.workers,
                ),
                is_locked=offer.image_locked,
            )
            self._make_disk(undo, _shown(offer.device))
            self._admit_from(listening)
            self._require_rings(offer.rings)
            await self._plane.prepare(offer.rings)
            self._resources = undo.pop_all()

    async def restore(self, state: messages.State, fds: Incoming) -> None:
        """Be as the other process has left the disk, and touch nothing.  Raises BlkdError."""
        block = self._image.limits.logical_block_size
        size = state.capacity * SECTOR_BYTES
        if size % block:
            raise HandoverError(f"a disk of {size} bytes, not whole blocks of {block}")
        await self._image.set_size(size)
        self._paused = state.paused
        self._device.restore(
            capacity=state.capacity, generation=state.generation, write_back=state.write_back
        )
        if state.sync_error:
            self._disk.fail_sync(state.sync_error)
        self._require_rings(ring.index for ring in state.rings)
        if state.front_end is None:
            await self._plane.adopt_rings(given_rings(None, state.rings, fds))
        else:
            sock = unix_socket.adopt(fds.take(state.front_end.socket))
            if unix_socket.is_listening(sock):
                raise HandoverError("the front end's socket that came listens")
            await self._front_ends.connect(sock).restore(state.front_end, state.rings, fds)
        await self._plane.refresh()

    def _require_rings(self, indices: Iterable[int]) -> None:
        seen = list(indices)
        if len(set(seen)) < len(seen) or max(seen, default=0) >= self._device.queues:
            raise HandoverError(f"rings {seen} of {self._device.queues}")

    async def begin(self) -> None:
        """Serve what was restored: it is this process's now.  `serve` follows."""
        if not self._paused:
            await self._plane.resume()
        unix_socket.own(self._listener)
        if self.config.socket is not None:
            self._resources.callback(unix_socket.unlink_if_ours, self.config.socket)

    # ---- views ----

    def show(self) -> ExportState:
        """The export's state now."""
        limits, device, broken = self._image.limits, self._device, self._plane.broken_rings
        connection = self._front_ends.connection
        return ExportState(
            name=self.config.name,
            state=self._state(),
            image=self._image.path,
            image_locked=self._image.is_locked,
            socket=self.config.socket,
            size=device.capacity * SECTOR_BYTES,
            read_only=device.read_only,
            cache=self.config.cache,
            logical_block_size=limits.logical_block_size,
            physical_block_size=device.shown.physical_block_size,
            queues=device.queues,
            queue_size=self.config.queue_size,
            serial=self._serial,
            engine=self._image.engine.name,
            engine_reason=self._image.engine.reason,
            workers=self._plan.workers,
            cpus=self._plan.cpus,
            poll_us=self._plan.poll_us,
            memory_registered=self._plane.memory_is_registered,
            discard=device.discard,
            sync_error=os.strerror(error) if (error := self._disk.sync_error) else None,
            features=device.features,
            in_flight=self._plane.in_flight,
            broken_rings=tuple(broken),
            broken_reasons=tuple(broken.values()),
            front_end=connection.snapshot() if connection else None,
        )

    @property
    def _serial(self) -> str:
        return self._device.serial.rstrip(b"\0").decode()

    @property
    def _shown(self) -> messages.Device:
        return messages.Device(**asdict(self._device.shown))

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


def _shown(device: messages.Device | None) -> Shown | None:
    return None if device is None else Shown(**msgspec.structs.asdict(device))


def _as_0_1(config: ExportConfig) -> ExportConfig:
    """The settings with what version 0.1 made of them, which tells nobody what it has shown."""
    serial = config.serial
    if serial is None:
        serial = default_serial(os.path.realpath(config.image))  # also of a block device
    return msgspec.structs.replace(config, serial=serial, features_as=OLDEST_SET)


def _directory() -> str:
    """Where relative paths begin.  Raises HandoverError if nobody could go there any more."""
    try:
        directory = os.getcwd()  # noqa: PTH109 - as text
        directory.encode()
        return directory  # noqa: TRY300
    except UnicodeEncodeError as error:
        raise HandoverError(
            "the name of its working directory is no UTF-8",
            hint="stop the old process and start the new one instead",
        ) from error
    except OSError as error:
        raise HandoverError(
            f"its working directory is gone: {error.strerror}",
            hint="stop the old process and start the new one instead",
        ) from error
