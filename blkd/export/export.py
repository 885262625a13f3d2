# SPDX-License-Identifier: Apache-2.0
"""One export: a disk that is served to one front end at a time, from its start to its end."""

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from blkd.errors import ConfigError, FreezeFailed, RequestRefused
from blkd.export.config import ExportConfig
from blkd.export.disk import Disk
from blkd.export.endpoint import Endpoint, listen
from blkd.export.holding import RetryResult
from blkd.export.limits import parse, write
from blkd.export.parameters import worker_plan
from blkd.export.pauses import Pause
from blkd.export.size import DiskSize
from blkd.export.views import (
    ExportState,
    ExportStats,
    InFlight,
    LimitsView,
    PauseResult,
    ResizeResult,
    export_state,
    export_stats,
    limits_view,
)
from blkd.host import unix_socket
from blkd.image.base import Image
from blkd.statistics.area import Area
from blkd.statistics.figures import Figures

if TYPE_CHECKING:
    from blkd.host.sandbox_policy import Confinement

FREEZE_LIMIT: Final = 1.0  # seconds that each part of an export has to come to rest


class Export:
    """Serves one disk to one front end at a time, until `stop` or `kill`.

    `open` or `adopt` makes it ready and `serve` serves; all other methods are for the time
    between.
    """

    def __init__(self, config: ExportConfig) -> None:
        self.config = config
        self.disk: Disk
        self.endpoint: Endpoint
        self.confinement: Confinement | None = None
        """What is in force of the sandbox that this process is in."""
        self._size: DiskSize
        self._frozen = False
        self._thawing = contextlib.AsyncExitStack()  # what `thaw` undoes
        self._resources = contextlib.ExitStack()

    async def open(self, inherited: socket.socket | None = None) -> None:
        """Open, lock and measure the image, and listen: front ends may connect afterwards.

        Args:
            inherited: A listening or connected socket to use, taken; None listens at the
                path that the configuration names.

        Raises:
            BlkdError: It cannot be served as configured; nothing stays open.
        """
        with contextlib.ExitStack() as undo:
            if inherited is not None:
                undo.callback(inherited.close)
            elif self.config.socket is None:
                raise ConfigError("no socket to serve on")
            disk = await Disk.open(self.config)
            undo.callback(disk.close)
            self._assemble(disk, inherited or await self._listen(undo))
            self._resources = undo.pop_all()

    def use(self, image: Image, listener: socket.socket, area: Area | None = None) -> None:
        """Serve an image that is open already, at a socket whose file is somebody else's.

        All are taken; what is counted is added to what `area` has, of a process that has ended.
        Raises BlkdError: nothing stays open.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            if area is not None:
                area.note_start()
            disk = Disk(self.config, worker_plan(self.config), image, area)
            undo.callback(disk.close)
            self._assemble(disk, listener)
            self._resources = undo.pop_all()

    async def start_workers(self) -> None:
        """Start all threads that serve requests now, and not when a front end needs them."""
        await self.disk.plane.start_workers()

    @property
    def is_restricted(self) -> bool:
        """Whether the io_urings of these threads do only what they were made for."""
        return self.disk.plane.is_restricted

    def adopt(self, disk: Disk, listener: socket.socket) -> None:
        """Go on with a disk and a listener of another process, which are taken.

        It is frozen: what that process knew of front end and rings is to be restored, and
        serving begins with `thaw` and `own_socket`.
        """
        self._resources.callback(listener.close)
        self._resources.callback(disk.close)
        self._assemble(disk, listener)
        self._frozen = True
        self._thawing.push_async_callback(disk.pauses.end, Pause.FROZEN)

    @property
    def listeners(self) -> tuple[socket.socket, ...]:
        """Where front ends connect; borrowed."""
        return (self.endpoint.listener,)

    @property
    def statistics(self) -> Sequence[int]:
        """The statistics area and, if it has one, its eventfd; borrowed."""
        area = self.disk.area
        return (area.fd,) if area.wake is None else (area.fd, area.wake)

    def own_socket(self, *, removes: bool = True) -> None:
        """Be the process that listens, as front ends see it, and perhaps remove the file."""
        unix_socket.own(self.endpoint.listener)
        if removes and self.config.socket is not None:
            self._resources.callback(unix_socket.unlink_if_ours, self.config.socket)

    async def _listen(self, undo: contextlib.ExitStack) -> socket.socket:
        assert self.config.socket is not None
        return await listen(self.config.socket, self.config, undo)

    def _assemble(self, disk: Disk, listener: socket.socket) -> None:
        """Put the parts together."""
        self.disk = disk
        self.endpoint = Endpoint(self.config.name, listener, disk.device, disk.plane, disk.pauses)
        self.endpoint.front_ends.on_connection = disk.area.note_front_end
        self._size = DiskSize(disk, self.endpoint.front_ends.announce_config)

    async def serve(self) -> None:
        """Serve front ends until `stop` or `kill`, as `Endpoint.serve` does; then close all."""
        with self._resources:
            await self.endpoint.serve(self._size.watch, self.disk.holding.watch)

    def close(self) -> None:
        """Release everything, unless `serve` has done so: for one that is never served."""
        self._resources.close()

    def stop(self) -> None:
        """Complete what is in flight, close the connection and have `serve` return."""
        self.endpoint.stop()

    def kill(self) -> None:
        """Abandon what is in flight and have `serve` return at once."""
        self.endpoint.kill()

    # ---- calls ----

    async def resize(self, size: int, *, force: bool = False) -> ResizeResult:
        """Make the disk `size` bytes long and announce it: for the rest see `DiskSize.resize`."""
        self._refuse_while_frozen()
        return await self._size.resize(size, force=force)

    async def refresh(self) -> None:
        """Take the size that the image got by other means: for the rest see `DiskSize.refresh`."""
        await self._size.refresh()

    async def pause(self, deadline: float) -> PauseResult:
        """Fetch nothing more; wait up to `deadline` seconds for what is in flight."""
        self._refuse_while_frozen()
        return await self.endpoint.pause(deadline)

    async def resume(self) -> None:
        """Fetch again: requests that waited are served, or will be once a shrink has drained."""
        self._refuse_while_frozen()
        await self.endpoint.resume()

    def limits(self) -> LimitsView:
        """The limits that the disk keeps."""
        return limits_view(self.disk.limits)

    async def limit(self, text: str) -> LimitsView:
        """Keep the limits of this text, and no others, from now on.  Raises ConfigError."""
        self._refuse_while_frozen()
        limits = parse(text)
        self.config = msgspec.structs.replace(self.config, limit=write(limits))
        await self.disk.limit(limits)
        return self.limits()

    async def retry(self) -> RetryResult:
        """Begin all held requests again, now: how many there were, and are after a moment."""
        self._refuse_while_frozen()
        return await self.disk.holding.retry()

    def show(self) -> ExportState:
        """The export's state now."""
        connection = self.endpoint.front_ends.connection
        front_end = connection.show() if connection else None
        stage = self.endpoint.stage
        return export_state(self.config, self.disk, front_end, stage, self.confinement)

    def stats(self) -> ExportStats:
        """The counters now."""
        return export_stats(self.config.name, self.disk.plane, self.disk.device.queues)

    def in_flight(self) -> InFlight:
        """The requests in flight now."""
        return InFlight(self.config.name, tuple(self.disk.requests_in_flight))

    def figures(self) -> Figures:
        """What was counted and measured, by all processes that have served it."""
        return self.disk.area.figures()

    # ---- at rest ----

    async def freeze(self) -> int:
        """Come to rest: nothing is accepted, read, fetched or changed, until `thaw`.

        Returns when fetching ended, in nanoseconds of CLOCK_MONOTONIC.  Raises FreezeFailed or
        DrainTimeout where it does not come to rest soon; `thaw` is due then too.
        """
        try:
            await self._thawing.enter_async_context(self._size.unchanging(FREEZE_LIMIT))
        except TimeoutError:
            raise FreezeFailed("the disk's size is being changed") from None
        self._thawing.push_async_callback(self.disk.pauses.end, Pause.FROZEN)
        self._thawing.callback(self.endpoint.front_ends.thaw)
        self._frozen = True
        await self.endpoint.front_ends.freeze(FREEZE_LIMIT)
        began = time.monotonic_ns()
        await self.disk.pauses.begin(Pause.FROZEN, FREEZE_LIMIT)
        self.require_undisturbed()
        return began

    def require_undisturbed(self) -> None:
        """Raise FreezeFailed if the export is about to end, or does not rest after `freeze`."""
        if self.endpoint.is_ending:
            raise FreezeFailed(f"{self.config.name} is about to end")
        if self._frozen:
            self.endpoint.front_ends.require_frozen()

    async def thaw(self) -> None:
        """Go on after `freeze`, or begin after `adopt`."""
        self._frozen = False
        await self._thawing.aclose()

    def _refuse_while_frozen(self) -> None:
        if self._frozen:
            raise RequestRefused(
                f"{self.config.name} is being handed to another process", hint="try again"
            )
