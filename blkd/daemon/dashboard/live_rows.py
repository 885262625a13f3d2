# SPDX-License-Identifier: Apache-2.0
"""The rows of all exports each second, for all who watch; nothing is done while nobody does."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from blkd.daemon.api.exports import Exports
from blkd.host.blocking import ask
from blkd.statistics.live_table import Row, Sample, Summary, known_figures, rows, summary

INTERVAL: Final = 1.0  # seconds between two looks
LOOK_LIMIT: Final = 10.0  # seconds for a look
STALE: Final = 3.0  # seconds after which figures are too old to measure from


class LiveLook(msgspec.Struct, frozen=True):
    """What is sent each second."""

    time: float
    """Seconds since 1970."""
    rows: Sequence[Row]
    summary: Summary


class LiveRows:
    """Looks, which all share who watch: the first who waits for the next one takes it."""

    def __init__(self, exports: Exports) -> None:
        self._exports = exports
        self._turn = asyncio.Lock()
        self._number = 0
        self._look = b""
        self._before: Sequence[Sample] = ()
        self._at = float("-inf")

    async def follow(self) -> AsyncIterator[bytes]:
        """Each look as JSON, for ever.

        The first one comes at once; what is measured is not known in it if nobody has watched.
        """
        number = 0
        while True:
            number, look = await self._next(number)
            yield look

    async def _next(self, seen: int) -> tuple[int, bytes]:
        """The look after the one with the number `seen`, or the last one of a later number."""
        async with self._turn:
            now = asyncio.get_running_loop().time
            if seen == self._number or now() - self._at > STALE:
                await asyncio.sleep(self._at + INTERVAL - now() if self._number else 0)
                await self._look_again(now())
            return self._number, self._look

    async def _look_again(self, now: float) -> None:
        samples = await take_samples(self._exports)
        before = self._before if now - self._at <= STALE else ()
        self._look = await ask(lambda: _encoded(before, samples), LOOK_LIMIT)
        self._before, self._at = samples, now
        self._number += 1


def _encoded(before: Sequence[Sample], now: Sequence[Sample]) -> bytes:
    """A look as JSON: 200 exports that do everything take 0.2 s, so not on the event loop."""
    table = rows(known_figures(before), now)
    return msgspec.json.encode(LiveLook(time.time(), table, summary(table)))


async def take_samples(exports: Exports) -> list[Sample]:
    """How all exports are at present."""
    figures = {each.name: each.figures for each in await exports.observe()}
    return [
        Sample(each.name, each.state, each.reason, figures.get(each.name))
        for each in exports.list()
    ]
