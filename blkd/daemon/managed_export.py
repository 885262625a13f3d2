# SPDX-License-Identifier: Apache-2.0
"""One export of a daemon: its record, its sockets, and the process that serves it.

`run` carries out what the lifecycle says; the methods change it, and wait.  The sockets are the
daemon's: front ends can connect while a dead process is started again.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Final

import msgspec
import structlog

from blkd.control import client, models
from blkd.control.daemon_models import Device, MemberState, Settings, State
from blkd.daemon import adoption, orders
from blkd.daemon.daemon_config import DYNAMIC, DaemonConfig
from blkd.daemon.event_list import EventList
from blkd.daemon.group_list import GroupList, Membership
from blkd.daemon.launchers import Launchers
from blkd.daemon.launching import Launched
from blkd.daemon.lifecycle import Lifecycle
from blkd.daemon.log_files import LogFiles
from blkd.daemon.observed import Described
from blkd.daemon.plain_settings import read_settings
from blkd.daemon.record import PINNED, ExportRecord
from blkd.daemon.record_store import RecordStore
from blkd.daemon.shared_area import SharedArea
from blkd.errors import (
    BlkdError,
    ConfigError,
    DrainTimeout,
    LaunchError,
    NoAnswer,
    RequestRefused,
    StateError,
    UpgradeError,
)
from blkd.export import limits
from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.limits import Limits
from blkd.host import unix_socket
from blkd.host.blocking import ask
from blkd.host.fds import readable
from blkd.image.kinds import path_of
from blkd.statistics.area import Area, make_wake
from blkd.statistics.figures import Figures
from blkd.virtio.blk import NEWEST_SET

READY_LIMIT: Final = 60.0  # seconds from the start of a process until it serves
START_LIMIT: Final = 120.0  # seconds until a start has led to something
OF_SOCKETS: Final = frozenset({"socket_group", "socket_mode"})
"""Settings of files of the daemon."""
OF_GROUPS: Final = frozenset({"group", "weight"})
"""Settings that say what the daemon grants."""
OF_PROCESS: Final = frozenset({"limit"})
"""Settings that a process takes over while it serves."""
LIVE: Final[Mapping[Device, frozenset[str]]] = MappingProxyType(
    {"blk": OF_SOCKETS | OF_GROUPS | OF_PROCESS, "net": OF_SOCKETS, "vsock": OF_SOCKETS}
)
"""Settings that apply to what is served already."""
TAKEN_LIMIT: Final = 2.0
"""Seconds until a process serves once the one that it takes over from has ended: ample."""
STOP_LIMIT: Final = 7.0  # seconds that a process has to end in good order: it gives itself five
LAST_WORDS_LIMIT: Final = 1.0  # seconds for one that has said why it does not serve to log it
KILL_LIMIT: Final = 5.0  # seconds to wait for one that was killed
ADOPT_LIMIT: Final = 20.0
SLACK: Final = 1.0  # seconds for a thread to answer beyond the limit that it has itself
MOST_QUESTIONS: Final = (
    8  # to one process at a time: one that does not answer keeps each for a while
)
CONTROL_MODE: Final = 0o600
OWNERS_DIRECTORY: Final = 0o700

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the exports of a daemon have in common."""

    config: DaemonConfig
    store: RecordStore[ExportRecord]
    logs: LogFiles
    events: EventList
    launchers: Launchers
    groups: GroupList
    shared_user: int | None
    """Whose the processes of all exports are; None for whose the daemon is, or one each."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that serves an export, or is about to."""

    pid: int
    pidfd: int
    since: float
    """When it was started or found, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where an export is reached; they listen, whoever accepts."""

    control: socket.socket
    listeners: tuple[socket.socket, ...]
    paths: tuple[str, ...]
    """Their files.  Never asked of a socket that a process has lent: it may be anyone's."""
    of_process: tuple[str, ...] = ()
    """Files of sockets that the process makes itself, and leaves: it may remove none."""

    @property
    def are_shut(self) -> bool:
        """Whether nobody can connect any more to one of them: a process has shut it down."""
        poll = select.poll()
        for sock in (self.control, *self.listeners):
            poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close them, and remove their files."""
        for path in map(Path, (*self.paths, *self.of_process)):
            with contextlib.suppress(OSError):
                if path.is_socket():
                    path.unlink()
        self.release()

    def release(self) -> None:
        """Close them; who else has them goes on to listen."""
        for sock in (self.control, *self.listeners):
            sock.close()


class ManagedExport:
    """An export whose record is kept, whether it is served or not."""

    def __init__(self, record: ExportRecord, around: Surroundings, *, is_new: bool = False) -> None:
        """An export that an earlier daemon may have served, unless it is new."""
        self.record = record
        self.life = Lifecycle()
        self.process: Process | None = None
        self.described = Described()
        """What its process has said of it when it came to serve."""
        self._silent: Process | None = None
        """One that has its sockets, but does not answer."""
        self._around = around
        self._sockets: Sockets | None = None
        self._shared = SharedArea(record.name, self._take_place)
        self._is_sought = not is_new
        """Whether it is not known yet if an earlier daemon has left a process of it."""
        self._news = asyncio.Event()
        self._refusal: BlkdError | None = None
        self._is_asked = False
        """Whether somebody waits for the start, to whom a refusal is told rather than tried
        again."""
        self._upgrading = False
        self._was_found = False
        """Whether the process that served last was started by an earlier daemon."""
        self._questions = 0
        self._waiting: set[asyncio.Timeout] = set()
        """Of those who have asked the process; brought to an end with it."""
        self._writing = asyncio.Lock()
        self._take_place()

    @property
    def name(self) -> str:
        """What it is called."""
        return self.record.name

    @property
    def control(self) -> str:
        """Path of the socket of its process's API."""
        return control_path(self._around.config, self.name)

    @property
    def settings(self) -> EndpointConfig:
        """What its next process is started with.  Raises ConfigError."""
        run = PurePath(self._around.config.run)
        return read_settings(self.record.device, self.name, self.record.effective, run)

    @property
    def socket_paths(self) -> tuple[str, ...]:
        """Where front ends connect."""
        return socket_paths(self.settings)

    @property
    def known_sockets(self) -> tuple[str, ...]:
        """Where front ends connect now, or else once it is served."""
        if self._sockets is not None:
            return self._sockets.paths[1:]
        return self._next_sockets

    @property
    def claimed_sockets(self) -> tuple[str, ...]:
        """Where they, and host programs, connect now, or from the next start on."""
        made = self._sockets.of_process if self._sockets is not None else ()
        return (*self.known_sockets, *made, *self._next_sockets, *self._next_host_paths)

    @property
    def _next_host_paths(self) -> tuple[str, ...]:
        try:
            return host_paths(self.settings)
        except ConfigError:  # as below
            return ()

    @property
    def _next_sockets(self) -> tuple[str, ...]:
        try:
            return self.socket_paths
        except ConfigError:  # a record of people
            return ()

    @property
    def written_file(self) -> str | None:
        """The file that a guest is to write to; None of another image, and while none is to."""
        record = self.record
        if record.wanted != "serving" or record.settings.get("read_only"):
            return None
        return path_of(record.settings.get("image", "null:"))

    async def until_written(self) -> None:
        """Wait until there is a `written_file`."""
        await self._until(lambda: self.written_file is not None)

    @property
    def has_left(self) -> bool:
        """Whether an earlier daemon has left a process of it, which may not answer."""
        return self.life.has_process or self._silent is not None

    # ---- what is wanted ----

    async def start(self) -> None:
        """Serve it from now on; returns once it serves.

        Raises BlkdError: the process says why it cannot, and the export is `failed`.
        """
        await self.keep(lambda record: replace(record, wanted="serving"))
        self._refusal, self._is_asked = None, True
        try:
            self._become(self.life.start())
            async with asyncio.timeout(START_LIMIT):
                await self._until(lambda: self.life.state not in {"starting", "stopping"})
        except TimeoutError:
            raise LaunchError(f"{self.name} is still {self.life.state}") from None
        finally:
            self._is_asked = False
        if self.life.state in {"failed", "restarting"}:
            raise self._refusal or LaunchError(f"{self.name} does not serve: {self.life.reason}")

    async def stop(self) -> None:
        """Serve it no more; returns once its process has ended.

        Raises DrainTimeout where that does not end: it cannot do anything more.
        """
        await self.keep(lambda record: replace(record, wanted="stopped"))
        await self.end()

    async def end(self) -> None:
        """End its process, whatever its record says is wanted; for the rest see `stop`."""
        self._become(self.life.stop())
        await self._end_process()
        if await self._take_silent():
            await self._end_process()
        self._close_sockets()

    async def _end_process(self) -> None:
        for number, limit in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, KILL_LIMIT)):
            self._signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await self._until(lambda: not self.life.has_process)
                return
        raise DrainTimeout(
            f"the process of {self.name} was killed, and does not end",
            hint="the kernel waits for its disk",
        )

    async def kill(self) -> None:
        """End its process at once; returns when that is seen, or after a while.

        Raises RequestRefused where there is none.
        """
        if (process := self.process) is None:
            raise self._not_served()
        self._around.events.tell("export killed", export=self.name, pid=process.pid)
        self._signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_LIMIT):
                await self._until(lambda: self.process is not process)

    async def change(
        self, settle: Callable[[ExportRecord], ExportRecord], names: set[str]
    ) -> set[str]:
        """Keep a record with other settings, of these `names`: those that are applied now."""
        is_open = self._sockets is not None and self.life.has_process
        applied = names & LIVE[self.record.device] if is_open else set()
        if self.life.state not in {"serving", "paused"}:
            applied -= OF_PROCESS
        later = names - applied if self.life.has_process else set()
        before = self.record

        def changed(record: ExportRecord) -> ExportRecord:
            return replace(settle(record), pending=tuple(sorted({*record.pending, *later})))

        await self.keep(changed)
        if applied & (OF_SOCKETS | OF_PROCESS):
            try:
                if applied & OF_SOCKETS:
                    await self._give_sockets()
                if applied & OF_PROCESS:
                    limit = self.record.effective.get("limit", "")
                    await self.call("POST", models.LIMITS, models.LimitExport(limit))
            except BaseException:
                await self.keep(lambda _: before)
                raise
        self._around.events.tell("export changed", export=self.name, settings=sorted(names))
        return applied

    async def upgrade(self) -> None:
        """Have a process of the files that are installed now serve on.

        Raises BlkdError: the process that serves goes on.
        """
        before = self.process
        if before is None or self.life.state not in {"serving", "paused"}:
            raise self._not_served()
        self._upgrading = True
        try:
            await self._take_over(before)
        finally:
            self._upgrading = False
            self._tell()

    async def _take_over(self, before: Process) -> None:
        around = self._around
        order = orders.Take(
            name=self.name,
            control=self.control,
            sandbox=self._sandbox(),
            statistics=self.area is not None,
        )
        wake = make_wake()
        try:
            log_file = await self._log_file()
            try:
                given = () if self.area is None else (self.area.fd, wake)
                launched = await around.launchers.take(order, log=log_file, statistics=given)
            finally:
                os.close(log_file)
        except BaseException:
            os.close(wake)
            raise
        taker = self._process_of(launched)
        try:
            said = await _taken(launched, before)
        except BlkdError as error:
            os.close(wake)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(taker.pidfd, signal.SIGKILL)
            os.close(taker.pidfd)
            around.events.tell(
                "export not upgraded", export=self.name, level="warning", reason=str(error)
            )
            raise UpgradeError(f"{self.name} is not upgraded: {error}", hint=error.hint) from error
        finally:
            launched.close()
        self._shared.share(wake)
        self.process, self.described = taker, Described.decode(said)
        around.events.tell("export upgraded", export=self.name, was=before.pid, pid=taker.pid)

    # ---- what its process is asked ----

    async def call(self, method: str, target: str, body: object = None, *, wait: float = 0) -> Any:
        """What the process answers.  Raises RequestRefused without one, else as `client.call`."""
        if self.process is None or self.life.state in {"starting", "restarting"}:
            raise self._not_served()
        if self._questions >= MOST_QUESTIONS:
            raise NoAnswer(f"the process of {self.name} does not answer")
        path, limit = self.control, client.ANSWER_LIMIT

        def answer() -> Any:
            try:
                return client.call(path, method, target, body, wait=wait, limit=limit)
            finally:
                self._questions -= 1

        asked = self.process
        self._questions += 1
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                return await ask(answer, wait + limit + SLACK)
        except TimeoutError:
            if self.process is not asked:  # who comes next does not know of it
                raise RequestRefused(f"the process of {self.name} has ended meanwhile") from None
            raise NoAnswer(f"the process of {self.name} does not answer") from None
        except OSError:
            self._questions -= 1  # there was no thread to be had
            raise
        finally:
            self._waiting.discard(waiting)

    async def pause(self, deadline: float) -> Any:
        """Fetch nothing more: the process's answer."""
        body = models.PauseExport(deadline)
        result = await self.call("POST", models.PAUSE, body, wait=deadline)
        self._become(self.life.pause())
        return result

    async def resume(self) -> None:
        """Fetch again."""
        await self.call("POST", models.RESUME)
        self._become(self.life.resume())

    # ---- its life ----

    async def begin(self) -> None:
        """Be what the record says at the start of a daemon: find the process, if there is one.

        One that is not wanted is found too; `end` is due then.
        """
        try:
            is_found = await self._adopt()
            self._is_sought = False
            self._take_place()
            if not is_found and self.record.wanted == "serving":
                self._become(self.life.start())
        except (BlkdError, OSError) as error:
            self._is_sought = False
            self._take_place()
            if self.record.wanted == "serving":
                self._become(self.life.start())
                self._fail(error)

    async def run(self) -> None:
        """Have done what the lifecycle says, until it is cancelled; the process goes on then."""
        while True:
            match self.life.state:
                case "starting":
                    await self._serve()
                case "serving" | "paused" | "stopping":
                    await self._attend()
                case "restarting":
                    await self._wait_to_restart()
                case _:
                    if self.life.state == "stopped":
                        self._close_sockets()
                    await self._news.wait()

    async def _serve(self) -> None:
        """Have a process that serves: one that is found, or a new one."""
        try:
            if not await self._adopt():
                served = self.record.effective
                state = await self._launch()
                self.described = Described.read(state)
                await self._pin(state, served)
                self._become(self.life.ready(time.monotonic()))
                self._around.events.tell("export serving", export=self.name, pid=self._pid)
        except (BlkdError, OSError) as error:
            await self._await_end()
            self._fail(error)

    async def _adopt(self) -> bool:
        """Take on the process that an earlier daemon has left: whether there is one.

        Where one that was found has ended, another may have taken over from it: an upgrade that
        the earlier daemon began.
        """
        if self._sockets is not None and not self._was_found:
            return False  # whoever served was started here, and has ended
        self._was_found = False
        if (process := await self._find_process()) is None:
            return False
        path, name, pid = self.control, self.name, process.pid
        if adoption.is_anothers(pid, self.record.user):
            raise self._of_another(pid)
        paths = (path, *self.socket_paths)
        try:
            found = await ask(lambda: adoption.find(path, name, pid), ADOPT_LIMIT)
        except TimeoutError:
            raise LaunchError("the process that has its sockets does not answer") from None
        if self._sockets is not None:
            self._sockets.release()
        self._sockets = Sockets(found.control, found.listeners, paths, host_paths(self.settings))
        self._shared.adopt(found.statistics, found.wake)
        self.process, self._silent, self._was_found = process, None, True
        self.described = Described.read(found.state)
        self._become(self.life.adopt(self.record.wanted, time.monotonic()))
        if self.life.state == "stopping":
            self._signal(signal.SIGTERM)
        if found.state.get("state") == "paused":
            self._become(self.life.pause())
        self._around.events.tell("export adopted", export=self.name, pid=process.pid)
        return True

    async def _find_process(self) -> Process | None:
        """The process that listens for calls without having been adopted, if there is one.

        It is kept in `_silent`: when nobody accepts its connections any more, the socket does not
        say who it is for long.  Raises LaunchError.
        """
        self._forget_silent()
        if self._silent is None:
            try:
                found = await ask(lambda: adoption.holder(self.control), ADOPT_LIMIT)
            except TimeoutError:
                raise LaunchError("it is not known in time who has its sockets") from None
            self._silent = None if found is None else Process(*found, time.time())
            self._forget_silent()  # the daemon's own sockets may still name who has ended
        return self._silent

    def _forget_silent(self) -> None:
        """Forget one that has ended."""
        if self._silent is not None and _has_ended(self._silent):
            os.close(self._silent.pidfd)
            self._silent = None

    async def _take_silent(self) -> bool:
        """Take on, to end it, a process that could not be adopted: whether there is one."""
        if self._sockets is not None or (found := await self._find_process()) is None:
            return False
        of_another = adoption.is_anothers(found.pid, self.record.user)
        if of_another or not adoption.is_of(self.name, found.pid):
            raise self._of_another(found.pid)
        self.process, self._silent = self._silent, None
        self._become(self.life.adopt("stopped", time.monotonic()).stop())
        return True

    def _of_another(self, pid: int) -> LaunchError:
        return LaunchError(f"process {pid} has the sockets of {self.name}, and is another")

    async def _launch(self) -> Any:
        """A new process, which serves: what it says of itself.  Raises BlkdError."""
        around = self._around
        sockets = await self._listen()
        statistics = self._shared.prepare() if self.record.device == "blk" else ()
        log_file = await self._log_file()
        try:
            launched = await around.launchers.launch(
                self._order(),
                log=log_file,
                control=sockets.control,
                listeners=sockets.listeners,
                statistics=statistics,
            )
        finally:
            os.close(log_file)
        self.process = self._process_of(launched)
        if self.life.state == "stopping":
            self._signal(signal.SIGTERM)
        try:
            return msgspec.json.decode(await launched.ready(READY_LIMIT))
        except msgspec.DecodeError as error:
            raise LaunchError(f"what the process says is no JSON: {error}") from error
        finally:
            launched.close()

    def _process_of(self, launched: Launched) -> Process:
        return Process(launched.pid, launched.take_pidfd(), time.time())

    async def _log_file(self) -> int:
        """Where a process logs: nowhere, if a disk that is full or broken has no room for it."""
        try:
            return await self._around.logs.open(self.name)
        except StateError as error:
            log.warning("export without a log", export=self.name, reason=str(error))
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _order(self) -> orders.Launch:
        config = self._around.config
        return orders.Launch(
            name=self.name,
            device=self.record.device,
            settings=self.record.effective,
            run=config.run,
            places=orders.Places(directories=config.images, devices=config.devices),
            sandbox=self._sandbox(),
            statistics=self.area is not None,
        )

    def _sandbox(self) -> orders.Sandbox:
        config = self._around.config
        own = self.record.user if config.user == DYNAMIC else self._around.shared_user
        user = own if os.geteuid() == 0 and config.sandbox == "on" else None
        return orders.Sandbox(on=config.sandbox == "on", user=user, group=user)

    @property
    def area(self) -> Area | None:
        """Where its processes count; None before the first start, and for what is no disk."""
        return self._shared.area

    @property
    def limits(self) -> Limits:
        """Those of its own that its settings have."""
        try:
            return limits.parse(getattr(self.settings, "limit", ""))
        except ConfigError:  # a record of people
            return Limits()

    @property
    def figures(self) -> Figures | None:
        """What its processes have counted and measured; None where there is nothing to read."""
        return None if self.area is None else self.area.figures(is_served=self.process is not None)

    @property
    def state(self) -> State:
        """What it is about, and whether it holds requests."""
        if self.life.state == "serving" and self.area is not None and self.area.held:
            return "held"
        return self.life.state

    def forget_figures(self) -> None:
        """Close the area: there is nobody any more who counts, or who asks."""
        self._shared.close()

    async def _pin(self, state: Any, served: Settings) -> None:
        """Keep what a guest may see, once it is known; of what is `served` nothing is pending."""
        run = PurePath(self._around.config.run)

        def pinned(record: ExportRecord) -> ExportRecord:
            if record.effective != served:
                return record  # changed meanwhile
            record = replace(record, pending=()).pin(seen_by_guest(record, self.settings, state))
            read_settings(record.device, record.name, record.effective, run)
            return record

        try:
            await self.keep(pinned)
        except (ConfigError, StateError, KeyError, TypeError) as error:
            log.warning("features not pinned", export=self.name, reason=str(error))

    async def _attend(self) -> None:
        """Wait for the end of the process, and draw the conclusion."""
        process = self.process
        if process is None:  # there was none yet when it was to end
            self._become(self.life.die(time.monotonic(), "was not started"))
            return
        await readable(process.pidfd)  # for as long as it lives
        while self._upgrading:
            await self._news.wait()
        os.close(process.pidfd)
        if self.process is not process:
            return  # another one has taken over
        self.process = None
        for waiting in self._waiting:
            if not waiting.expired():
                waiting.reschedule(asyncio.get_running_loop().time())
        reason = f"process {process.pid} {await self._around.launchers.end_of(process.pid)}"
        self._become(self.life.die(time.monotonic(), reason))
        self._tell_end(reason)

    async def _await_end(self) -> None:
        """Wait for a process that does not come to serve, for as long as it lives.

        There is no limit: no other could have its image.
        """
        if (process := self.process) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_LIMIT):
                    await readable(process.pidfd)
            self._signal(signal.SIGKILL)
            await readable(process.pidfd)
            os.close(process.pidfd)
            self.process = None
            await self._around.launchers.end_of(process.pid)

    def _fail(self, error: BlkdError | OSError) -> None:
        """Draw the conclusion of a start that has failed."""
        refused = isinstance(error, BlkdError) and not isinstance(error, LaunchError)
        if refused and self._is_asked:
            assert isinstance(error, BlkdError)
            self._refusal = error
            self._become(self.life.refuse(str(error)))
        else:
            self._become(self.life.die(time.monotonic(), str(error)))
        self._tell_end(str(error))

    def _tell_end(self, reason: str) -> None:
        tell = self._around.events.tell
        match self.life.state:
            case "stopped" | "starting":
                tell("export stopped", export=self.name, reason=reason)
            case "restarting":
                delay = self.life.delay
                tell("export died", export=self.name, level="warning", reason=reason, delay=delay)
            case "failed":
                tell("export failed", export=self.name, level="error", reason=reason)

    async def _wait_to_restart(self) -> None:
        before, news = self.life, self._news
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(before.delay):
                await news.wait()
        if self.life is before:
            self._become(before.restart())

    # ---- its sockets ----

    async def _listen(self) -> Sockets:
        """The sockets, made now if there are none, or others.  Raises BlkdError."""
        wanted = (self.control, *self.socket_paths)
        if (now := self._sockets) is not None and (now.paths != wanted or now.are_shut):
            self._close_sockets()
        if self._sockets is None:
            settings = self.settings
            Path(self.control).parent.mkdir(OWNERS_DIRECTORY, parents=True, exist_ok=True)
            with contextlib.ExitStack() as undo:
                control = await unix_socket.listen_soon(self.control, CONTROL_MODE)
                undo.callback(Sockets(control, (), (self.control,)).close)
                group = await self._group(settings)
                listeners: list[socket.socket] = []
                for path in wanted[1:]:
                    sock = await unix_socket.listen_soon(path, settings.socket_mode, group)
                    undo.callback(sock.close)
                    undo.callback(Path(path).unlink)
                    listeners.append(sock)
                undo.pop_all()
            self._sockets = Sockets(control, tuple(listeners), wanted, host_paths(settings))
        return self._sockets

    async def _group(self, settings: EndpointConfig) -> int | None:
        name = settings.socket_group or self._around.config.socket_group
        try:
            return await ask(lambda: unix_socket.group_number(name), client.ANSWER_LIMIT)
        except TimeoutError:
            raise ConfigError(f"it is not known in time what group {name} is") from None

    async def _give_sockets(self) -> None:
        """Give the sockets' files the group and mode of the settings.  Raises BlkdError."""
        group = await self._group(self.settings)
        for path in self.known_sockets:
            unix_socket.give(
                path, os.getegid() if group is None else group, self.settings.socket_mode
            )

    def _close_sockets(self) -> None:
        sockets, self._sockets = self._sockets, None
        if sockets is not None:
            sockets.close()
            with contextlib.suppress(OSError):
                Path(self.control).parent.rmdir()

    def release(self) -> None:
        """Close the daemon's descriptors of it: its process and its sockets' files stay."""
        if self._sockets is not None:
            self._sockets.release()
        self.forget_figures()
        for process in filter(None, (self.process, self._silent)):
            os.close(process.pidfd)

    # ---- small things ----

    @property
    def _pid(self) -> int | None:
        return self.process.pid if self.process else None

    def _not_served(self) -> RequestRefused:
        why = f": {self.life.reason}" if self.life.reason else ""
        return RequestRefused(
            f"{self.name} is {self.life.state}{why}", hint=f"blkd start {self.name} serves it"
        )

    async def keep(self, change: Callable[[ExportRecord], ExportRecord]) -> None:
        """Have a changed record on disk, and then here.  Raises StateError."""
        async with self._writing:
            record = change(self.record)
            await self._around.store.write(record)
            self.record = record
            self._take_place()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process.pidfd, number)

    def _become(self, life: Lifecycle) -> None:
        self.life = life
        self._take_place()
        self._tell()

    def _take_place(self) -> None:
        """Have the groups know what it is now."""
        group, weight = None, 1
        with contextlib.suppress(ConfigError):  # a record of people
            if isinstance(settings := self.settings, ExportConfig):
                group, weight = settings.group, settings.weight
        page = self._shared.page if self.life.has_process else None
        state: MemberState = "apart" if self.life.has_process else "stopped"
        if page is not None or self._is_sought or self._silent is not None:
            state = "sharing"
        membership = Membership(group, weight, state, page, self._shared.wake)
        self._around.groups.place(self.name, membership)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._news.wait()


def _has_ended(process: Process) -> bool:
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(0))


def control_path(config: DaemonConfig, name: str) -> str:
    """Where the process of an export answers the control API."""
    return f"{config.run}/exports/{name}/control.sock"


async def _taken(launched: Launched, before: Process) -> bytes:
    """What a process says once it serves what another one serves before.  Raises BlkdError.

    Where the other one dies in its midst, nobody closes the connection on which the new one waits
    for it: the socket listens on.
    """
    pidfd = os.dup(before.pidfd)  # the loop has one reader a descriptor, and that is `_attend`
    gone = asyncio.ensure_future(readable(pidfd))
    serving = asyncio.ensure_future(launched.ready(READY_LIMIT))
    try:
        await asyncio.wait((gone, serving), return_when=asyncio.FIRST_COMPLETED)
        async with asyncio.timeout(None if serving.done() else TAKEN_LIMIT):
            return await serving
    except TimeoutError:
        raise LaunchError(f"process {before.pid} has ended before it gave its disk") from None
    finally:
        for each in (gone, serving):
            each.cancel()
        await asyncio.wait((gone, serving))
        os.close(pidfd)


def seen_by_guest(record: ExportRecord, settings: EndpointConfig, state: Any) -> Settings:
    """The settings by which a guest sees a device, as it is served.

    Raises KeyError or TypeError where the process that serves it does not say so.
    """
    seen = {name: getattr(settings, name) for name in PINNED[record.device]}
    if record.device == "blk":
        seen["features_as"] = seen["features_as"] or NEWEST_SET
        seen |= {name: state[name] for name in ("serial", "logical_block_size")}
    return seen


def socket_paths(settings: EndpointConfig) -> tuple[str, ...]:
    """Where front ends of an export connect."""
    paths = getattr(settings, "socket", ())
    return (paths,) if isinstance(paths, str) else tuple(paths)


def host_paths(settings: EndpointConfig) -> tuple[str, ...]:
    """Where programs of the host connect to guests of an export, for streams and for messages."""
    streams: Sequence[str] = getattr(settings, "uds", ())
    return (*streams, *map(unix_socket.message_path, streams))
