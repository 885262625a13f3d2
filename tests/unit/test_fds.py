# SPDX-License-Identifier: Apache-2.0
"""Descriptors, waited for and passed on."""

import array
import asyncio
import contextlib
import errno
import os
import socket
import threading
import time

import pytest

from blkd.host.fds import ancillary_bytes, close_foreign, passed, readable, wait_closed, writable
from harness.fuse import FLUSH, FileSystem


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


async def test_descriptors_are_found_and_closed(pair):
    ours, theirs = pair
    socket.send_fds(theirs, [b"x"], [0, 1])
    _, ancillary, flags, _ = ours.recvmsg(1, ancillary_bytes(2), socket.MSG_CMSG_CLOEXEC)
    found = list(passed(ancillary))
    assert len(found) == 2
    assert not flags & socket.MSG_CTRUNC
    await wait_closed(found)
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


class Kept:
    """Tells on which thread it goes."""

    def __init__(self, gone):
        self._gone = gone

    def __del__(self):
        self._gone.append(threading.current_thread())


async def test_what_is_kept_goes_on_another_thread_and_is_waited_for():
    gone = []
    fd = os.memfd_create("memory")
    await wait_closed([fd], [Kept(gone)])
    assert gone
    assert gone[0] is not threading.main_thread()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("make", [lambda: os.memfd_create("x"), lambda: os.eventfd(0)])
def test_what_cannot_block_is_closed_at_once(make):
    close_foreign([fd := make()])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_a_close_that_fails_is_no_error(tmp_path):
    with FileSystem(tmp_path / "fuse", 4096, writeback=True) as fuse:
        fuse.answers[FLUSH] = lambda: errno.EIO
        fd = os.open(fuse.path, os.O_RDWR)
        await wait_closed([fd])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_a_close_that_never_ends_holds_up_neither_the_caller_nor_others(tmp_path):
    with FileSystem(tmp_path / "fuse", 4096, writeback=True) as fuse:
        fuse.silent.add(FLUSH)
        began = time.monotonic()
        await wait_closed([os.open(fuse.path, os.O_RDWR)], limit=0.1)
        assert FLUSH in fuse.seen
        reader, writer = os.pipe()
        await wait_closed([writer])
        assert time.monotonic() - began < 1
        assert os.read(reader, 1) == b""
        os.close(reader)
