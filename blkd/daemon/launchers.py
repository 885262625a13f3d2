# SPDX-License-Identifier: Apache-2.0
"""The launcher of a daemon, begun anew where it has ended; and how its processes have ended."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import Final

import structlog

import blkd
from blkd.daemon import orders
from blkd.daemon.launching import Launched, Launcher
from blkd.errors import LaunchError
from blkd.host.blocking import ask

REPORT_LIMIT: Final = 1.0  # seconds between the end of a process and the launcher's word of it
FILES_LIMIT: Final = 10.0  # seconds for the files of blkd to be looked at

Files = frozenset[tuple[str, int, int]]
"""Of each file its path, number and time of change."""

log = structlog.get_logger()


class Launchers:
    """One launcher at a time takes orders; earlier ones live as long as their processes."""

    def __init__(self) -> None:
        self._launcher: Launcher | None = None
        self._earlier: list[Launcher] = []
        self._files: Files | None = None
        """Those of `_launcher`, if they are known."""
        self._own: set[int] = set()
        """Processes that `_launcher` has started."""
        self._ends: dict[int, asyncio.Future[int]] = {}

    def begin(self) -> Launcher:
        """The launcher that takes orders.  Raises LaunchError where none can be begun."""
        if self._launcher is None:
            begun = Launcher.start(on_end=self._take, on_gone=lambda: self._lose(begun))
            self._launcher = begun
            log.info("launcher started", pid=begun.pid)
        return self._launcher

    async def renew(self, pid: int | None) -> None:
        """Have one of the files that are installed now, and not that of process `pid`.

        Processes of one launcher share memory: those that are upgraded one after the other get the
        same.  Raises LaunchError.
        """
        try:
            files = await ask(installed, FILES_LIMIT)
        except (TimeoutError, OSError) as error:
            raise LaunchError(f"the files of blkd cannot be looked at: {error}") from error
        before = self._launcher
        if before is not None and files == self._files and pid not in self._own:
            return
        self._launcher = None
        self._own.clear()
        self.begin()
        self._files = files
        if before is not None:
            self._earlier.append(before)
            before.retire()

    async def launch(
        self,
        order: orders.Launch,
        *,
        log: int,
        control: socket,
        listeners: Sequence[socket],
        statistics: Sequence[int] = (),
    ) -> Launched:
        """Start a process: see `Launcher.launch`."""
        launcher = self.begin()
        return self._expect(
            await launcher.launch(
                order, log=log, control=control, listeners=listeners, statistics=statistics
            )
        )

    async def take(
        self, order: orders.Take, *, log: int, statistics: Sequence[int] = ()
    ) -> Launched:
        """Start a process that serves on what another one serves: see `Launcher.take`."""
        return self._expect(await self.begin().take(order, log=log, statistics=statistics))

    def _expect(self, launched: Launched) -> Launched:
        """Have a process's end kept for who asks."""
        self._own.add(launched.pid)
        self._end(launched.pid)
        return launched

    async def end_of(self, pid: int) -> str:
        """How a process that has ended, and is asked after once, has ended, in words."""
        if pid not in self._ends:
            return "has ended"
        try:
            async with asyncio.timeout(REPORT_LIMIT):
                return ending(await self._ends[pid])
        except TimeoutError:  # its launcher has ended too
            return "has ended"
        finally:
            self._ends.pop(pid, None)

    def _end(self, pid: int) -> "asyncio.Future[int]":
        if pid not in self._ends:
            self._ends[pid] = asyncio.get_running_loop().create_future()
        return self._ends[pid]

    def _take(self, ended: orders.Ended) -> None:
        future = self._end(ended.pid)
        if not future.done():
            future.set_result(ended.status)

    def _lose(self, launcher: Launcher) -> None:
        if launcher in self._earlier:
            self._earlier.remove(launcher)
            return
        log.warning("launcher ended", pid=launcher.pid)
        if self._launcher is launcher:
            self._launcher = None
            self._own.clear()


def installed() -> Files:
    """What distinguishes the files of this package from those of another version."""
    found = Path(blkd.__file__).parent.rglob("*")
    kinds = {".py", ".so"}
    states = [(str(path), path.stat()) for path in found if path.suffix in kinds]
    return frozenset((path, state.st_ino, state.st_mtime_ns) for path, state in states)


def ending(status: int) -> str:
    """What a status of wait(2) says, as the end of a sentence."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"has ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
