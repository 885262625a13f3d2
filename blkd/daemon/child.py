# SPDX-License-Identifier: Apache-2.0
"""The process of one export, from the launcher's fork to its end.

With the launcher's rights it opens what stands behind the device, in an event loop that has ended
before anything is given up; then it serves in another one.
"""

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePath
from typing import Final, NoReturn, Protocol

import msgspec
import structlog

from blkd import hosting
from blkd.control import client, models
from blkd.daemon import orders
from blkd.daemon.adoption import title
from blkd.daemon.confining import Confined
from blkd.daemon.places import open_place
from blkd.daemon.plain_settings import read_settings
from blkd.errors import BlkdError, LaunchError
from blkd.export import net_export, vsock_export
from blkd.export.config import ExportConfig
from blkd.export.disk import open_image_of
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.export import Export
from blkd.export.net_config import NetConfig
from blkd.export.vsock_config import VsockConfig
from blkd.host import log as log_events
from blkd.host import signals, unix_socket
from blkd.host.confinement import close_all_but
from blkd.host.sandbox_policy import Confinement
from blkd.image.kinds import path_of
from blkd.image.opener import AskingOpener, Opener
from blkd.statistics.area import Area
from blkd.upgrade.taker import ExportTaker

STDERR: Final = 2

log = structlog.get_logger()


class _Served(hosting.Hosted, Protocol):
    """What the process serves."""

    confinement: Confinement | None
    """What is in force of the sandbox, to be shown."""

    async def start_workers(self) -> None:
        """Start all threads that serve requests."""

    @property
    def is_restricted(self) -> bool:
        """Whether their io_urings do only what they were made for."""


Assemble = Callable[[], Awaitable[_Served]]
"""Makes an export of what was opened, in the event loop in which it is served."""


def preload() -> None:
    """Import what is imported only where it is needed: here, before the first fork."""
    import concurrent.futures.thread  # noqa: F401, PLC0415 - the executor of an event loop

    from blkd.control import lending, server  # noqa: F401, PLC0415
    from blkd.upgrade import giver  # noqa: F401, PLC0415


def run(order: orders.Order, fds: Sequence[int], opening: socket.socket | None = None) -> NoReturn:
    """Carry out an order in this process, which was forked for it, and end.

    At the other end of `opening` is who opens its image once more, if that is not this process.
    """
    status = 1
    # What was the launcher's: Python's objects for it stay in its part of the stack, unclosed.
    close_all_but([*fds, *([] if opening is None else [opening.fileno()])])
    ready, stderr, *rest = fds
    outcome = _Outcome(ready)
    try:
        _settle_in(order.name, stderr)
        opener = None if opening is None else AskingOpener(opening)
        _serve(order, outcome, rest, opener)
        status = 0
    except BlkdError as error:
        log.error("not served", reason=str(error), hint=error.hint)  # noqa: TRY400
        outcome.fail(error)
    except BaseException:
        log.exception("the process of an export failed")
        outcome.fail(LaunchError("the process failed", hint="its log tells more"))
    finally:
        log_events.release()
        signals.exit_now(status)


class _Outcome:
    """What the supervisor is told of this process, once; it waits for that."""

    def __init__(self, fd: int) -> None:
        """Takes `fd`."""
        os.set_blocking(fd, True)
        self._fd = fd

    def announce(self, state: object) -> None:
        """Say that front ends are served; who has nobody to tell has nobody to serve for."""
        try:
            self._say_ready(state)
        except OSError:
            log.warning("nobody waits for this process any more")
            signals.end()

    def announce_taken(self, state: object) -> None:
        """The same; who has nobody to tell serves on all the same, as nobody else does."""
        try:
            self._say_ready(state)
        except OSError:
            log.warning("taken over for a daemon that has ended")

    def _say_ready(self, state: object) -> None:
        gc.freeze()  # what has lasted so far lasts to the end
        self._say(orders.Ready(msgspec.Raw(msgspec.json.encode(state))))

    def fail(self, error: BlkdError) -> None:
        """Say why not, if nothing was said yet."""
        with contextlib.suppress(OSError):  # nobody wants to know any more
            self._say(orders.Failed(type(error).__name__, str(error), error.hint))

    def _say(self, outcome: orders.Outcome) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with open(fd, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            left = memoryview(orders.encode(outcome) + b"\n")
            while left:
                left = left[file.write(left) or 0 :]


def _settle_in(name: str, stderr: int) -> None:
    """Be a process of its own: with a log, a name, and signals that end it."""
    for number in signals.SIGNALS:  # also as the first process of a namespace
        signal.signal(number, lambda *_: os._exit(0))
    os.dup2(stderr, STDERR)
    os.close(stderr)
    log_events.name_export(name)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_bytes(title(name))


def _serve(
    order: orders.Order, outcome: _Outcome, fds: Sequence[int], opener: AskingOpener | None
) -> None:
    area, sockets = (Area(*fds[:2]), fds[2:]) if order.statistics else (None, fds)
    match order:
        case orders.Launch():
            _launch(order, outcome, area, sockets, opener)
        case orders.Take():
            _take(order, outcome, area, opener)


def _launch(
    order: orders.Launch,
    outcome: _Outcome,
    area: Area | None,
    sockets: Sequence[int],
    opener: AskingOpener | None,
) -> None:
    control, *listeners = map(unix_socket.adopt, sockets)
    config = read_settings(order.device, order.name, order.settings, PurePath(order.run))
    assemble = asyncio.run(
        _open_disk(config, order.places, opener, area, *listeners)
        if isinstance(config, ExportConfig)
        else _open_device(config, listeners)
    )
    if opener is not None:
        opener.close_unless_remembered()
    confined = Confined(order.sandbox, config)
    signals.hold()
    log_events.release()

    async def opening(_stack: contextlib.AsyncExitStack, _settled: asyncio.Event) -> hosting.Opened:
        export = await assemble()
        await export.start_workers()
        export.confinement = confined.seal(io_uring_restricted=export.is_restricted)
        for listener in (control, *export.listeners):
            unix_socket.own(listener)
        return hosting.Opened(export, control)

    hosting.host(opening, outcome.announce)


def _take(
    order: orders.Take, outcome: _Outcome, area: Area | None, opener: AskingOpener | None
) -> None:
    async def prepared(export: Export) -> None:
        await export.start_workers()
        export.confinement = confined.seal(io_uring_restricted=export.is_restricted)

    sock = client.switch(order.control, models.UPGRADE, models.UPGRADE_PROTOCOL)
    taker = ExportTaker(prepared, opener=opener, removes_socket=False, area=area)
    asyncio.run(taker.ask(sock))
    if opener is not None:
        opener.close_unless_remembered()
    confined = Confined(order.sandbox)
    signals.hold()
    log_events.release()

    async def opening(stack: contextlib.AsyncExitStack, settled: asyncio.Event) -> hosting.Opened:
        return await hosting.take(taker, sock, stack, settled)

    hosting.host(opening, outcome.announce_taken)


async def _open_device(config: EndpointConfig, listeners: Sequence[socket.socket]) -> Assemble:
    """Open what stands behind a device: what makes an export of it.  Raises BlkdError."""
    match config:
        case NetConfig():
            served = net_export.open_tap(config)
            return functools.partial(net_export.export_of, config, served, *listeners)
        case VsockConfig():
            hosts = await vsock_export.listen_for_programs(config)
            return functools.partial(vsock_export.export_of, config, hosts, listeners)
    raise NotImplementedError(config)


async def _open_disk(
    config: ExportConfig,
    places: orders.Places | None,
    opener: Opener | None,
    area: Area | None,
    listener: socket.socket,
) -> Assemble:
    """Open an image: what makes an export of it.  Raises BlkdError."""
    path = path_of(config.image)
    with contextlib.ExitStack() as undo:
        at = None
        if places is not None and path is not None:
            fd = open_place(path, places.directories, places.devices)
            undo.callback(os.close, fd)
            at = f"/proc/self/fd/{fd}"  # whatever has become of the path meanwhile
        image = await open_image_of(config, at, opener)

    async def assemble() -> Export:
        export = Export(config)
        export.use(image, listener, area)
        return export

    return assemble
