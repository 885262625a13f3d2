# SPDX-License-Identifier: Apache-2.0
"""The listening sockets of a served export, lent to another process."""

import asyncio
import contextlib
import functools
import os
import socket

import pytest

from blkd.control import models
from blkd.control.client import switch
from blkd.control.lending import borrow, lend
from blkd.control.server import control_api
from blkd.errors import ControlError
from blkd.host import unix_socket
from blkd.statistics.area import Area, make_wake
from harness.open_fds import open_fds, wait_for_fds


class Nothing:
    """An export that nobody asks for anything."""


@contextlib.asynccontextmanager
async def lending(path, sockets, statistics=()):
    with unix_socket.listen(path, 0o600) as sock:
        lends = functools.partial(lend, sockets=[sock, *sockets], statistics=statistics)
        async with control_api(Nothing(), sock, None, lambda: None, lends):
            yield


async def test_front_ends_connect_to_what_was_lent(tmp_path):
    path, place = str(tmp_path / "control"), str(tmp_path / "socket")
    async with lending(path, [unix_socket.listen(place, 0o600)]):
        lent = await asyncio.to_thread(borrow, path)
    control, listener = lent.sockets
    with control, listener, socket.socket(socket.AF_UNIX) as peer:
        assert control.getsockname() == path
        peer.connect(place)
        listener.accept()[0].close()


async def test_statistics_are_lent_to_who_asks_for_them(tmp_path):
    path, area = str(tmp_path / "control"), Area.make()
    area.take_wake(make_wake())
    async with lending(path, [], [area.fd, area.wake]):
        lent = await asyncio.to_thread(borrow, path)
    borrowed = Area(lent.statistics, lent.wake)
    os.eventfd_write(area.wake, 7)
    assert os.eventfd_read(borrowed.wake) == 7
    area.note_size(512)
    assert borrowed.figures().size == 512
    for each in (area, borrowed, *lent.sockets):
        each.close()


async def test_process_that_knows_no_statistics_lends_its_sockets(tmp_path):
    path = str(tmp_path / "control")

    async def lend_as_before(sock):
        await asyncio.to_thread(sock.setblocking, True)
        assert await asyncio.to_thread(sock.recv, 1) == b"?"
        socket.send_fds(sock, [b"!"], [listener.fileno()])

    with unix_socket.listen(path, 0o600) as listener:
        async with control_api(Nothing(), listener, None, lambda: None, lend_as_before):
            lent = await asyncio.to_thread(borrow, path)
    assert lent.statistics is None
    [control] = lent.sockets
    control.close()


async def test_what_does_not_listen_is_not_borrowed(tmp_path):
    one, other = socket.socketpair()
    with one, other:
        async with lending(str(tmp_path / "control"), [one]):
            with pytest.raises(ControlError, match="do not all listen"):
                await asyncio.to_thread(borrow, str(tmp_path / "control"))


async def test_what_is_no_socket_is_not_borrowed(tmp_path):
    place = str(tmp_path / "socket")
    with unix_socket.listen(place, 0o600) as sock, (tmp_path / "x").open("w") as x:
        async with lending(str(tmp_path / "control"), [sock, x, x]):
            before = open_fds()
            with pytest.raises(ControlError, match="no socket"):
                await asyncio.to_thread(borrow, str(tmp_path / "control"))
            # Another thread closes what may take its time, and the server its connection.
            assert await asyncio.to_thread(wait_for_fds, before)


async def test_who_does_not_ask_gets_nothing(tmp_path):
    path = str(tmp_path / "control")

    def talk():
        with switch(path, models.LEND, models.LEND_PROTOCOL) as sock:
            sock.sendall(b"x")
            return sock.recvmsg(16, socket.CMSG_SPACE(64))[:2]

    async with lending(path, []):
        assert await asyncio.to_thread(talk) == (b"", [])


async def test_another_protocol_is_refused(tmp_path):
    path = str(tmp_path / "control")
    async with lending(path, []):
        with pytest.raises(ControlError, match="Upgrade: blkd-lend is missing"):
            await asyncio.to_thread(switch, path, models.LEND, models.UPGRADE_PROTOCOL)
