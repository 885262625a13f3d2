# SPDX-License-Identifier: Apache-2.0
"""The host's end of the channel to the guest's init; that file says what the lines look like."""

import asyncio
import base64
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blkd.errors import BlkdError


class GuestError(BlkdError):
    """The guest did not boot, went away, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a script in the guest ended."""

    status: int
    stdout: str
    stderr: str


class Agent(asyncio.Protocol):
    """Sends scripts, any number at a time, and hands each its answer."""

    def __init__(self) -> None:
        self._tokens = itertools.count()
        self._answers: dict[bytes, asyncio.Future[Answer]] = {}
        self._rest = b""
        self.expect_boot()

    def expect_boot(self) -> None:
        """From now on `ready` means a boot yet to come: its result will be the kernel's release."""
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def ask(self, script: str) -> asyncio.Future[Answer]:
        """Send a script; the future is done when the script has ended."""
        token = b"%d" % next(self._tokens)
        answer = self._answers[token] = asyncio.get_running_loop().create_future()
        self._transport.write(token + b" " + base64.b64encode(script.encode()) + b"\n")
        return answer

    def follow(self, other: "Agent") -> None:
        """Speak for the guest that `other` spoke for: what was asked there is answered here.

        The guest stands still, and all that it had said has come.
        """
        self._tokens, self._rest, self.ready = other._tokens, other._rest, other.ready  # noqa: SLF001 - of our own kind
        self._answers, other._answers = other._answers, {}  # noqa: SLF001 - likewise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the guest."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell everybody that QEMU has ended."""
        self._fail([*self._answers.values(), self.ready], "the guest is gone")

    def data_received(self, data: bytes) -> None:
        """Take the lines that have come whole."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            first, *fields = line.split(b" ")
            if first == b"ready":
                self._fail(self._answers.values(), "the guest has started anew")
                self._answers.clear()
                if not self.ready.done():
                    self.ready.set_result(fields[0].decode())
            elif not (answer := self._answers.pop(first)).done():
                out, err = (
                    base64.b64decode(field).decode(errors="replace") for field in fields[1:]
                )
                answer.set_result(Answer(int(fields[0]), out, err))

    @staticmethod
    def _fail(waiting: Iterable[asyncio.Future[Any]], why: str) -> None:
        for future in waiting:
            if not future.done():
                future.set_exception(GuestError(why))
                future.exception()  # taken here, so that asyncio does not log those nobody awaits
