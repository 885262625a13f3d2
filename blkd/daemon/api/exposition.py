# SPDX-License-Identifier: Apache-2.0
"""The metrics as a text that Prometheus reads, made off the event loop."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest

from blkd.daemon.api.exports import Exports
from blkd.daemon.metrics import families
from blkd.errors import NoAnswer
from blkd.host.blocking import ask

LIMIT: Final = 30.0  # seconds for a text: 200 exports take less than one


@dataclass(frozen=True, slots=True)
class _Collected:
    """Plays the registry that the library wants."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        """The families, once."""
        return self.families


class Exposition:
    """Makes the text for all who ask: one at a time, which those share who have waited for it."""

    def __init__(self, exports: Exports) -> None:
        self._exports = exports
        self._turn = asyncio.Lock()
        self._askers = 0
        self._text = b""
        self._began = 0.0
        """When the observation was begun that `_text` is of; it is kept only while others wait."""

    async def text(self) -> bytes:
        """The metrics of all exports, observed after this was called.  Raises NoAnswer."""
        now = asyncio.get_running_loop().time
        called = now()
        self._askers += 1
        try:
            async with self._turn:
                if not self._text or self._began < called:
                    began = now()
                    self._text, self._began = await self._make(), began
                return self._text
        finally:
            self._askers -= 1
            if not self._askers:
                self._text = b""

    async def _make(self) -> bytes:
        exports, groups = await self._exports.observe(), self._exports.groups.list()
        try:
            return await ask(lambda: generate_latest(_Collected(families(exports, groups))), LIMIT)
        except TimeoutError:
            raise NoAnswer(f"the metrics of {len(exports)} exports are not ready in time") from None
