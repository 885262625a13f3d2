# SPDX-License-Identifier: Apache-2.0
"""One front end, served: its messages are read, carried out one by one, and answered."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from blkd.errors import BlkdError, FreezeFailed, ProtocolError, RequestRefused
from blkd.host.fds import close_connection, close_foreign
from blkd.vhost_user.admission import accepted, admit, refused
from blkd.vhost_user.announcements import Announcements
from blkd.vhost_user.backchannel import BackChannelSnapshot
from blkd.vhost_user.backend_requests import BackendRequests
from blkd.vhost_user.channel import Fds, PartialMessage, Receiver, send
from blkd.vhost_user.data_path import DataPath
from blkd.vhost_user.front_end_state import FrontEndState, front_end_state
from blkd.vhost_user.gate import Gate
from blkd.vhost_user.misses import Misses
from blkd.vhost_user.plan_runner import PlanRunner
from blkd.vhost_user.requests import MAX_PAYLOAD
from blkd.vhost_user.session import Session
from blkd.vhost_user.session_snapshot import SessionSnapshot, restore_session, session_snapshot
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import Header, Request
from blkd.virtio.device import Device

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """A frozen connection: what another process needs to go on with it.

    Descriptors are borrowed from the connection.
    """

    fd: int
    """The connected socket."""
    session: SessionSnapshot
    partial: PartialMessage | None
    """The request that has come in part."""
    back_channel: BackChannelSnapshot | None

    @property
    def other_fds(self) -> tuple[int, ...]:
        """All descriptors but that of the connection itself."""
        partial, back = self.partial, self.back_channel
        return (*(partial.fds if partial else ()), *(back.fds if back else ()))


class Connection:
    """Serves one front end on a connected socket, which it takes."""

    def __init__(self, sock: socket.socket, device: Device, data_path: DataPath) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._receiver = Receiver(sock, MAX_PAYLOAD)
        self._data_path = data_path
        self._session = Session(device)
        self._gate = Gate()
        self._requests = BackendRequests()
        self._announcements = Announcements(self._session, self._gate, self._requests)
        self._misses = Misses(device, data_path, self._requests, partial(self._gate.idle, sock))
        self._runner = PlanRunner(data_path, self._requests, self._misses)
        self._closing = False
        self._leaving = False

    async def serve(self) -> None:
        """Serve the front end until it closes, or `close` is called.

        However this ends, the data path is reset and every descriptor is closed, or left to be
        closed by another thread.  Raises ProtocolError if the front end broke the protocol,
        DataPlaneError or OSError if the host failed.
        """
        failure: Exception | None = None
        async with contextlib.AsyncExitStack() as ending:  # each step, whatever becomes of others
            ending.callback(close_connection, self._sock)
            ending.callback(self._receiver.close)
            ending.callback(self._requests.close)
            ending.push_async_callback(self._data_path.reset)
            async with asyncio.TaskGroup() as tasks:
                beside = [
                    tasks.create_task(part.run())
                    for part in (self._requests, self._announcements, self._misses)
                ]
                try:
                    await self._converse()
                except (BlkdError, OSError) as error:  # alone, and not in a group of one
                    failure = error
                self._leaving = True
                for task in beside:
                    task.cancel()
        if failure and not (self._closing and isinstance(failure, ProtocolError)):
            raise failure

    def close(self) -> None:
        """Make `serve` end soon: the front end sees the connection closed."""
        self._closing = True
        self.thaw()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    async def announce_config(self, limit: float) -> bool:
        """Announce that the device's configuration changed: whether it is read in time.

        Returns after `limit` seconds at the most.  What the front end has not read by then, or
        cannot be sent now, is announced when its next vring is served.
        """
        return await self._announcements.announce_config(limit)

    def show(self) -> FrontEndState:
        """The session as it stands, for people to see."""
        return front_end_state(self._session, back_channel=self._requests.has_channel)

    # ---- frozen ----

    async def freeze(self, limit: float) -> None:
        """Carry out the request under way, then read and send nothing until `thaw`.

        Raises FreezeFailed if that request takes more than `limit` seconds, or if the front end
        is disconnecting; `thaw` is due in any case.
        """
        try:
            async with asyncio.timeout(limit):
                await self._gate.shut()
                await self._requests.freeze()
        except TimeoutError:
            raise FreezeFailed("a request of the front end is being carried out") from None
        if self._leaving or self._closing:
            raise FreezeFailed("the front end is leaving", hint="try again")

    @property
    def is_frozen(self) -> bool:
        """Whether `freeze` is still in force."""
        return self._gate.is_shut

    def thaw(self) -> None:
        """Read and send again."""
        self._gate.open()
        self._requests.thaw()

    def snapshot(self) -> ConnectionSnapshot:
        """The connection as it stands; it holds for as long as the connection is frozen."""
        return ConnectionSnapshot(
            self._sock.fileno(),
            session_snapshot(self._session),
            self._receiver.snapshot(),
            self._requests.snapshot(),
        )

    def restore(self, snapshot: ConnectionSnapshot) -> Mapping[int, VringSetup]:
        """Be as the connection of another process was; `serve` then goes on with it.

        The socket is the one that the connection was made with; all other descriptors are taken.
        Returns how each started vring is to be started here, by its index.  Raises RequestRefused
        or ProtocolError on a state that no connection can be in.
        """
        partial, back = snapshot.partial, snapshot.back_channel
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, back.fds if back else ())
            if partial is not None:
                self._receiver.restore(partial)
            restore_session(self._session, snapshot.session)
            undo.pop_all()
        self._requests.restore(back)
        return self._session.setups()

    # ---- messages ----

    async def _converse(self) -> None:
        """Answer one message after the other until the front end closes."""
        while True:
            async with self._gate.message(self._sock):
                if not await self._serve_message():
                    return
            await asyncio.sleep(0)  # a front end that never pauses is not alone here

    async def _serve_message(self) -> bool:
        """Answer the next message, if it has come whole: False if the front end has closed."""
        message = self._receiver.read()
        if message is None:
            return not self._receiver.has_closed
        self._announcements.note_request()
        header, payload, fds = message
        with fds, Fds() as reply_fds:
            reply = await self._reply_to(header, payload, fds, reply_fds)
            if reply is not None and not await send(self._sock, reply, reply_fds):
                return False
        self._announcements.note_reply()
        return True

    async def _reply_to(
        self, header: Header, payload: bytes, fds: Fds, reply_fds: Fds
    ) -> bytes | None:
        """Do what a request asks for: the reply, if one is due; its descriptors in `reply_fds`."""
        name = request_name(header.request)
        log.debug("request", request=name, size=header.size, fds=len(fds))
        serving = self._session.serving
        plan = admit(self._session, header, payload, len(fds))
        try:
            answer = await self._runner.run(plan, fds, reply_fds)
        except RequestRefused as error:
            log.warning("request refused", request=name, reason=str(error))
            return refused(self._session, header, error)
        self._announcements.note_session(serves_more=bool(self._session.serving - serving))
        if self._session.is_suspended:
            self._misses.forget()
        return accepted(self._session, header, answer)


def request_name(number: int) -> str:
    """A request's name, or its number in words."""
    try:
        return Request(number).name
    except ValueError:
        return f"unknown {number}"
