# SPDX-License-Identifier: Apache-2.0
"""A live upgrade: this process's export given to another, or another's taken over.

Nothing here is imported only when it is needed: by then the files may be another version's.
"""

import asyncio
import contextlib
import functools
import os
import socket
import time

import msgspec
import structlog

from blkd import __version__
from blkd.errors import BlkdError, HandoverError
from blkd.export.config import ExportConfig
from blkd.export.export import Export
from blkd.host import log as log_events
from blkd.host import systemd, unix_socket
from blkd.upgrade import exchange, messages
from blkd.upgrade.descriptors import Incoming, Outgoing
from blkd.upgrade.transport import HandoverChannel

NANOSECONDS_OF_MS = 1_000_000

log = structlog.get_logger()


class Gift:
    """An export that may be given away, with the socket of its API; plays `exchange.Giver`."""

    def __init__(self, export: Export, control: socket.socket) -> None:
        self._export = export
        self._control = control
        self._giving = asyncio.Lock()
        self._withdrawal: HandoverError | None = None

    async def give(self, sock: socket.socket) -> messages.Hello | None:
        """Hand the export over by the conversation on `sock`: who has it now.

        None if that failed, which the log tells: it is served on.  Else nothing of it may be
        touched any more, and the caller ends the process without waiting for anything.
        """
        busy = "another process is taking it over already" if self._giving.locked() else None
        turn = contextlib.nullcontext() if busy else self._giving
        channel = HandoverChannel(sock)
        name = self._export.config.name
        try:
            async with turn:
                if busy is None:
                    self._export.on_lock_change = functools.partial(self._withdraw, channel)
                taker = await exchange.give(channel, self, busy)
        except BlkdError as error:
            log.warning("not handed over", export=name, reason=str(error))
            return None
        finally:
            channel.close()
        # Whose process asked, as the kernel knows it: what it says of itself is not relied on.
        pid = unix_socket.peer(sock) or None
        log.info("handed over", export=name, pid=pid, version=taker.version)
        if pid is not None:
            systemd.main_pid(pid)
        return taker

    def offer(self, hello: messages.Hello, out: Outgoing) -> messages.Offer:
        """Describe what is served, as far as the taker understands."""
        self._withdrawal = None
        return self._export.offer(hello, self._control.fileno(), out)

    def _withdraw(self, channel: HandoverChannel) -> None:
        """Break off: the image was opened anew, and what was offered is the open file before."""
        self._withdrawal = HandoverError(
            "its image was locked or handed over meanwhile", hint="try again"
        )
        channel.interrupt(self._withdrawal)

    async def hold(self, out: Outgoing) -> messages.State:
        """Come to rest and write all down."""
        state = await self._export.hold(out)
        if self._withdrawal is not None:
            raise self._withdrawal
        return state

    def require_rest(self) -> None:
        """Raise HandoverError if the export's rest has been disturbed."""
        self._export.require_rest()

    async def release(self) -> None:
        """Serve on."""
        await self._export.release()


class Inheritance:
    """An export that is taken over; plays `exchange.Taker`."""

    def __init__(self) -> None:
        self.export: Export
        self.control: socket.socket
        self._offer: messages.Offer
        self._began = 0
        self._undo = contextlib.ExitStack()

    async def take_over(self, sock: socket.socket) -> None:
        """Take over what the process at the other end of `sock` serves.

        It is ours when this returns, and `begin` is due at once.  Raises BlkdError: nothing was
        touched, and the other process serves on.
        """
        hello = messages.Hello(
            formats=(messages.FORMAT,),
            version=__version__,
            pid=os.getpid(),
            knows=(messages.DEVICE,),
        )
        channel = HandoverChannel(sock)
        try:
            await exchange.take(channel, self, hello)
        except BaseException:
            self._undo.close()
            raise
        finally:
            channel.close()

    async def begin(self) -> None:
        """Serve what was taken over; `Export.serve` follows."""
        await self.export.begin()
        pause = (time.monotonic_ns() - self._began) / NANOSECONDS_OF_MS
        unix_socket.own(self.control)
        log.info(
            "taken over",
            export=self.export.config.name,
            pid=self._offer.pid,
            version=self._offer.version,
            pause_ms=round(pause, 3),
        )

    async def prepare(self, offer: messages.Offer, fds: Incoming) -> None:
        """Open what is served, and whatever else takes its time."""
        self._offer = offer
        try:
            config = msgspec.json.decode(offer.config, type=ExportConfig)
            os.chdir(offer.directory)
        except msgspec.DecodeError as error:
            raise HandoverError(f"its settings are of another version: {error}") from error
        except (OSError, ValueError) as error:
            raise HandoverError(f"its directory cannot be entered: {error}") from error
        if offer.notify is not None:
            os.environ.setdefault("NOTIFY_SOCKET", offer.notify)
        self.control = unix_socket.adopt(fds.take(offer.control))
        if not unix_socket.is_listening(self.control):
            raise HandoverError("the control API cannot be called on the socket that came")
        log_events.name_export(config.name)
        self.export = Export(config)
        self._undo.callback(self.export.close)
        await self.export.adopt(offer, fds)

    async def take(self, state: messages.State, fds: Incoming) -> None:
        """Get ready to serve, and touch nothing."""
        self._began = state.began
        await self.export.restore(state, fds)
