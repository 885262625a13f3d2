# SPDX-License-Identifier: Apache-2.0
"""An image opened once more by another process, for one that may not."""

import asyncio
import contextlib
import os
import select
import socket
import threading

import msgspec
import pytest

from blkd.errors import ImageBusy, ImageError
from blkd.image import lock, raw
from blkd.image.base import Opening
from blkd.image.opener import AskingOpener, OpenerPeer
from harness.daemon import image as make_image
from harness.open_fds import open_fds, wait_for_fds

LIMIT = 5.0  # seconds


@pytest.fixture
def sockets():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(s) for s in socket.socketpair(type=socket.SOCK_SEQPACKET)]


@pytest.fixture
def peer(sockets):
    """Answers on a thread, as a launcher does in processes of its own."""
    found = OpenerPeer(sockets[1], raw.open_again)
    end, ended = os.pipe()

    def answer():
        while end not in (ready := select.select([found, end], [], [])[0]):
            assert ready
            try:
                request = found.receive()
            except OSError:
                return
            if request is not None:
                found.answer(request)

    thread = threading.Thread(target=answer)
    thread.start()
    yield found
    os.close(ended)
    thread.join()
    os.close(end)
    found.close()


@contextlib.asynccontextmanager
async def opened(path, opener, *, incoming=False):
    how = Opening(
        read_only=False,
        direct=False,
        logical_block_size=None,
        workers=2,
        incoming=incoming,
        opener=opener,
    )
    image = await raw.open_raw(str(path), how)
    try:
        yield image
    finally:
        image.close()


async def test_a_lock_goes_and_comes_by_descriptors_from_outside(tmp_path, sockets, peer):
    path = make_image(tmp_path / "a.img")
    async with opened(path, AskingOpener(sockets[0])) as image:
        numbers = [image.fd, *(image.io(n).sync_fd for n in range(2))]
        files = [os.fstat(fd).st_ino for fd in numbers]
        path.rename(tmp_path / "b.img")  # what counts is the file
        before = open_fds()
        await image.release_lock()
        assert lock.holders_at(str(tmp_path / "b.img")) == []
        await image.take_lock()
        assert image.is_locked
        assert [os.fstat(fd).st_ino for fd in numbers] == files
        assert wait_for_fds(before)  # the peer closes its own a little later
    assert peer.fileno() >= 0


async def test_what_another_has_is_said_to_be_in_use(tmp_path, sockets, peer, monkeypatch):
    monkeypatch.setattr(raw, "LOCK_LIMIT", 0.1)
    path = make_image(tmp_path / "a.img")
    async with opened(path, AskingOpener(sockets[0]), incoming=True) as image:
        async with opened(path, None):
            with pytest.raises(ImageBusy, match="in use by"):
                await image.take_lock()
        await image.take_lock()
    assert peer.fileno() >= 0


async def test_a_modification_is_announced_by_who_may_ask_for_it(tmp_path, sockets, peer):
    path = make_image(tmp_path / "a.img")
    async with opened(path, AskingOpener(sockets[0])) as image, asyncio.timeout(LIMIT):
        watch = image.watch(1.0)
        try:
            await watch.wait()  # nothing was asked for yet
            await watch.arm()
            waiting = asyncio.ensure_future(watch.wait())
            os.pwrite(image.fd, b"x", 0)
            await waiting
        finally:
            watch.close()
    assert peer.fileno() >= 0


async def test_an_image_is_not_waited_for_without_end(tmp_path, sockets):
    path = make_image(tmp_path / "a.img")
    async with opened(path, AskingOpener(sockets[0], limit=0.05)) as image:
        with pytest.raises(ImageError, match="not opened again: timed out"):
            await image.release_lock()
        assert image.is_locked


def test_a_late_answer_is_not_taken_for_the_next(tmp_path, sockets):
    path = make_image(tmp_path / "a.img")
    opener = AskingOpener(sockets[0], limit=0.05)
    peer = OpenerPeer(sockets[1], raw.open_again)
    with path.open("rb") as file:
        peer.know(manner(path), os.dup(file.fileno()))
    with pytest.raises(ImageError):
        opener.open_again(exclusive=False)
    before = open_fds()
    peer.answer(peer.receive())
    answering = threading.Thread(target=lambda: (select.select([peer], [], []), reply(peer)))
    answering.start()
    fds = opener.open_again(exclusive=True)
    answering.join()
    assert len(fds) == 1 + 3
    for fd in fds:
        os.close(fd)
    assert open_fds() == before
    peer.close()


def reply(peer):
    request = peer.receive()
    assert request.exclusive
    peer.answer(request)


def manner(path):
    how = Opening(read_only=True, direct=False, logical_block_size=None, workers=2)
    return raw.manner_of(str(path), how)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"{", id="no-json"),
        pytest.param(b'{"type":"open"}', id="no-number"),
        pytest.param(b'{"type":"open","number":1,"exclusive":true,"path":"/"}', id="a-path"),
        pytest.param(b'{"type":"arm","number":1}', id="nothing-to-arm"),
        pytest.param(bytes(20000), id="too-long"),
        pytest.param(b'{"x":' + b"[" * 16000, id="too-deep"),
    ],
)
def test_a_hostile_question_ends_the_conversation(sockets, message):
    peer = OpenerPeer(sockets[1], raw.open_again)
    sockets[0].send(message)
    with pytest.raises(ConnectionAbortedError):
        peer.receive()
    peer.close()


def test_another_image_cannot_be_put_in_the_place_of_the_first(tmp_path, sockets):
    first, second = make_image(tmp_path / "a.img"), make_image(tmp_path / "b.img")
    opener = AskingOpener(sockets[0])
    peer = OpenerPeer(sockets[1], raw.open_again)
    with first.open("rb") as file:
        opener.remember(manner(first), file.fileno())
        peer.receive()
    with second.open("rb") as file:
        opener.remember(manner(second), file.fileno())
        before = open_fds()
        with pytest.raises(ConnectionAbortedError):
            peer.receive()
        assert open_fds() == before
    peer.close()


def test_where_there_is_no_image_none_can_be_named_later(sockets):
    opener = AskingOpener(sockets[0])
    opener.close_unless_remembered()
    peer = OpenerPeer(sockets[1], raw.open_again)
    with pytest.raises(ConnectionResetError):
        peer.receive()
    peer.close()


def test_a_process_that_has_gone_is_noticed(sockets):
    peer = OpenerPeer(sockets[1], raw.open_again)
    assert peer.receive() is None
    sockets[0].close()
    with pytest.raises(ConnectionResetError):
        peer.receive()
    peer.close()


def test_what_is_armed_is_no_other_descriptor(tmp_path, sockets):
    path = make_image(tmp_path / "a.img")
    peer = OpenerPeer(sockets[1], raw.open_again)
    with path.open("rb") as file:
        peer.know(manner(path), os.dup(file.fileno()))
        question = msgspec.json.encode({"type": "arm", "number": 7})
        socket.send_fds(sockets[0], [question], [file.fileno()])
        peer.receive()
    assert msgspec.json.decode(sockets[0].recv(4096))["type"] == "failed"
    peer.close()


def test_nothing_is_armed_where_somebody_may_be_waited_for(tmp_path, sockets):
    peer = OpenerPeer(sockets[1], raw.open_again)
    peer.know(manner(tmp_path), os.open("/proc/version", os.O_PATH))
    opener = AskingOpener(sockets[0])
    answering = threading.Thread(target=lambda: (select.select([peer], [], []), peer.receive()))
    answering.start()
    with pytest.raises(OSError, match="not supported"):
        opener.arm(0)
    answering.join()
    peer.close()
