# SPDX-License-Identifier: Apache-2.0
"""Bytes go to a guest over its network and come back, while blkd is killed now and then."""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from drills.outcome import Outcome
from harness.guest import Guest, Machine, Net
from harness.network import Namespace
from harness.server import BLKD, Server

MIB = 1 << 20
ROUND = 128 * MIB  # there and back
PIECE = MIB
ROUNDS_A_KILL = 4
HOST, GUEST = "10.1.0.1", "10.1.0.2"
THERE, BACK = 5000, 5001  # ports
LIMIT = 300.0  # seconds of a round


async def drill(rounds: int) -> Outcome:
    """Send `rounds` times 128 MiB to a guest, which sends them back; an error is a wrong byte.

    In the middle of each fourth blkd is killed, and another goes on: the connections live.
    """
    machine = await Machine.prepare()
    figures = {"bytes verified": 0, "kills": 0}
    errors = 0
    with Namespace() as namespace:
        namespace.tap(address=f"{HOST}/24")
        async with _served(namespace) as server, machine.boot(Net(server.socket), cpus=2) as guest:
            await guest.run(f"ip link set eth0 up; ip address add {GUEST}/24 dev eth0")
            for number in range(rounds):
                transfer = Transfer(number)
                kills = number % ROUNDS_A_KILL == 0
                errors += await transfer.run(namespace, guest, server if kills else None)
                figures["bytes verified"] += transfer.verified
                figures["kills"] += kills
            errors += len(await guest.kernel_errors())
    return Outcome(drill="network transfer", rounds=rounds, errors=errors, figures={**figures})


@contextlib.asynccontextmanager
async def _served(namespace: Namespace) -> AsyncIterator[Server]:
    """`blkd net` in the namespace."""
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "log").open("w+b") as log,
    ):
        command = (*namespace.entering, BLKD, "net", "--tap", "tap0")
        server = Server(command, Path(directory), log)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


class Transfer:
    """One round: what is sent, and how much of it has come back."""

    def __init__(self, seed: int) -> None:
        self._data = random.Random(seed).randbytes(PIECE)  # noqa: S311 - no secret
        self._half, self._goes_on = asyncio.Event(), asyncio.Event()
        self._wrong = 0
        self._done = asyncio.Event()
        self.verified = 0

    async def run(self, namespace: Namespace, guest: Guest, killed: Server | None) -> int:
        """Send and compare, and kill a server in the middle, if any: the pieces that are wrong."""
        if killed is None:
            self._goes_on.set()
        with namespace.inside():
            there = await asyncio.start_server(self._send, HOST, THERE)
            back = await asyncio.start_server(self._receive, HOST, BACK)
        async with there, back, asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
            pipe = f"nc {HOST} {THERE} | nc {HOST} {BACK}"
            passing = tasks.create_task(guest.run(pipe, limit=LIMIT))
            if killed is not None:
                await self._half.wait()
                await restart(killed)
                self._goes_on.set()
            await self._done.wait()
            await passing
        return self._wrong + (self.verified != ROUND)

    async def _send(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(ROUND // PIECE):
            if number == ROUND // PIECE // 2:
                self._half.set()
                await self._goes_on.wait()
            writer.write(self._piece(number))
            await writer.drain()
        writer.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for number in range(ROUND // PIECE):
                self._wrong += await reader.readexactly(PIECE) != self._piece(number)
                self.verified += PIECE
        writer.close()
        self._done.set()

    def _piece(self, number: int) -> bytes:
        """Piece `number`: no two of a round are the same."""
        return self._data[number:] + self._data[:number]


async def restart(server: Server) -> None:
    """Kill blkd and start another at the same sockets."""
    await server.kill()
    for path in (server.socket, server.control):
        path.unlink(missing_ok=True)
    await server.start()
