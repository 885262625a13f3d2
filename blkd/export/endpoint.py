# SPDX-License-Identifier: Apache-2.0
"""A device of any kind at a socket: served to one front end at a time, paused, ended."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import structlog

from blkd.dataplane import DataPlane
from blkd.errors import DrainTimeout
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.frontends import FrontEnds
from blkd.export.pauses import Pause, Pauses
from blkd.export.views import PauseResult
from blkd.host import unix_socket
from blkd.virtio.device import Device

DRAIN_LIMIT: Final = 30.0  # seconds to drain before an image shrinks or the export ends

Stage = Literal["serving", "paused", "stopping"]

log = structlog.get_logger()


async def listen(path: str, config: EndpointConfig, undo: contextlib.ExitStack) -> socket.socket:
    """Listen for front ends at `path`; `undo` closes it and removes the file.

    Raises SocketError.
    """
    group = unix_socket.group_number(config.socket_group)
    sock = await unix_socket.listen_soon(path, config.socket_mode, group)
    undo.callback(sock.close)
    undo.callback(unix_socket.unlink_if_ours, path)
    return sock


class Endpoint:
    """One device, the data path behind it and the socket at which front ends connect.

    All three are borrowed.
    """

    def __init__(
        self, name: str, listener: socket.socket, device: Device, plane: DataPlane, pauses: Pauses
    ) -> None:
        self.name = name
        self.listener = listener
        """Where front ends connect, or one that came connected."""
        self.device = device
        self.plane = plane
        self.front_ends = FrontEnds(name, listener, device, plane)
        self._pauses = pauses
        self._ending = asyncio.Event()
        self._killed = False
        plane.on_fault = self.front_ends.drop

    async def serve(self, *beside: Callable[[], Awaitable[None]]) -> None:
        """Serve front ends, one after the other, until `stop` or `kill`.

        A socket that came connected is served until it closes.  What is to go on beside that is
        cancelled when it ends.  Raises DataPlaneError if a worker failed.
        """
        plane = self.plane
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(_as_coroutine(other)) for other in beside]
            accepting = tasks.create_task(self.front_ends.serve())
            accepting.add_done_callback(lambda _: self._ending.set())
            plane.failed.add_done_callback(lambda _: self._ending.set())
            await self._ending.wait()
            for other in others:
                other.cancel()
            if self._killed:
                plane.quit()
            try:
                # First of all: a front end that sees the connection close resumes from
                # the used index of that moment, which must not move any more.
                await self._pauses.begin(Pause.ENDING, DRAIN_LIMIT)
            except DrainTimeout:
                plane.abandon()
            await self.front_ends.end()
            accepting.cancel()
        if plane.failed.done():
            plane.failed.result()

    def stop(self) -> None:
        """Complete what is in flight, close the connection and have `serve` return."""
        self._ending.set()

    def kill(self) -> None:
        """Abandon what is in flight and have `serve` return at once."""
        self._killed = True
        if self._ending.is_set():
            self.plane.quit()
        self._ending.set()

    async def pause(self, deadline: float) -> PauseResult:
        """Fetch nothing more; wait up to `deadline` seconds for what is in flight."""
        drained = True
        try:
            await self._pauses.begin(Pause.ORDERED, deadline)
        except DrainTimeout as error:
            drained = False
            log.warning("pause incomplete", export=self.name, reason=str(error))
        else:
            log.info("paused", export=self.name)
        return PauseResult(Pause.ORDERED in self._pauses, drained, self.plane.in_flight)

    async def resume(self) -> None:
        """Fetch again, unless there is another reason not to."""
        if Pause.ORDERED in self._pauses:
            log.info("resumed", export=self.name)
        await self._pauses.end(Pause.ORDERED)

    @property
    def is_ending(self) -> bool:
        """Whether `serve` is about to return."""
        return self._ending.is_set()

    @property
    def stage(self) -> Stage:
        """What it does now."""
        if self.is_ending:
            return "stopping"
        return "paused" if Pause.ORDERED in self._pauses else "serving"


async def _as_coroutine(work: Callable[[], Awaitable[None]]) -> None:
    await work()
