# SPDX-License-Identifier: Apache-2.0
"""One export in this process: opened, announced, served until a signal ends it."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import structlog

from blkd import listener, systemd
from blkd.cli import signals
from blkd.config import ExportConfig
from blkd.errors import BlkdError
from blkd.export import Export, ExportState

DRAIN_LIMIT = 4.0  # seconds for the requests in flight when the process is to end
KILL_LIMIT = 0.5  # seconds for the rest after that
CONTROL_MODE = 0o600  # the API can end a disk: for its owner only

Announce = Callable[[ExportState], None]

log = structlog.get_logger()


def run(config: ExportConfig, announce: Announce, fd: int | None = None) -> None:
    """Serve the export of `config`; returns when it has ended.

    The caller has called `signals.hold`.  SIGTERM and SIGINT drain and end, a second one
    ends at once; SIGHUP reads the image's size again.

    Args:
        config: What is served, and how.
        announce: Told the export's state once front ends can connect.
        fd: A socket left open by the parent, listening or connected, to serve instead of
            one at `config.socket`.
    """
    sock = None if fd is None else listener.adopt(fd)
    runner = asyncio.Runner()  # not closed: that would wait for a thread stuck in the disk
    try:
        runner.run(_Host(config, announce).run(sock))
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that tasks put it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Host:
    """The life of an export between its start and the signal that ends it."""

    def __init__(self, config: ExportConfig, announce: Announce) -> None:
        self._config = config
        self._announce = announce
        self._export = Export(config)
        self._ready = asyncio.Event()

    async def run(self, sock: socket.socket | None) -> None:
        arrivals: asyncio.Queue[int] = asyncio.Queue()
        deliver = asyncio.get_running_loop().call_soon_threadsafe
        signals.forward(lambda number: deliver(arrivals.put_nowait, number))
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serve(sock))
            obeying = tasks.create_task(self._obey(arrivals, serving))
            serving.add_done_callback(lambda _: obeying.cancel())

    async def _serve(self, sock: socket.socket | None) -> None:
        async with contextlib.AsyncExitStack() as stack:
            control = self._listen_for_control(stack)
            await self._export.open(sock)
            stack.callback(self._export.close)
            if control is not None:
                # Only this needs HTTP.
                from blkd.control.server import control_api  # noqa: PLC0415

                await stack.enter_async_context(control_api(self._export, control))
            self._ready.set()
            state = self._export.show()
            systemd.ready(f"serving {state.image}")
            self._announce(state)
            await self._export.serve()

    def _listen_for_control(self, stack: contextlib.AsyncExitStack) -> socket.socket | None:
        """Claim the control socket early: what can be refused is refused before serving."""
        path = self._config.control
        if path is None:
            return None
        sock = stack.enter_context(listener.listen(path, CONTROL_MODE))
        stack.callback(listener.unlink_if_ours, path)
        return sock

    async def _obey(self, arrivals: asyncio.Queue[int], serving: asyncio.Task[None]) -> None:
        async with asyncio.TaskGroup() as refreshes:
            while await arrivals.get() == signal.SIGHUP:
                refreshes.create_task(self._refresh())
            systemd.stopping()
            if not self._ready.is_set():
                serving.cancel()
                return
            log.info("stopping", export=self._config.name)
            self._export.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_LIMIT):
                    while await arrivals.get() == signal.SIGHUP:
                        pass
            self._export.kill()
            await asyncio.sleep(KILL_LIMIT)
            log.warning("left with work undone", export=self._config.name)
            signals.leave(0)

    async def _refresh(self) -> None:
        systemd.reloading()
        await self._ready.wait()
        try:
            await self._export.refresh_size()
        except (BlkdError, OSError) as error:
            log.warning("size not refreshed", export=self._config.name, reason=str(error))
        systemd.ready(f"serving {self._config.image}")
