# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol, QMP: commands and events, one JSON object a line.

_, qmp = await loop.create_connection(Qmp, sock=ours)
await qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="backend")
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from blkd.errors import BlkdError

LIMIT = 20.0


class QmpError(BlkdError):
    """QEMU refused a command, went away, or did not answer in time."""


class Qmp(asyncio.Protocol):
    """Sends commands, any number at a time, and keeps every event."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._rest = b""
        self._gone = False
        self._news = asyncio.Event()
        self.events: list[dict[str, Any]] = []
        """All that have come, in their order: `event`, `data`, `timestamp`."""

    async def execute(self, command: str, *, limit: float = LIMIT, **arguments: Any) -> Any:
        """What a command returns; underscores in argument names stand for hyphens.

        Raises QmpError with QEMU's own words when it is refused.
        """
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            async with asyncio.timeout(limit):
                answer = await self._ask({"execute": command, "arguments": words})
        except TimeoutError as error:
            raise QmpError(f"no answer in {limit} s to {command}") from error
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    async def event(
        self,
        name: str,
        wanted: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        since: int = 0,
        limit: float = LIMIT,
    ) -> dict[str, Any]:
        """The data of the first event of a name that is `wanted`, from `events[since]` on."""
        try:
            async with asyncio.timeout(limit):
                while True:
                    for event in self.events[since:]:
                        data: dict[str, Any] = event.get("data", {})
                        if event["event"] == name and wanted(data):
                            return data
                    if self._gone:
                        raise QmpError(f"QEMU is gone, without {name}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise QmpError(f"no {name} in {limit} s") from error

    def _ask(self, request: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self._gone:
            answer.set_exception(QmpError("QEMU is gone"))
            return answer
        number = next(self._ids)
        self._answers[number] = answer
        self._transport.write(json.dumps({**request, "id": number}).encode() + b"\n")
        return answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Leave the mode in which QEMU only negotiates; commands follow in their order."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask({"execute": "qmp_capabilities"})

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell everybody that QEMU has ended."""
        self._gone = True
        self._news.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(QmpError("QEMU is gone"))
                answer.exception()  # taken here: nobody may wait for it

    def data_received(self, data: bytes) -> None:
        """Take the lines that have come whole."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for message in map(json.loads, filter(None, (line.strip() for line in lines))):
            if "event" in message:
                self.events.append(message)
                self._news.set()
            elif "id" in message and not (answer := self._answers.pop(message["id"])).done():
                answer.set_result(message)
