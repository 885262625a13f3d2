# SPDX-License-Identifier: Apache-2.0
"""How a front end learns that the configuration changed."""

import asyncio
import contextlib
import os
import socket
import struct
import time

import pytest

from blkd.errors import ProtocolError
from blkd.vhost_user.backchannel import BackChannel, BackChannelSnapshot
from blkd.vhost_user.wire import BackendRequest
from harness.frontend import CONFIG_CHANGE_MSG, NEED_REPLY, FrontEnd, Protocol, Request
from harness.vring import wait_readable
from tests.served import Served

SOON = 0.3  # seconds within which nothing may come, or something must have


@pytest.fixture
def served():
    with Served() as served:
        yield served


def started(front_end: FrontEnd, **negotiated) -> FrontEnd:
    """Begin as QEMU does at device creation, and start a ring."""
    front_end.negotiate(**negotiated)
    front_end.config(0, 60)
    front_end.share_memory()
    front_end.start_ring()
    front_end.call(Request.GET_FEATURES)  # all of that is done now
    return front_end


def is_called(front_end: FrontEnd, timeout: float = SOON) -> bool:
    return wait_readable(front_end.backend_requests.fileno(), timeout)


def test_a_change_is_announced_and_read_while_the_announcement_is_unanswered(served):
    front_end = started(served.front_end)
    announced = served.announce(timeout=5)
    request, config = front_end.answer_backend()
    assert request == CONFIG_CHANGE_MSG
    assert config[0] == served.device.generation == 1
    assert announced.result(5) is True


def test_an_acknowledgement_is_asked_for_if_it_was_negotiated(served):
    started(served.front_end)
    served.announce(timeout=1)
    _, flags, size = struct.unpack("=III", served.front_end.backend_requests.recv(100))
    assert (flags, size) == (1 | NEED_REPLY, 0)


def test_without_reply_ack_no_acknowledgement_is_asked_for(served):
    features = Protocol.CONFIG | Protocol.BACKEND_REQ
    front_end = started(served.front_end, protocol_features=features)
    announced = served.announce(timeout=5)
    _, flags, _ = struct.unpack("=III", front_end.backend_requests.recv(100))
    assert flags == 1
    front_end.config(0, 60)
    assert announced.result(5) is True


def test_changes_are_announced_one_after_the_other(served):
    front_end = started(served.front_end)
    for generation in (1, 2, 3):
        announced = served.announce(timeout=5)
        assert front_end.answer_backend()[1][0] == generation
        assert announced.result(5) is True


def test_nothing_is_announced_while_no_ring_is_started(served):
    front_end = served.front_end
    front_end.negotiate()
    front_end.config(0, 60)
    assert served.announce(timeout=5).result(1) is False
    assert not is_called(front_end)


def test_a_change_while_stopped_is_announced_once_a_ring_starts(served):
    front_end = started(served.front_end)
    front_end.stop_ring()
    assert served.announce(timeout=5).result(1) is False
    front_end.start_ring()
    assert front_end.answer_backend()[1][0] == 1


def test_a_change_that_was_acknowledged_but_not_read_is_announced_at_the_next_start(served):
    front_end = started(served.front_end)
    announced = served.announce(timeout=SOON)
    front_end.answer_backend(fetch=None)
    assert announced.result(5) is False
    assert not is_called(front_end)
    front_end.stop_ring()
    front_end.start_ring()
    assert front_end.answer_backend()[1][0] == 1
    assert not is_called(front_end)


def test_a_front_end_that_has_never_read_gets_an_announcement_at_ring_start(served):
    """QEMU does not read the configuration again after a reconnect."""
    front_end = served.front_end
    front_end.negotiate()
    front_end.share_memory()
    front_end.start_ring(enable=False)
    assert not is_called(front_end)
    front_end.enable(0, on=True)
    assert front_end.answer_backend()[0] == CONFIG_CHANGE_MSG


def test_a_front_end_that_is_up_to_date_gets_no_announcement(served):
    assert not is_called(started(served.front_end))


def test_nothing_is_announced_in_the_middle_of_a_conversation(served):
    front_end = served.front_end
    front_end.negotiate()
    front_end.share_memory()
    front_end.start_ring()
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        front_end.call(Request.GET_FEATURES)
        assert not is_called(front_end, 0.01)
    assert is_called(front_end)


def test_a_refused_announcement_leaves_the_channel_alive(served):
    front_end = started(served.front_end)
    announced = served.announce(timeout=SOON)
    front_end.answer_backend(fetch=None, result=1)
    assert announced.result(5) is False
    announced = served.announce(timeout=5)
    front_end.answer_backend()
    assert announced.result(5) is True


def test_a_new_channel_replaces_the_old_one_even_while_that_is_in_use(served):
    front_end = started(served.front_end)
    announced = served.announce(timeout=5)
    assert is_called(front_end)
    old = front_end.backend_requests.dup()
    front_end.open_backend_channel()
    assert front_end.answer_backend()[1][0] == 1
    assert announced.result(5) is True
    with old:
        old.settimeout(5)
        assert len(old.recv(100)) == 12
        assert old.recv(100) == b""


def test_a_channel_that_is_closed_is_given_up_and_the_connection_lives(served):
    front_end = started(served.front_end)
    front_end.backend_requests.close()
    assert served.announce(timeout=SOON).result(5) is False
    front_end.open_backend_channel()
    assert front_end.answer_backend()[1][0] == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(struct.pack("=IIIQ", 2, 1, 8, 0), id="a-request"),
        pytest.param(struct.pack("=IIIQ", 9, 5, 8, 0), id="to-something-else"),
        pytest.param(struct.pack("=III", 2, 5, 0), id="empty"),
        pytest.param(struct.pack("=III", 2, 5, 1000), id="too-long"),
        pytest.param(b"x" * 20, id="nonsense"),
    ],
)
def test_nonsense_on_the_channel_costs_the_channel_only(served, answer):
    front_end = started(served.front_end)
    served.announce(timeout=SOON)
    front_end.backend_requests.recv(100)
    front_end.backend_requests.send(answer)
    assert is_called(front_end)  # which is how the end looks
    with contextlib.suppress(ConnectionResetError):
        assert front_end.backend_requests.recv(100) == b""
    assert front_end.config(0, 1) == b"\1"
    assert served.end() is None


def test_a_channel_that_is_not_read_blocks_nobody(served):
    front_end = served.front_end
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        fill(theirs)
        front_end.negotiate(
            protocol_features=Protocol.CONFIG | Protocol.BACKEND_REQ | Protocol.REPLY_ACK
        )
        front_end.set(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        front_end.share_memory()
        front_end.start_ring()
        assert served.announce(timeout=SOON).result(5) is False
        assert front_end.config(0, 1) == b"\1"


def fill(sock: socket.socket) -> None:
    """Send until nothing more fits."""
    for size in (4096, 1):
        try:
            while True:
                sock.send(bytes(size))
        except BlockingIOError:
            pass


@pytest.mark.parametrize("kind", ["file", "pipe", "datagram", "network"])
def test_a_channel_of_the_wrong_kind_is_refused(served, kind):
    front_end = served.front_end
    front_end.negotiate()
    fds = {
        "file": lambda: [os.memfd_create("x")],
        "pipe": lambda: list(os.pipe()),
        "datagram": lambda: [sock.detach() for sock in socket.socketpair(type=socket.SOCK_DGRAM)],
        "network": lambda: [socket.socket(socket.AF_INET).detach()],
    }[kind]()
    try:
        assert front_end.ack(Request.SET_BACKEND_REQ_FD, fds=fds[:1]) != 0
    finally:
        for fd in fds:
            os.close(fd)
    assert not served.connection.show().back_channel


def test_ending_while_an_answer_is_awaited_does_not_take_long(served):
    front_end = started(served.front_end)
    served.announce(timeout=60)
    assert is_called(front_end)
    before = time.monotonic()
    assert served.end() is None
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("end", ["stop", "vanish"])
def test_an_announcement_does_not_wait_for_who_cannot_read(served, end):
    front_end = started(served.front_end)
    announced = served.announce(timeout=60)
    assert is_called(front_end)
    if end == "stop":
        front_end.stop_ring()
    else:
        front_end.close()
    assert announced.result(5) is False


@contextlib.asynccontextmanager
async def channel():
    """A channel whose answers are read, and the front end's end of it."""
    ours, theirs = socket.socketpair()
    channel = BackChannel(theirs)
    with ours, contextlib.closing(channel):
        reading = asyncio.create_task(channel.read_answers())
        yield channel, ours
        reading.cancel()
        await asyncio.wait([reading])


def answer(request: int, result: int) -> bytes:
    return struct.pack("=IIIQ", request, 5, 8, result)


async def give_up(answered: asyncio.Future[bool]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await answered


async def test_an_answer_that_comes_late_is_not_taken_for_the_next():
    request = BackendRequest.CONFIG_CHANGE_MSG
    async with channel() as (back, ours), asyncio.timeout(5):
        await give_up(back.send(request, acknowledged=True))
        ours.send(answer(request, 1) + answer(request, 0))
        assert await back.send(request, acknowledged=True) is True


async def test_an_answer_whose_end_comes_late_is_not_taken_for_the_next():
    request = BackendRequest.CONFIG_CHANGE_MSG
    async with channel() as (back, ours), asyncio.timeout(5):
        late = answer(request, 1)
        ours.send(late[:7])
        await give_up(back.send(request, acknowledged=True))
        ours.send(late[7:] + answer(request, 0))
        assert await back.send(request, acknowledged=True) is True


async def test_many_requests_are_answered_in_their_order():
    async with channel() as (back, ours), asyncio.timeout(5):
        kinds = [BackendRequest.CONFIG_CHANGE_MSG, BackendRequest.IOTLB_MSG] * 3
        answers = [back.send(kind, bytes(32), acknowledged=True) for kind in kinds]
        for n, kind in enumerate(kinds):
            ours.send(answer(kind, n % 3))
        assert await asyncio.gather(*answers) == [True, False, False] * 2


async def test_answers_that_another_process_awaited_are_passed_over():
    ours, theirs = socket.socketpair()
    with ours:
        snapshot = BackChannelSnapshot(theirs.detach(), overdue=2, partial=None)
        back = BackChannel.restore(snapshot)
        with contextlib.closing(back):
            reading = asyncio.create_task(back.read_answers())
            awaited = back.send(BackendRequest.IOTLB_MSG, acknowledged=True)
            assert back.snapshot().overdue == 3
            ours.send(answer(2, 1) + answer(1, 1) + answer(1, 0))
            assert await asyncio.wait_for(awaited, 5) is True
            reading.cancel()
            await asyncio.wait([reading])


async def test_requests_that_are_not_answered_fail_with_their_channel():
    async with channel() as (back, _):
        awaited = back.send(BackendRequest.IOTLB_MSG, acknowledged=True)
        back.close()
        with pytest.raises(ProtocolError):
            await awaited
