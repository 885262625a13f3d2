# SPDX-License-Identifier: Apache-2.0
"""Guests of one process reach each other by CID."""

import random

import pytest

from harness.frontend import FrontEnd
from harness.vsock import EOM, EOR, RECEIVE, SEND, SEQPACKET, STREAM, Op, Packet, VsockDriver
from tests.vsock_host import Vsock

MIB = 1 << 20


def joined(one, other, kind=STREAM, port=7, src_port=1024):
    """Both ends of a connection from one guest to the other."""
    asking = one.request(port, cid=other.cid, kind=kind, src_port=src_port)
    answering = other.accept()
    asking.wait(lambda: asking.is_open)
    return asking, answering


def serve_both(one, other, condition):
    """Serve both drivers until something is so."""
    for _ in range(2000):
        if condition():
            return
        for driver in (one, other):
            driver.waiting.extend(driver.poll(0.01))
            while driver.waiting:
                driver.dispatch(driver.waiting.popleft())
    pytest.fail("it never was so")


def test_one_guest_connects_to_another(siblings):
    one, other = joined(*siblings)
    assert (other.cid, other.port, other.own_port) == (3, 1024, 7)
    one.write(b"question")
    assert other.read(8) == b"question"
    other.write(b"answer")
    assert one.read(6) == b"answer"


def test_much_data_arrives_at_another_guest(siblings):
    data = random.Random(5).randbytes(MIB)
    one, other = joined(*siblings)
    sent, got = 0, b""
    while len(got) < len(data):
        part = data[sent : sent + min(max(one.peer_free, 0), 32768)]
        if part:
            one.send(Op.RW, part)
            sent += len(part)
        serve_both(*siblings, lambda: True)
        for driver in siblings:
            driver.waiting.extend(driver.poll(0.01))
            while driver.waiting:
                driver.dispatch(driver.waiting.popleft())
        piece = other.received
        other.received = b""
        got += piece
        other.give_credit(len(piece))
    assert got == data


def test_messages_and_records_keep_their_ends(siblings):
    one, other = joined(*siblings, kind=SEQPACKET)
    long = random.Random(6).randbytes(100_000)
    for message, flags in ((b"a", EOM), (b"b", EOM | EOR), (long, EOM), (b"c", EOM | EOR)):
        one.write(message, flags=flags)
    assert [other.read_message() for _ in range(4)] == [
        (b"a", EOM),
        (b"b", EOM | EOR),
        (long, EOM),
        (b"c", EOM | EOR),
    ]


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET], ids=["stream", "seqpacket"])
def test_half_a_close_and_then_the_other_arrive(siblings, kind):
    one, other = joined(*siblings, kind=kind)
    one.write(b"end", flags=EOM if kind == SEQPACKET else 0)
    one.send(Op.SHUTDOWN, flags=SEND)
    other.wait(lambda: other.shut == SEND)
    other.write(b"late", flags=EOM if kind == SEQPACKET else 0)
    one.wait(lambda: one.rx_count == 4)
    one.close()
    other.wait(lambda: other.shut == SEND | RECEIVE)
    other.close()


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET], ids=["stream", "seqpacket"])
@pytest.mark.parametrize("order", [1, -1], ids=["who-answered", "who-asked"])
def test_a_guest_that_receives_no_more_is_seen_before_it_is_sent_to(siblings, kind, order):
    one, other = joined(*siblings, kind=kind)[::order]
    other.send(Op.SHUTDOWN, flags=RECEIVE)
    one.wait(lambda: one.shut == RECEIVE)
    other.write(b"late", flags=EOM if kind == SEQPACKET else 0)
    one.wait(lambda: one.rx_count == 4)


def test_a_sibling_that_refuses_is_seen(siblings):
    one, other = siblings
    asking = one.request(9, cid=4)
    request = other.receive()
    refusal = Packet(Op.RST, 4, 3, request.dst_port, request.src_port)
    other.send(refusal)
    asking.wait(lambda: asking.is_reset)


def test_a_sibling_that_does_not_answer_refuses_in_time(siblings):
    asking = siblings[0].request(9, cid=4)
    asking.wait(lambda: asking.is_reset)


def test_a_sibling_that_ends_ends_its_connections(siblings):
    one, _other = joined(*siblings)
    siblings[1].front_end.close()
    one.wait(lambda: one.shut == SEND | RECEIVE)


def test_a_sibling_without_a_driver_is_refused(tmp_path):
    with Vsock(tmp_path, cids=(3, 4)) as process:
        process.ready()
        with FrontEnd.connect(process.socket) as front_end:
            asking = VsockDriver(front_end).request(9, cid=4)
            asking.wait(lambda: asking.is_reset)


def test_guests_of_different_groups_do_not_reach_each_other(tmp_path):
    options = ["--group", "a", "--group", "b"]
    with Vsock(tmp_path, *options, cids=(3, 4)) as process:
        process.ready()
        first, second = process.paths.values()
        with FrontEnd.connect(first) as one, FrontEnd.connect(second) as other:
            drivers = VsockDriver(one, cid=3), VsockDriver(other, cid=4)
            asking = drivers[0].request(9, cid=4)
            asking.wait(lambda: asking.is_reset)
            assert drivers[1].is_silent()


def test_connections_cross_each_other(siblings):
    pairs = [joined(*siblings, port=100 + n, src_port=2000 + n) for n in range(20)]
    back = [joined(*reversed(siblings), port=100 + n, src_port=2000 + n) for n in range(20)]
    for n, (one, other) in enumerate([*pairs, *back]):
        one.write(b"%d" % n)
        assert other.read(len(b"%d" % n)) == b"%d" % n
