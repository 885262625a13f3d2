# SPDX-License-Identifier: Apache-2.0
"""The taker's side of an upgrade: what another process serves goes on in this one.

Nothing here is imported only when it is needed: by then the files may be another version's.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from blkd import __version__
from blkd.errors import AreaRefused, BlkdError, UpgradeError
from blkd.export.disk import Disk, adopt_image_of
from blkd.export.export import Export
from blkd.host import log as log_events
from blkd.host import unix_socket
from blkd.host.fds import close_foreign
from blkd.image.opener import Opener
from blkd.statistics.area import Area
from blkd.upgrade import exchange, messages
from blkd.upgrade.descriptors import IncomingFds
from blkd.upgrade.restore import require_rings, restore, shown
from blkd.upgrade.settings import settings_from_giver
from blkd.upgrade.transport import Transport

if TYPE_CHECKING:
    from blkd.image.base import Image

NANOSECONDS_OF_MS = 1_000_000

log = structlog.get_logger()


class ExportTaker:
    """Takes an export over; plays `exchange.Taker`."""

    def __init__(
        self,
        prepared: Callable[[Export], Awaitable[None]] | None = None,
        *,
        opener: Opener | None = None,
        removes_socket: bool = True,
        area: Area | None = None,
    ) -> None:
        """`prepared` is awaited before the giver comes to rest, when all is ready for its state.

        The image is opened once more, later, by `opener`, if it is given.  The file of the front
        ends' socket is removed in the end, unless it is somebody else's.  What is counted is added
        to what `area` has, which is taken; or else to what the giver has counted.
        """
        self._prepared = prepared
        self._opener = opener
        self._removes_socket = removes_socket
        self._area = area
        self.export: Export
        self.control: socket.socket
        """Where the control API is called; the caller's once the export is taken."""
        self._transport: Transport
        self._offered: exchange.Offered | None = None
        self._image: Image | None = None
        self._listener: socket.socket
        self._offer: messages.Offer
        self._began = 0
        self._undo = contextlib.ExitStack()

    async def ask(self, sock: socket.socket) -> None:
        """Ask the process at the other end of `sock` for what it serves, and open it.

        `take` may follow in another event loop.  Raises BlkdError: it serves on.
        """
        self._transport = Transport(sock)
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            undo.callback(self._transport.close)
            self._offered = await exchange.ask(self._transport, _hello())
            try:
                self._open(*self._offered)
            except BlkdError as error:
                await exchange.refuse(self._transport, error)
                raise
            undo.pop_all()

    async def take(self, sock: socket.socket) -> None:
        """Take over what the process at the other end of `sock` serves.

        It is ours when this returns, and `begin` is due at once.  Raises BlkdError, or is
        cancelled: nothing was touched, and the other process serves on.
        """
        if self._offered is None:
            await self.ask(sock)
        try:
            await exchange.take(self._transport, self, _hello(), self._offered)
            _forget_cancellation()
        except BaseException:
            self._undo.close()
            raise
        finally:
            self._transport.close()

    async def begin(self) -> None:
        """Serve what was taken, which ends the guest's pause; `Export.serve` follows."""
        await self.export.thaw()
        self.export.own_socket(removes=self._removes_socket)
        pause = (time.monotonic_ns() - self._began) / NANOSECONDS_OF_MS
        unix_socket.own(self.control)
        log.info(
            "taken over",
            export=self.export.config.name,
            pid=self._offer.pid,
            version=self._offer.version,
            pause_ms=round(pause, 3),
        )

    def _open(self, offer: messages.Offer, fds: IncomingFds) -> None:
        """Take what is served, for which no event loop is needed.  Raises BlkdError."""
        self._offer = offer
        _enter(offer.directory)
        config = settings_from_giver(offer)
        if offer.notify is not None:
            os.environ.setdefault("NOTIFY_SOCKET", offer.notify)
        self.control = unix_socket.adopt(fds.take(offer.control))
        if not unix_socket.is_listening(self.control):
            raise UpgradeError("the control API cannot be called on the socket that came")
        log_events.name_export(config.name)
        self._listener = unix_socket.adopt(fds.take(offer.listener))
        self._undo.callback(self._listener.close)
        if not unix_socket.is_listening(self._listener):
            raise UpgradeError("front ends cannot connect to the socket that came")
        self._area = _area_to_use(self._area, fds.take_any(offer.statistics), config.name)
        self._undo.callback(self._area.close)
        self._image = adopt_image_of(
            config,
            fds.take_any(offer.image),
            logical_block_size=offer.logical_block_size,
            is_locked=offer.image_locked,
            opener=self._opener,
        )
        self._undo.callback(self._image.close)
        self.export = Export(config)

    async def prepare(self, offer: messages.Offer, _fds: IncomingFds) -> None:
        """Do whatever else takes its time."""
        assert self._image is not None
        assert self._area is not None
        disk = Disk.adopt(self.export.config, self._image, self._area, shown(offer.device))
        self.export.adopt(disk, self._listener)
        self._undo.callback(self.export.close)
        require_rings(disk, offer.rings)
        await disk.plane.prepare(offer.rings)
        if self._prepared is not None:
            await self._prepared(self.export)

    async def restore(self, state: messages.State, fds: IncomingFds) -> None:
        """Get ready to serve, and touch nothing."""
        self._began = state.began
        await restore(self.export, state, fds)


def _hello() -> messages.Hello:
    """Who asks."""
    return messages.Hello(
        formats=(messages.FORMAT,),
        version=__version__,
        pid=os.getpid(),
        knows=(messages.DEVICE, messages.STATISTICS),
    )


def _area_to_use(ours: Area | None, fd: int | None, name: str) -> Area:
    """Where to count: what is ours, or the giver's, which is taken, or else a new one."""
    if ours is not None:
        if fd is not None:
            close_foreign([fd])
        return ours
    if fd is None:
        return Area.make()
    try:
        return Area(fd)
    except AreaRefused as error:
        log.warning("figures begin anew", export=name, reason=str(error))
        return Area.make()


def _forget_cancellation() -> None:
    """Have the running task go on as if nobody had cancelled it: that came too late."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _enter(directory: str) -> None:
    """Be where relative paths of the settings begin.  Raises UpgradeError."""
    try:
        os.chdir(directory)
    except (OSError, ValueError) as error:
        raise UpgradeError(f"its directory cannot be entered: {error}") from error
