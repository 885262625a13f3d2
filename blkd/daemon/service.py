# SPDX-License-Identifier: Apache-2.0
"""The daemon in this process: its directories, its exports and their API, until a signal ends it.

What the exports' processes serve goes on then, and is found by the next daemon.
"""

import asyncio
import contextlib
import fcntl
import os
import pwd
import resource
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import structlog

from blkd.daemon.api.application import daemon_api
from blkd.daemon.api.authorisation import Authorisation
from blkd.daemon.daemon_config import DYNAMIC, DaemonConfig
from blkd.daemon.dashboard.door import open_dashboard
from blkd.daemon.event_list import EventList
from blkd.daemon.group_list import GroupList
from blkd.daemon.group_record import GroupRecord
from blkd.daemon.launchers import Launchers
from blkd.daemon.listeners import loopback_listener, unix_listener
from blkd.daemon.log_files import LogFiles, Logged
from blkd.daemon.managed_export import Surroundings
from blkd.daemon.record import ExportRecord
from blkd.daemon.record_store import RecordStore
from blkd.daemon.supervisor import Supervisor
from blkd.errors import ConfigError, StateError
from blkd.host import log as log_events
from blkd.host import signals, systemd, unix_socket
from blkd.host.blocking import ask

ANNOUNCE_LIMIT: Final = 1.0  # seconds until whoever started it is expected to have read so
OWNERS_DIRECTORY: Final = 0o700
PUBLIC_DIRECTORY: Final = 0o755
"""Of the sockets: the mode of each of them says who may connect."""

log = structlog.get_logger()


def run(config: DaemonConfig, announce: Callable[[object], None]) -> None:
    """Be a daemon; returns when a signal has ended it.

    The caller has called `signals.hold`.  SIGTERM and SIGINT end it.

    Args:
        config: What it is to do.
        announce: Called once the API can be called, with where that is.

    Raises BlkdError where it cannot begin.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each export has a few
    runner = asyncio.Runner()  # not closed: that would wait for a thread stuck in a disk
    try:
        runner.run(_run(config, announce))
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that tasks put it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(config: DaemonConfig, announce: Callable[[object], None]) -> None:
    arrivals: asyncio.Queue[int] = asyncio.Queue()
    deliver = asyncio.get_running_loop().call_soon_threadsafe
    signals.forward(lambda number: deliver(arrivals.put_nowait, number))
    async with contextlib.AsyncExitStack() as stack:
        for fd in _own_directories(config):
            stack.callback(os.close, fd)
        supervisor = await _supervisor(config)
        await stack.enter_async_context(supervisor.running())
        await stack.enter_async_context(_api(config, supervisor))
        systemd.ready(f"{len(supervisor.list())} exports")
        log.info("daemon ready", socket=config.socket, exports=len(supervisor.list()))
        state = {"socket": config.socket, "pid": os.getpid(), "exports": len(supervisor.list())}
        with contextlib.suppress(OSError):  # nobody reads it in time, or no thread: it goes on
            await ask(lambda: announce(state), ANNOUNCE_LIMIT)
        while await arrivals.get() == signal.SIGHUP:
            pass  # there is nothing to read again: what is configured holds from start to end
        systemd.stopping()
        log.info("daemon stopping", exports=config.on_stop)


async def _supervisor(config: DaemonConfig) -> Supervisor:
    """The exports, as the last daemon has left them."""
    launchers = Launchers()  # they end with their last process, once this one has ended
    launchers.begin()  # it has to import everything: the sooner the better
    events = EventList()
    supervisor: Supervisor

    def take(logged: Logged) -> None:
        log_events.relay(logged.line)
        supervisor.take_logged(logged)

    around = Surroundings(
        config=config,
        store=RecordStore(Path(config.records), ExportRecord.read),
        logs=LogFiles(Path(config.logs), take),
        events=events,
        launchers=launchers,
        groups=GroupList(RecordStore(Path(config.group_records), GroupRecord.read), events),
        shared_user=None if config.user == DYNAMIC else _user_number(config.user),
    )
    supervisor = Supervisor(around)
    await supervisor.load()
    return supervisor


@contextlib.asynccontextmanager
async def _api(config: DaemonConfig, supervisor: Supervisor) -> AsyncIterator[None]:
    """Answer calls, while the context lasts."""
    authorisation = Authorisation(
        read_group=unix_socket.group_number(config.read_group),
        change_group=unix_socket.group_number(config.change_group),
    )
    mode, group = authorisation.socket_file()
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(unix_listener(config.socket, mode, group))
        metrics = None
        if (address := config.metrics.address) is not None:
            metrics = stack.enter_context(loopback_listener(address, "metrics"))
        dashboard = await stack.enter_async_context(open_dashboard(config, supervisor, mode, group))
        async with daemon_api(supervisor, listener, authorisation, metrics, dashboard):
            yield


def _own_directories(config: DaemonConfig) -> list[int]:
    """Make the directories, and be the only daemon that has them: descriptors for as long.

    Raises StateError.
    """
    modes = {
        config.run: PUBLIC_DIRECTORY,
        f"{config.run}/exports": OWNERS_DIRECTORY,
        config.state: OWNERS_DIRECTORY,
        config.records: OWNERS_DIRECTORY,
        config.group_records: OWNERS_DIRECTORY,
        config.logs: OWNERS_DIRECTORY,
    }
    try:
        for path, mode in modes.items():
            Path(path).mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"{error.filename}: {error.strerror}",
            hint="blkd.toml names the directories `state` and `run`, which must be this user's",
        ) from error
    with contextlib.ExitStack() as undo:
        # Of `run` itself whoever makes a socket in it has a lock for a moment.
        fds = [
            _lock(config.state, config.state, undo),
            _lock(f"{config.run}/exports", config.run, undo),
        ]
        undo.pop_all()
    return fds


def _lock(path: str, shown: str, undo: contextlib.ExitStack) -> int:
    """Be the only daemon that has a directory: a descriptor that `undo` closes.

    Raises StateError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StateError(
            f"another daemon has {shown}",
            hint="a second daemon needs a blkd.toml with other directories",
        ) from error
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    return fd


def _user_number(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(
            f"there is no user {name} whose the processes could be",
            hint="getent passwd tells the users of this host",
        ) from None
