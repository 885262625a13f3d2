# SPDX-License-Identifier: Apache-2.0
"""`blkd` run as people run it, beside guests: in asyncio, and it does not outlive us.

Where steps may block, signals matter or what runs is no `blkd serve`, it is `harness.daemon`.
"""

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from blkd.errors import BlkdError
from harness.process import kill, send, spawn

BLKD = Path(sys.executable).with_name("blkd")
START_LIMIT = 20.0
STOP_LIMIT = 10.0  # blkd promises 5 s; a test can then see that it took longer
CALL_LIMIT = 60.0


class ServerError(BlkdError):
    """blkd failed or refused; the message is what it wrote."""


async def blkd(*words: object, limit: float = CALL_LIMIT) -> Any:
    """What `blkd WORDS --json` prints.  Raises ServerError when it fails."""
    process = await spawn(BLKD, *words, "--json", stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(limit):
            out, err = await process.communicate()
    finally:
        await kill(process)
    if process.returncode != 0:
        raise ServerError(f"blkd {words[0]}: status {process.returncode}: {err.decode().strip()}")
    return json.loads(out)


class Server:
    """A running `blkd serve`, which may be stopped and started again on the same socket."""

    def __init__(self, command: tuple[object, ...], directory: Path, log: BinaryIO) -> None:
        self.socket = directory / "disk.sock"
        self.control = directory / "control.sock"
        self._command = (*command, "--socket", self.socket, "--control", self.control, "--json")
        self._log = log
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Serve; returns when blkd has said that it is ready.  Raises ServerError."""
        self._process = await spawn(*self._command, stdout=PIPE, stderr=self._log)
        await self._heard(self._process)

    async def upgrade(self) -> int:
        """Serve on in a new process: the exit status of the old one.  Raises ServerError."""
        old = self._process
        assert old is not None
        command = (BLKD, "upgrade", "--control", self.control, "--json")
        new = await spawn(*command, stdout=PIPE, stderr=self._log)
        try:
            await self._heard(new)
            async with asyncio.timeout(STOP_LIMIT):
                status = await old.wait()
        except BaseException:
            await kill(new)
            raise
        self._process = new
        return status

    async def _heard(self, process: Process) -> None:
        """Wait until a process has said that it serves."""
        assert process.stdout is not None
        async with asyncio.timeout(START_LIMIT):
            ready = await process.stdout.readline()
        if not ready:
            raise ServerError(f"blkd: status {await process.wait()}: {self.log()}")
        self.announced: dict[str, Any] = json.loads(ready)

    async def stop(self) -> int:
        """SIGTERM, as a service manager does: the exit status.  Raises TimeoutError."""
        assert self._process is not None
        send(self._process, signal.SIGTERM)
        async with asyncio.timeout(STOP_LIMIT):
            return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process is not None:
            await kill(self._process)

    async def call(self, verb: str, *words: object) -> Any:
        """The answer to `blkd VERB WORDS` for this export.  Raises ServerError."""
        try:
            return await blkd(verb, *words, "--control", self.control)
        except ServerError as error:
            raise ServerError(f"{error}\nblkd serve wrote:\n{self.log()}") from error

    def log(self) -> str:
        """All that it has written to stderr so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def serve(image: Path | str, *options: object) -> AsyncIterator[Server]:
    """`blkd serve IMAGE OPTIONS`, ready; at the end it is killed if it still runs."""
    with (
        tempfile.TemporaryDirectory(prefix="blkd-") as name,
        (Path(name) / "log").open("w+b") as log,
    ):
        server = Server((BLKD, "serve", image, *options), Path(name), log)
        try:
            await server.start()
            yield server
        except Exception as error:
            error.add_note(f"blkd serve wrote:\n{server.log()}")
            raise
        finally:
            await server.kill()


class Keeper:
    """A running `blkd daemon` with directories of its own; it and its exports may be killed."""

    def __init__(self, directory: Path, log: BinaryIO) -> None:
        self.socket = directory / "run" / "blkd.sock"
        self.images = directory / "images"
        self.images.mkdir()
        self._config = directory / "blkd.toml"
        self._config.write_text(
            'state = "state"\nrun = "run"\nimages = "images"\non-stop = "stop"\n'
        )
        self._log = log
        self._process: Process | None = None
        self._is_killed = False

    async def start(self) -> None:
        """Begin; returns when it answers.  Raises ServerError."""
        self._is_killed = False
        command = (BLKD, "daemon", "--config", self._config, "--json")
        self._process = await spawn(*command, stdout=PIPE, stderr=self._log)
        assert self._process.stdout is not None
        async with asyncio.timeout(START_LIMIT):
            ready = await self._process.stdout.readline()
        if not ready:
            raise ServerError(f"blkd daemon: status {await self._process.wait()}: {self.log()}")

    async def kill(self) -> None:
        """SIGKILL: its exports go on."""
        assert self._process is not None
        await kill(self._process)
        self._is_killed = True

    async def end(self) -> None:
        """End it with all of its exports, also after it was killed."""
        if self._is_killed:
            await self.start()
        with contextlib.suppress(TimeoutError):
            await self.stop()
        if self._process is not None:
            await kill(self._process)

    async def stop(self) -> int:
        """SIGTERM, which ends the exports too: the exit status.  Raises TimeoutError."""
        assert self._process is not None
        send(self._process, signal.SIGTERM)
        async with asyncio.timeout(STOP_LIMIT):
            return await self._process.wait()

    async def call(self, verb: str, *words: object) -> Any:
        """The answer to `blkd VERB WORDS`.  Raises ServerError."""
        try:
            return await blkd(verb, *words, "--daemon", self.socket)
        except ServerError as error:
            raise ServerError(f"{error}\nblkd daemon wrote:\n{self.log()}") from error

    def log(self) -> str:
        """All that it has written to stderr so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def keep() -> AsyncIterator[Keeper]:
    """`blkd daemon`, ready, and no exports yet; at the end none of its processes is left."""
    with (
        tempfile.TemporaryDirectory(prefix="blkd-") as name,
        (Path(name) / "log").open("w+b") as log,
    ):
        keeper = Keeper(Path(name), log)
        await keeper.start()
        try:
            yield keeper
        finally:
            await keeper.end()
