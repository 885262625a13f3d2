# SPDX-License-Identifier: Apache-2.0
"""One front end, served: messages in, commands to the rings, answers out."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import structlog

from blkd.errors import BlkdError, FreezeFailed, ProtocolError, RequestRefused
from blkd.host.fds import close_connection, close_foreign
from blkd.vhost_user.backchannel import BackChannel, BackChannelSnapshot
from blkd.vhost_user.channel import Fds, PartialMessage, Receiver, send
from blkd.vhost_user.commands import (
    AddMemory,
    Command,
    Configure,
    EnableVring,
    LogData,
    MemoryCommand,
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
    UseInflight,
    VringCommand,
)
from blkd.vhost_user.data_path import DataPath
from blkd.vhost_user.gate import Gate
from blkd.vhost_user.requests import MAX_PAYLOAD
from blkd.vhost_user.session import Answer, Plan, Session
from blkd.vhost_user.session_snapshot import SessionSnapshot, restore_session, session_snapshot
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import (
    BackendRequest,
    Header,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VirtioFeature,
)
from blkd.virtio.device import Device

QUIET: Final = 0.05
"""Seconds of silence on the main channel before a request goes out on the other one.

QEMU 7.2 serves the back-end channel while it waits for an answer on the main one, so that a
message of ours would have it read the configuration in the middle of starting the device.
"""

QUIET_LIMIT: Final = 1.0
"""Seconds after which a pause between two requests has to do."""

ACK_LIMIT: Final = 5.0
"""Seconds that a front end may take to acknowledge a request of ours."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FrontEndVring:
    """A ring as the front end has set it up."""

    index: int
    size: int
    started: bool
    enabled: bool


@dataclass(frozen=True, slots=True)
class FrontEndState:
    """What a front end has negotiated, for people to see."""

    features: int
    feature_names: tuple[str, ...]
    """Those that belong to no one device."""
    protocol_features: int
    protocol_feature_names: tuple[str, ...]
    status: int
    back_channel: bool
    memory_regions: tuple[MemoryRegion, ...]
    rings: tuple[FrontEndVring, ...]


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """A connection at rest: what it takes to go on with it elsewhere.

    Descriptors are borrowed from the connection that it is of.
    """

    fd: int
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
    """Serves one front end on a connected socket, which it owns from then on."""

    def __init__(self, sock: socket.socket, device: Device, data_path: DataPath) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._receiver = Receiver(sock, MAX_PAYLOAD)
        self._data_path = data_path
        self._session = Session(device)
        self._back: BackChannel | None = None
        self._closing = False
        self._leaving = False
        self._gate = Gate()
        self._quiet_at = -math.inf  # loop time; infinite while a request is carried out
        self._news = asyncio.Event()  # the front end may have to be told something
        self._changed = asyncio.Event()  # the session or its back-end channel

    async def serve(self) -> None:
        """Serve the front end until it closes, or `close` is called.

        However this ends, the rings are reset and every descriptor is closed, or left to be
        closed by another thread.  Raises ProtocolError if the front end broke the protocol,
        DataPlaneError or OSError if the host failed.
        """
        failure: Exception | None = None
        async with contextlib.AsyncExitStack() as ending:  # each step, whatever becomes of others
            ending.callback(close_connection, self._sock)
            ending.callback(self._receiver.close)
            ending.callback(self._close_back_channel)
            ending.push_async_callback(self._data_path.reset)
            async with asyncio.TaskGroup() as tasks:
                telling = tasks.create_task(self._tell())
                try:
                    await self._converse()
                except (BlkdError, OSError) as error:  # alone, and not in a group of one
                    failure = error
                self._leaving = True
                telling.cancel()
        if failure and not (self._closing and isinstance(failure, ProtocolError)):
            raise failure

    def close(self) -> None:
        """Make `serve` end soon: the front end sees the connection closed."""
        self._closing = True
        self.thaw()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    async def announce_config(self, timeout: float) -> bool:  # noqa: ASYNC109 - part of the role
        """Tell the front end that the device's configuration changed, within `timeout` seconds.

        True once the front end has read it as it is now.  False if it did not, or cannot be
        told now; then it is told when a ring starts, if not before.
        """
        self._news.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._session.is_stale and self._can_tell:
                    self._changed.clear()
                    await self._changed.wait()
        return not self._session.is_stale

    def show(self) -> FrontEndState:
        """The session as it stands, for people."""
        session = self._session
        return FrontEndState(
            features=session.features,
            feature_names=names(VirtioFeature(session.features)),
            protocol_features=int(session.protocol_features),
            protocol_feature_names=names(session.protocol_features),
            status=session.status,
            back_channel=self._back is not None,
            memory_regions=session.regions,
            rings=tuple(
                FrontEndVring(ring.index, ring.size, ring.started, ring.enabled)
                for ring in session.rings
            ),
        )

    # At rest

    async def freeze(self, limit: float) -> None:
        """Read and say nothing more, from the end of the request under way on, until `thaw`.

        Raises FreezeFailed if that does not end within `limit` seconds, or the front end is
        about to leave; `thaw` is due in any case.
        """
        try:
            async with asyncio.timeout(limit):
                await self._gate.shut()
                if self._back:
                    await self._back.gate.shut()
        except TimeoutError:
            raise FreezeFailed("a request of the front end is being carried out") from None
        if self._leaving or self._closing:
            raise FreezeFailed("the front end is leaving", hint="try again")

    @property
    def is_frozen(self) -> bool:
        """Whether `freeze` is still in force."""
        return self._gate.is_shut

    def thaw(self) -> None:
        """Read and say what there is to say again."""
        self._gate.open()
        if self._back:
            self._back.gate.open()

    def snapshot(self) -> ConnectionSnapshot:
        """The connection as it stands; it is to be frozen for as long as that has to be true."""
        return ConnectionSnapshot(
            self._sock.fileno(),
            session_snapshot(self._session),
            self._receiver.snapshot(),
            self._back.snapshot() if self._back else None,
        )

    def restore(self, snapshot: ConnectionSnapshot) -> Mapping[int, VringSetup]:
        """Go on where another process has left the front end, once `serve` is called.

        The socket is the one that the connection was made with; all other descriptors are taken.
        Returns what each started ring is to be started with here too.  Raises RequestRefused or
        ProtocolError on what no connection can be like.
        """
        partial, back = snapshot.partial, snapshot.back_channel
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, back.fds if back else ())
            if partial is not None:
                self._receiver.restore(partial)
            restore_session(self._session, snapshot.session)
            undo.pop_all()
        if back is not None:
            self._back = BackChannel.restore(back)
        self._news.set()
        return self._session.setups()

    # The main channel

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
        self._quiet_at = math.inf
        header, payload, fds = message
        with fds, Fds() as gifts:
            answer = await self._answer(header, payload, fds, gifts)
            if answer is not None and not await send(self._sock, answer, gifts):
                return False
        self._quiet_at = asyncio.get_running_loop().time() + QUIET
        return True

    async def _answer(self, header: Header, payload: bytes, fds: Fds, gifts: Fds) -> bytes | None:
        """Do what one request asks: the reply, if there is one, and in `gifts` what goes along."""
        name = request_name(header.request)
        log.debug("request", request=name, size=header.size, fds=len(fds))
        serving = self._session.serving
        plan = self._session.admit(header, payload, len(fds))
        try:
            reply = self._session.accepted(header, await self._carry_out(plan, fds, gifts))
        except RequestRefused as error:
            log.warning("request refused", request=name, reason=str(error))
            return self._session.refused(header, error)
        self._changed.set()
        if self._session.serving - serving:
            self._news.set()
        return reply

    async def _carry_out(self, plan: Plan, fds: Fds, gifts: Fds) -> Answer | None:
        """Perform a plan's commands in their order: its answer."""
        result: int | None = None
        while True:
            try:
                command = plan.send(result)
            except StopIteration as end:
                return cast("Answer | None", end.value)
            result = await self._perform(command, fds, gifts)

    async def _perform(self, command: Command, fds: Fds, gifts: Fds) -> int | None:
        """Carry out one command: its result, where it has one."""
        match command:
            case SetMemory() | AddMemory() | RemoveMemory() | SetLog() | LogData():
                await self._perform_on_memory(command, fds)
            case OfferInflight(region):
                gifts.add([await self._data_path.make_inflight(region)])
            case UseInflight(region, packed):
                await self._data_path.use_inflight(region, fds.take_one(), packed=packed)
            case Configure():
                await self._data_path.configure()
            case OpenBackChannel():
                self._close_back_channel()
                self._back = BackChannel.adopt(fds.take_one())
                self._news.set()
            case _:
                return await self._perform_on_vring(command, fds)
        return None

    async def _perform_on_memory(self, command: MemoryCommand, fds: Fds) -> None:
        data_path = self._data_path
        match command:
            case SetMemory(regions):
                await data_path.set_memory(regions, fds.take())
            case AddMemory(region):
                await data_path.add_memory(region, fds.take_one())
            case RemoveMemory(region):
                await data_path.remove_memory(region)
            case SetLog(log_base):
                await data_path.set_log(log_base, fds.take_one() if log_base else None)
            case LogData(on):
                await data_path.log_data(on=on)
                log.info("dirty log switched", on=on)

    async def _perform_on_vring(self, command: VringCommand, fds: Fds) -> int | None:
        data_path = self._data_path
        match command:
            case SetKick(index):
                await data_path.set_kick(index, fds.take_one())
            case SetCall(index):
                await data_path.set_call(index, fds.take_any())
            case SetError(index):
                await data_path.set_error(index, fds.take_any())
            case StartVring(index, setup):
                await data_path.start_vring(index, setup)
                log.info("ring started", ring=index, size=setup.size, base=setup.base)
            case MoveVring(index, setup):
                await data_path.move_vring(index, setup)
            case EnableVring(index, enabled):
                await data_path.enable_vring(index, enabled=enabled)
            case StopVring(index):
                base = await data_path.stop_vring(index)
                log.info("ring stopped", ring=index, base=base)
                return base
        return None

    # The back-end channel

    @property
    def _can_tell(self) -> bool:
        """Whether a change of the configuration can be told now."""
        needed = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
        return (
            self._back is not None
            and needed in self._session.protocol_features
            and bool(self._session.serving)
        )

    async def _tell(self) -> None:
        """Tell the front end of what it has not read, each time that there may be something."""
        while True:
            await self._news.wait()
            await self._quiet()
            await self._gate.opened()
            self._news.clear()
            if self._back and self._can_tell and self._session.is_stale:
                await self._tell_by(self._back)

    async def _tell_by(self, back: BackChannel) -> None:
        acknowledged = ProtocolFeature.REPLY_ACK in self._session.protocol_features
        try:
            taken = await back.request(
                BackendRequest.CONFIG_CHANGE_MSG, acknowledged=acknowledged, limit=ACK_LIMIT
            )
        except TimeoutError:
            log.warning("configuration change not acknowledged", seconds=ACK_LIMIT)
        except (ProtocolError, OSError) as error:
            log.warning("back-end channel lost", reason=str(error))
            if self._back is back:
                self._close_back_channel()
        else:
            log.info("configuration change announced", taken=taken)

    async def _quiet(self) -> None:
        """Wait until the main channel has been silent for a while, or chatters on and on."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + QUIET_LIMIT
        while (wait := self._quiet_at - loop.time()) > 0:
            if loop.time() > patience and self._quiet_at < math.inf:
                return
            await asyncio.sleep(min(wait, QUIET))

    def _close_back_channel(self) -> None:
        if self._back:
            self._back.close()
            self._back = None
            self._changed.set()


def names(flags: ProtocolFeature | VirtioFeature) -> tuple[str, ...]:
    """The names of the bits set, as the specifications have them."""
    return tuple(flag.name for flag in type(flags) if flag in flags and flag.name)


def request_name(number: int) -> str:
    """A request's name, or its number in words."""
    try:
        return Request(number).name
    except ValueError:
        return f"unknown {number}"
