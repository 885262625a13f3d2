# SPDX-License-Identifier: Apache-2.0
"""SEQPACKET: messages between a guest and programs of the host keep their ends."""

import random
import socket

import pytest

from harness.frontend import FrontEnd
from harness.vsock import (
    BUF_ALLOC,
    EOM,
    EOR,
    FEATURES,
    RECEIVE,
    SEND,
    SEQPACKET,
    VSOCK,
    Op,
    Packet,
    VsockDriver,
)
from tests.vsock_host import accepted

MESSAGES = [b"x", b"two", random.Random(3).randbytes(5000), b"y" * 70_000, b"z"]


def test_messages_of_a_guest_keep_their_ends(driver, vsock):
    with accepted(driver, vsock, kind=SEQPACKET) as (guest, host):
        for message in MESSAGES:
            guest.write(message, flags=EOM)
        assert [host.recv(1 << 20) for _ in MESSAGES] == MESSAGES


def test_a_message_may_come_in_pieces(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        for message in MESSAGES[:3]:
            guest.write(message, piece=700, flags=EOM)
        assert [host.recv(1 << 20) for _ in MESSAGES[:3]] == MESSAGES[:3]


def test_messages_of_a_host_program_keep_their_ends(driver, vsock):
    with accepted(driver, vsock, kind=SEQPACKET) as (guest, host):
        for message in MESSAGES:
            host.send(message)
        assert [guest.read_message() for _ in MESSAGES] == [(each, EOM) for each in MESSAGES]


def test_a_host_program_connects_for_messages(split, vsock):
    with vsock.ask(5, socket.SOCK_SEQPACKET) as host:
        guest = split.accept()
        assert guest.kind == SEQPACKET
        assert host.recv(64) == b"OK %d\n" % guest.port
        host.send(b"one")
        host.send(b"two")
        assert [guest.read_message()[0] for _ in range(2)] == [b"one", b"two"]
        guest.write(b"three", flags=EOM)
        assert host.recv(64) == b"three"


def test_the_longest_message_arrives(split, vsock):
    message = random.Random(4).randbytes(BUF_ALLOC)
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        guest.write(message, flags=EOM)
        assert host.recv(1 << 20) == message


def test_many_messages_of_one_byte_fill_all_the_room_and_arrive(split, vsock):
    count = 3000
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        for n in range(count):
            guest.write(bytes([n & 0xFF]), flags=EOM)
        assert [host.recv(8) for _ in range(count)] == [bytes([n & 0xFF]) for n in range(count)]


def test_an_empty_message_of_a_host_program_is_none(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        host.send(b"")
        host.send(b"data")
        host.close()
        assert guest.read_message() == (b"data", EOM)
        guest.wait(lambda: guest.shut == SEND | RECEIVE)


def test_an_empty_message_of_a_guest_is_none(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        guest.send(Op.RW, b"", EOM)
        guest.write(b"a")
        guest.send(Op.RW, b"", EOM | EOR)  # the end of what is there
        guest.write(b"b", flags=EOM)
        assert [host.recv(8) for _ in range(2)] == [b"a", b"b"]


def test_a_message_without_an_end_is_none(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        guest.write(b"whole", flags=EOM)
        guest.write(b"half")
        guest.close()
        assert host.recv(64) == b"whole"
        assert host.recv(64) == b""


def test_a_message_that_the_guest_has_no_room_for_ends_the_connection(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET, buf_alloc=1000) as (guest, host):
        host.send(bytes(1001))
        guest.wait(lambda: guest.asked)
        guest.send(Op.CREDIT_UPDATE)
        guest.wait(lambda: guest.is_reset)
        assert host.recv(1) == b""


def test_both_ends_of_a_connection_of_messages_arrive(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET) as (guest, host):
        host.send(b"last")
        host.close()
        assert guest.read_message() == (b"last", EOM)
        guest.wait(lambda: guest.shut == SEND | RECEIVE)
        guest.close()
    vsock.wait_for_connections(0)


def test_a_stream_listener_takes_no_messages(split, vsock):
    with vsock.listen(80):
        guest = split.request(80, kind=SEQPACKET)
        guest.wait(lambda: guest.is_reset)


def test_a_driver_without_streams_has_none(vsock):
    with FrontEnd.connect(vsock.socket) as front_end, vsock.listen(80):
        driver = VsockDriver(front_end, features=FEATURES & ~0b001)
        guest = driver.request(80)
        guest.wait(lambda: guest.is_reset)
        with vsock.ask(5) as host:
            assert host.recv(64) == b""


@pytest.mark.parametrize("features", [FEATURES & ~0b111, FEATURES & ~0b110], ids=["none", "stream"])
def test_a_driver_without_the_feature_has_no_messages(vsock, features):
    with FrontEnd.connect(vsock.socket) as front_end, vsock.listen(80, socket.SOCK_SEQPACKET):
        driver = VsockDriver(front_end, features=features)
        guest = driver.request(80, kind=SEQPACKET)
        guest.wait(lambda: guest.is_reset)
        with vsock.ask(5, socket.SOCK_SEQPACKET) as host:
            assert host.recv(64) == b""


def test_a_packet_of_another_type_resets_its_connection(split, vsock):
    with accepted(split, vsock, kind=SEQPACKET) as (guest, _host):
        split.send(Packet(Op.RW, payload=b"x"))
        guest.wait(lambda: guest.is_reset)


@pytest.mark.parametrize(
    ("chosen", "has_streams"), [(0b000, True), (0b010, True), (0b110, False), (0b111, True)]
)
def test_streams_are_there_unless_the_driver_wants_none(vsock, chosen, has_streams):
    with FrontEnd.connect(vsock.socket) as front_end, vsock.listen(80):
        driver = VsockDriver(front_end, features=FEATURES & ~VSOCK | chosen)
        guest = driver.request(80)
        guest.wait(lambda: guest.is_open or guest.is_reset)
        assert guest.is_open == has_streams
        with vsock.ask(81) as program:
            if has_streams:
                driver.accept()
            assert bool(program.recv(64)) == has_streams
