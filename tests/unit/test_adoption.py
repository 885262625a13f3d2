# SPDX-License-Identifier: Apache-2.0
"""A process that an earlier daemon has left, and that somebody else's code may run in."""

import asyncio
import contextlib
import functools
import os

import pytest

from blkd.control import client, models
from blkd.control.lending import lend
from blkd.control.server import control_api
from blkd.daemon import adoption
from blkd.errors import LaunchError
from blkd.host import unix_socket


class Named:
    """An export as far as it is asked for here."""

    def show(self):
        return {"name": "web"}


@contextlib.asynccontextmanager
async def lending(path, sockets):
    with unix_socket.listen(path, 0o600) as sock:
        lends = functools.partial(lend, sockets=sockets or [sock])
        async with control_api(Named(), sock, None, lambda: None, lends):
            yield


async def test_another_control_socket_is_not_adopted(tmp_path):
    path = str(tmp_path / "control")
    with unix_socket.listen(str(tmp_path / "precious"), 0o600) as other:
        async with lending(path, [other]):
            with pytest.raises(LaunchError, match="another socket"):
                await asyncio.to_thread(adoption.find, path, "web", os.getpid())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000_000, id="never-begins"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 1_000_000, id="nested-too-deep"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 10_000_000, id="too-long"),
    ],
)
async def test_an_answer_without_end_is_not_waited_for(tmp_path, answer):
    path = str(tmp_path / "control")

    async def flood(_reader, writer):
        with contextlib.suppress(OSError):
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_unix_server(flood, path):
        with pytest.raises(LaunchError, match="does not answer"):
            await asyncio.to_thread(adoption.find, path, "web", os.getpid())


async def test_an_answer_byte_by_byte_has_the_time_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(adoption, "ANSWER_LIMIT", 0.2)
    path = str(tmp_path / "control")

    async def drip(_reader, writer):
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.01)

    async with asyncio.timeout(10), await asyncio.start_unix_server(drip, path):
        with pytest.raises(LaunchError, match="does not answer"):
            await asyncio.to_thread(adoption.find, path, "web", os.getpid())


@pytest.mark.parametrize(("said", "taken"), [(409, 409), (101, 500), (200, 500), (-1, 500)])
def test_a_refusal_has_the_status_of_one(said, taken):
    problem = models.Problem(title="no", status=said)
    assert client.refusal(problem).status == taken
