# SPDX-License-Identifier: Apache-2.0
"""The front ends that connect to an export's socket: served one at a time."""

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from blkd.errors import BlkdError, FreezeFailed, SocketError
from blkd.export.views import Announced
from blkd.host import unix_socket
from blkd.host.fds import close_connection, close_foreign
from blkd.vhost_user.connection import Connection, ConnectionSnapshot
from blkd.vhost_user.data_path import DataPath
from blkd.vhost_user.gate import Gate
from blkd.vhost_user.vring_setup import VringSetup
from blkd.virtio.device import Device

ACCEPT_PERIOD: Final = 0.5  # seconds until accepting is tried again after it failed
ANNOUNCE_LIMIT: Final = 5.0  # seconds that a front end has to fetch a new configuration

log = structlog.get_logger()


class FrontEnds:
    """The listener, which is borrowed, and the connection that comes from it."""

    def __init__(
        self, name: str, listening: socket.socket, device: Device, data_path: DataPath
    ) -> None:
        self._name = name
        self._listener = listening
        self._device = device
        self._data_path = data_path
        self.connection: Connection | None = None
        """The present one."""
        self.on_connection: Callable[[bool], None] = lambda _connected: None
        """Called when one has come, and when it has left."""
        self._socket: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._gate = Gate()
        self._frozen: Connection | None = None

    async def serve(self) -> None:
        """Serve whoever connects, one at a time; a second one is turned away.

        A listener that is connected instead is served until it closes.
        """
        async with asyncio.TaskGroup() as tasks:
            if not unix_socket.is_listening(self._listener):
                self.connect(self._listener)
            if self.connection is not None:  # this one, or one that was taken over
                self._serving = tasks.create_task(self._serve_one(self.connection))
            while unix_socket.is_listening(self._listener):
                async with self._gate.message(self._listener):
                    await self._accept(tasks)

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return  # somebody else has taken it
        except OSError as error:
            # One that came and went, or no descriptor left: the present disk goes on.
            log.warning("no front end accepted", reason=error.strerror)
            await asyncio.sleep(ACCEPT_PERIOD)
            return
        if self._serving and not self._serving.done():
            if not self._has_left():
                log.warning("second front end refused", export=self._name)
                close_connection(sock)
                return
            await asyncio.wait([self._serving])
        log.info("front end connected", export=self._name)
        self._serving = tasks.create_task(self._serve_one(self.connect(sock)))

    def connect(self, sock: socket.socket) -> Connection:
        """A connection on `sock`, taken; it is served by `serve`."""
        self._socket = sock
        self.connection = Connection(sock, self._device, self._data_path)
        self.on_connection(True)
        return self.connection

    def restore(self, snapshot: ConnectionSnapshot) -> Mapping[int, VringSetup]:
        """Go on with the connection of another process; takes its descriptors.

        For the rest see `Connection.restore`.  Raises also SocketError where it is no connection.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, snapshot.other_fds)
            sock = unix_socket.adopt(snapshot.fd)
            if unix_socket.is_listening(sock):
                sock.close()
                raise SocketError("the front end's socket that came listens")
            undo.pop_all()
        return self.connect(sock).restore(snapshot)

    async def _serve_one(self, connection: Connection) -> None:
        """Serve one front end until it leaves; what it does wrong ends with it."""
        try:
            await connection.serve()
            log.info("front end left", export=self._name)
        except (BlkdError, OSError) as error:  # the latter of its own descriptors, say
            log.warning("front end dropped", export=self._name, reason=str(error))
        except Exception:  # an error of ours that it met: the next one is served
            log.exception("front end dropped", export=self._name)
        finally:
            self.connection = self._socket = None
            self.on_connection(False)
            self._device.reset()

    def drop(self) -> None:
        """End the connection of a front end that took memory away which it had shared."""
        log.error("front end's memory shrank under its rings", export=self._name)
        if self.connection is not None:
            self.connection.close()

    async def end(self) -> None:
        """Close the present connection; returns when it is no longer served."""
        if self.connection is not None:
            self.connection.close()
        if self._serving is not None:
            await asyncio.wait([self._serving])

    def _has_left(self) -> bool:
        """Whether the present front end has closed its side, served to the end or not."""
        if self._socket is None or self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def announce_config(self) -> Announced:
        """Announce to the front end that the device's configuration changed: what came of it.

        `pending` where it has not fetched it in time, or cannot be reached now: it is announced
        again when the next vring is served.
        """
        if self.connection is None:
            return "not-connected"
        fetched = await self.connection.announce_config(ANNOUNCE_LIMIT)
        return "fetched" if fetched else "pending"

    # ---- at rest ----

    async def freeze(self, limit: float) -> None:
        """Accept nobody and read nothing more, until `thaw`.

        Raises FreezeFailed where what is under way does not end within `limit` seconds; `thaw`
        is due then too.
        """
        try:
            async with asyncio.timeout(limit):
                await self._gate.shut()
        except TimeoutError:
            raise FreezeFailed("a front end is being accepted") from None
        self._frozen = self.connection
        if self.connection is not None:
            await self.connection.freeze(limit)

    def require_frozen(self) -> None:
        """Raise FreezeFailed unless all is as `freeze` has left it."""
        still = self._frozen is None or self._frozen.is_frozen
        if not (self._gate.is_shut and self.connection is self._frozen and still):
            raise FreezeFailed("the front end has left meanwhile", hint="try again")

    def thaw(self) -> None:
        """Accept and read again."""
        self._frozen = None
        self._gate.open()
        if self.connection is not None:
            self.connection.thaw()
