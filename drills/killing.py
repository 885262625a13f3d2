# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments, and another back end in the place of the dead one."""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from harness.server import Server, serve

RULES = "delay=2ms@write/5,delay=7ms@read/11,delay=3ms@flush/3,short@any/17"
"""Some requests take longer than those behind them, so that each death finds a disorder."""


@contextlib.contextmanager
def image(size: int) -> Iterator[Path]:
    """An empty image, for a while."""
    with tempfile.TemporaryDirectory(prefix="drill-") as directory:
        path = Path(directory) / "disk.img"
        with path.open("xb") as file:
            file.truncate(size)
        yield path


@contextlib.asynccontextmanager
async def unreliable(path: Path, *options: object, rules: str = RULES) -> AsyncIterator[Server]:
    """`blkd serve` on an image of which some requests are slow, or fail."""
    async with serve(f"faulty:{rules}:{path}", *options) as server:
        yield server


START_LIMIT = 20.0  # seconds until a load has begun


class Killer:
    """Kills a server again and again, and counts."""

    def __init__(
        self, server: Server, longest: float, seed: int, *, in_handshake: bool = True
    ) -> None:
        """With `in_handshake` it also kills while a front end is only connecting."""
        self.kills = 0
        self._in_handshake = in_handshake
        self._server = server
        self._longest = longest
        self._random = random.Random(seed)  # noqa: S311 - no secret

    async def run(self, rounds: int, load: asyncio.Task[object]) -> None:
        """Kill up to `rounds` times, each at some moment of a life, while a load goes on.

        A life is `longest` seconds at the most; the last one is left to end the load.
        """
        await self._under_load(load)
        for _ in range(rounds):
            if not self._in_handshake:
                await self._served(load)
            moment = self._random.uniform(0, self._longest)
            await asyncio.wait([load], timeout=moment)
            if load.done():
                return
            await self._server.kill()
            self.kills += 1
            await self._server.start()

    async def _under_load(self, load: asyncio.Task[object]) -> None:
        """Wait until requests are answered; the first life is not to end before it has begun."""
        before = await self._answered()
        async with asyncio.timeout(START_LIMIT):
            while not load.done() and await self._answered() == before:
                pass

    async def _answered(self) -> int:
        counted = (await self._server.call("stats"))["total"]
        return int(counted["reads"] + counted["writes"])

    async def _served(self, load: asyncio.Task[object]) -> None:
        """Wait until the front end has its rings running again."""
        async with asyncio.timeout(START_LIMIT):
            while not load.done():
                front_end = (await self._server.call("show"))["front_end"]
                if front_end and any(ring["started"] for ring in front_end["rings"]):
                    return
