# SPDX-License-Identifier: Apache-2.0
"""An export in this process: opened, announced, served until a signal ends it."""

import asyncio
import contextlib
import functools
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from blkd.errors import BlkdError
from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.export import Export
from blkd.host import log as log_events
from blkd.host import signals, systemd, unix_socket
from blkd.host.blocking import ask

if TYPE_CHECKING:
    from blkd.upgrade.taker import ExportTaker

DRAIN_LIMIT = 4.0  # seconds for the requests in flight when the process is to end
KILL_LIMIT = 0.5  # seconds for the rest after that
ANNOUNCE_LIMIT = 1.0  # seconds until whoever started it is expected to have read so


class Hosted(Protocol):
    """What a process serves: the export of a disk, or of other devices."""

    @property
    def config(self) -> EndpointConfig:
        """What it is called, and who may connect."""

    @property
    def statistics(self) -> Sequence[int]:
        """Its statistics area, if it has one, and the eventfd of that, likewise; borrowed."""

    @property
    def listeners(self) -> Iterable[socket.socket]:
        """Where front ends connect; borrowed."""

    def show(self) -> object:
        """All there is to know but the counters."""

    def stats(self) -> object:
        """The counters."""

    def in_flight(self) -> object:
        """The requests in flight, or raise RequestRefused where only a disk lists them."""

    def figures(self) -> object:
        """What was counted and measured, or raise RequestRefused where only a disk has that."""

    async def resize(self, size: int, *, force: bool = False) -> object:
        """Make it `size` bytes long, or raise RequestRefused where it has no size."""

    async def pause(self, deadline: float) -> object:
        """Fetch nothing more; wait up to `deadline` seconds for what is in flight."""

    async def resume(self) -> None:
        """Fetch again."""

    def limits(self) -> object:
        """The limits that are kept, or raise RequestRefused where there never are any."""

    async def limit(self, text: str) -> object:
        """Keep other limits from now on.  Raises BlkdError."""

    async def retry(self) -> object:
        """Begin held requests again, or raise RequestRefused where none are ever held."""

    async def refresh(self) -> None:
        """Look again at what stands behind it.  Raises BlkdError or OSError."""

    async def serve(self) -> None:
        """Serve until `stop` or `kill`, then close."""

    def stop(self) -> None:
        """Complete what is in flight and have `serve` return."""

    def kill(self) -> None:
        """Have `serve` return at once."""

    def close(self) -> None:
        """Release everything, unless `serve` has done so."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is ready to be served."""

    export: Hosted
    control: socket.socket | None
    """The socket of its API."""


Announce = Callable[[object], None]
Opening = Callable[[contextlib.AsyncExitStack, asyncio.Event], Awaitable[Opened]]
"""Makes an export ready to serve; what it pushes undoes that.  A signal cancels it until it sets
the event, unless it finds that this comes too late."""
Converse = Callable[[socket.socket], Awaitable[None]]
"""Speaks another protocol on a connection of the control API."""

log = structlog.get_logger()


def run(config: ExportConfig, announce: Announce, fd: int | None = None) -> None:
    """Serve the export of `config`; returns when it has ended.

    The caller has called `signals.hold`.  SIGTERM and SIGINT drain and end, a second one
    ends at once; SIGHUP reads the image's size again.

    Args:
        config: What is served, and how.
        announce: Called with the export's state once front ends can connect.
        fd: A socket left open by the parent, listening or connected, to serve instead of
            one at `config.socket`.
    """
    log_events.name_export(config.name)
    sock = None if fd is None else unix_socket.adopt(fd)

    async def make() -> Export:
        export = Export(config)
        await export.open(sock)
        return export

    host(functools.partial(_open, config, make), announce)


def run_devices(
    config: EndpointConfig, make: Callable[[], Awaitable[Hosted]], announce: Announce
) -> None:
    """Serve devices that `make` makes ready; for the rest see `run`."""
    log_events.name_export(config.name)
    host(functools.partial(_open, config, make), announce)


async def _open(
    config: EndpointConfig,
    make: Callable[[], Awaitable[Hosted]],
    stack: contextlib.AsyncExitStack,
    _settled: asyncio.Event,
) -> Opened:
    control = await _listen_for_control(config, stack)
    return Opened(await make(), control)


def take_over(control: str, limit: float, announce: Announce) -> None:
    """Serve on, in its place, what another process serves; for the rest see `run`.

    Args:
        control: Path of that process's control socket.
        limit: Seconds that it has to answer the call.
        announce: Called with the export's state once this process serves it.
    """
    # Only this needs a client of the API, and only once: nobody else has it in memory.
    from blkd.control import client, models  # noqa: PLC0415
    from blkd.upgrade.taker import ExportTaker  # noqa: PLC0415

    call = functools.partial(
        client.switch, control, models.UPGRADE, models.UPGRADE_PROTOCOL, limit=limit
    )

    async def opening(stack: contextlib.AsyncExitStack, settled: asyncio.Event) -> Opened:
        taken = await take(ExportTaker(), await asyncio.to_thread(call), stack, settled)
        if (path := taken.export.config.control) is not None:
            stack.callback(unix_socket.unlink_if_ours, path)
        return taken

    host(opening, announce)


async def take(
    taker: "ExportTaker",
    sock: socket.socket,
    stack: contextlib.AsyncExitStack,
    settled: asyncio.Event,
) -> Opened:
    """What the process at the other end of `sock`, which is taken, has served so far.

    The rest is as `Opening` has it.  Raises BlkdError: that process serves on.
    """
    with sock:
        await taker.take(sock)
        settled.set()
        await taker.begin()
    stack.enter_context(taker.control)
    return Opened(taker.export, taker.control)


def host(opening: Opening, announce: Announce) -> None:
    """Serve the export that `opening` makes ready; for the rest see `run`."""
    _allow_descriptors()
    runner = asyncio.Runner()  # not closed: that would wait for a thread stuck in the disk
    try:
        runner.run(_Host(opening, announce).run())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _allow_descriptors() -> None:
    """Let this process have as many descriptors as it may: guest memory is one a region."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that tasks put it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _listen_for_control(
    config: EndpointConfig, stack: contextlib.AsyncExitStack
) -> socket.socket | None:
    """Listen for the control API, before anything is served: failures are found first."""
    if config.control is None:
        return None
    group = unix_socket.group_number(config.control_group)
    listening = await unix_socket.listen_soon(config.control, config.control_mode, group)
    sock = stack.enter_context(listening)
    stack.callback(unix_socket.unlink_if_ours, config.control)
    return sock


class _Host:
    """The life of an export between its start and the signal that ends it."""

    def __init__(self, opening: Opening, announce: Announce) -> None:
        self._opening = opening
        self._announce = announce
        self._export: Hosted
        self._settled = asyncio.Event()
        self._ready = asyncio.Event()

    async def run(self) -> None:
        arrivals: asyncio.Queue[int] = asyncio.Queue()
        deliver = asyncio.get_running_loop().call_soon_threadsafe
        signals.forward(lambda number: deliver(arrivals.put_nowait, number))
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serve())
            obeying = tasks.create_task(self._obey(arrivals, serving))
            serving.add_done_callback(lambda _: obeying.cancel())

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._opening(stack, self._settled)
            self._export = opened.export
            stack.callback(self._export.close)
            if opened.control is not None:
                # Only this needs HTTP.
                from blkd.control.server import control_api  # noqa: PLC0415

                give = _giving(self._export, opened.control)
                lend = _lending(self._export, opened.control)
                api = control_api(self._export, opened.control, give, signals.end, lend)
                await stack.enter_async_context(api)
            self._ready.set()
            systemd.ready(f"serving {self._export.config.name}")
            state = self._export.show()
            with contextlib.suppress(OSError):  # nobody reads it in time, or no thread: it goes on
                await ask(functools.partial(self._announce, state), ANNOUNCE_LIMIT)
            await self._export.serve()

    async def _obey(self, arrivals: asyncio.Queue[int], serving: asyncio.Task[None]) -> None:
        async with asyncio.TaskGroup() as refreshes:
            while await arrivals.get() == signal.SIGHUP:
                refreshes.create_task(self._refresh())
            systemd.stopping()
            if not (self._ready.is_set() or self._settled.is_set()):
                serving.cancel()
            await self._ready.wait()
            log.info("stopping", export=self._export.config.name)
            self._export.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_LIMIT):
                    while await arrivals.get() == signal.SIGHUP:
                        pass
            self._export.kill()
            await asyncio.sleep(KILL_LIMIT)
            log.warning("left with work undone", export=self._export.config.name)
            signals.exit_now(0)

    async def _refresh(self) -> None:
        systemd.reloading()
        await self._ready.wait()
        try:
            await self._export.refresh()
        except (BlkdError, OSError) as error:
            log.warning("not refreshed", export=self._export.config.name, reason=str(error))
        systemd.ready(f"serving {self._export.config.name}")


def _giving(export: Hosted, control: socket.socket) -> Converse | None:
    """What gives the export to another process; None where that is not possible."""
    if not isinstance(export, Export):
        return None
    # Only who has an API needs this, and then before the files may be another version's.
    from blkd.upgrade.giver import ExportGiver  # noqa: PLC0415

    giver = ExportGiver(export, control)

    async def give(sock: socket.socket) -> None:
        if await giver.give(sock) is not None:
            signals.exit_now(0)  # at once: nothing here may touch the disk any more

    return give


def _lending(export: Hosted, control: socket.socket) -> Converse:
    """What sends the sockets that listen to a supervisor that does not have them."""
    from blkd.control.lending import lend  # noqa: PLC0415 - only who has an API needs this

    return lambda sock: lend(sock, [control, *export.listeners], export.statistics)
