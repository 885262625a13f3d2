# SPDX-License-Identifier: Apache-2.0
"""The taker's side of an upgrade: what another process serves goes on in this one.

Nothing here is imported only when it is needed: by then the files may be another version's.
"""

import asyncio
import contextlib
import os
import socket
import time

import structlog

from blkd import __version__
from blkd.errors import UpgradeError
from blkd.export.disk import Disk
from blkd.export.export import Export
from blkd.host import log as log_events
from blkd.host import unix_socket
from blkd.upgrade import exchange, messages
from blkd.upgrade.descriptors import IncomingFds
from blkd.upgrade.restore import require_rings, restore, shown
from blkd.upgrade.settings import settings_from_giver
from blkd.upgrade.transport import Transport

NANOSECONDS_OF_MS = 1_000_000

log = structlog.get_logger()


class ExportTaker:
    """Takes an export over; plays `exchange.Taker`."""

    def __init__(self) -> None:
        self.export: Export
        self.control: socket.socket
        """Where the control API is called; the caller's once the export is taken."""
        self._offer: messages.Offer
        self._began = 0
        self._undo = contextlib.ExitStack()

    async def take(self, sock: socket.socket) -> None:
        """Take over what the process at the other end of `sock` serves.

        It is ours when this returns, and `begin` is due at once.  Raises BlkdError, or is
        cancelled: nothing was touched, and the other process serves on.
        """
        hello = messages.Hello(
            formats=(messages.FORMAT,),
            version=__version__,
            pid=os.getpid(),
            knows=(messages.DEVICE,),
        )
        transport = Transport(sock)
        try:
            await exchange.take(transport, self, hello)
            _forget_cancellation()
        except BaseException:
            self._undo.close()
            raise
        finally:
            transport.close()

    async def begin(self) -> None:
        """Serve what was taken, which ends the guest's pause; `Export.serve` follows."""
        await self.export.thaw()
        self.export.own_socket()
        pause = (time.monotonic_ns() - self._began) / NANOSECONDS_OF_MS
        unix_socket.own(self.control)
        log.info(
            "taken over",
            export=self.export.config.name,
            pid=self._offer.pid,
            version=self._offer.version,
            pause_ms=round(pause, 3),
        )

    async def prepare(self, offer: messages.Offer, fds: IncomingFds) -> None:
        """Open what is served, and whatever else takes its time."""
        self._offer = offer
        _enter(offer.directory)
        config = settings_from_giver(offer)
        if offer.notify is not None:
            os.environ.setdefault("NOTIFY_SOCKET", offer.notify)
        self.control = unix_socket.adopt(fds.take(offer.control))
        if not unix_socket.is_listening(self.control):
            raise UpgradeError("the control API cannot be called on the socket that came")
        log_events.name_export(config.name)
        with contextlib.ExitStack() as undo:
            listener = unix_socket.adopt(fds.take(offer.listener))
            undo.callback(listener.close)
            if not unix_socket.is_listening(listener):
                raise UpgradeError("front ends cannot connect to the socket that came")
            disk = Disk.adopt(
                config,
                fds.take_any(offer.image),
                logical_block_size=offer.logical_block_size,
                is_locked=offer.image_locked,
                shown=shown(offer.device),
            )
            undo.pop_all()
        self.export = Export(config)
        self.export.adopt(disk, listener)
        self._undo.callback(self.export.close)
        require_rings(disk, offer.rings)
        await disk.plane.prepare(offer.rings)

    async def restore(self, state: messages.State, fds: IncomingFds) -> None:
        """Get ready to serve, and touch nothing."""
        self._began = state.began
        await restore(self.export, state, fds)


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
