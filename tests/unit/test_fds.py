# SPDX-License-Identifier: Apache-2.0
"""Descriptors, waited for and passed on."""

import array
import asyncio
import contextlib
import os
import socket

import pytest

from blkd.fds import ancillary_bytes, close_all, passed, readable, writable


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def done_soon(waiting):
    """Whether a task ends within a few turns of the loop."""
    for _ in range(3):
        await asyncio.sleep(0)
    return waiting.done()


async def test_what_comes_ends_the_wait(pair):
    ours, theirs = pair
    waiting = asyncio.ensure_future(readable(ours.fileno()))
    assert not await done_soon(waiting)
    theirs.send(b"x")
    await asyncio.wait_for(waiting, 5)


async def test_room_ends_the_wait(pair):
    ours, theirs = pair
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(4096))
    waiting = asyncio.ensure_future(writable(ours))
    assert not await done_soon(waiting)
    while not waiting.done():
        theirs.recv(1 << 20)
        await asyncio.wait([waiting], timeout=0.1)


async def test_a_wait_that_is_given_up_leaves_no_watch(pair):
    ours, _ = pair
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(readable(ours), 0.01)
    assert not asyncio.get_running_loop().remove_reader(ours)


def test_descriptors_are_found_and_closed(pair):
    ours, theirs = pair
    socket.send_fds(theirs, [b"x"], [0, 1])
    _, ancillary, flags, _ = ours.recvmsg(1, ancillary_bytes(2), socket.MSG_CMSG_CLOEXEC)
    found = list(passed(ancillary))
    assert len(found) == 2
    assert not flags & socket.MSG_CTRUNC
    close_all(found)
    for fd in found:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_other_ancillary_data_and_half_a_descriptor_are_none():
    rights = array.array("i", [5]).tobytes()
    found = passed(
        [
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, rights),
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights + b"x"),
        ]
    )
    assert list(found) == [5]
