# SPDX-License-Identifier: Apache-2.0
"""`blkd vsock` and one guest's driver: streams between the guest and programs of the host."""

import contextlib
import hashlib
import random
import socket
import struct
import threading

import pytest

from harness.frontend import FrontEnd
from harness.vsock import (
    BUF_ALLOC,
    RECEIVE,
    SEND,
    Op,
    Packet,
    VsockDriver,
)
from tests.vsock_host import CID, accepted, read_all

MIB = 1 << 20


def echo_all(sock):
    while data := sock.recv(1 << 18):
        sock.sendall(data)


# ---- connections begin ----


def test_the_configuration_has_the_cid(split):
    assert split.front_end.config(0, 8) == struct.pack("<Q", CID)


def test_a_guest_connects_to_the_host(driver, vsock):
    with accepted(driver, vsock) as (guest, host):
        guest.write(b"from the guest")
        assert read_all(host, 14) == b"from the guest"
        host.sendall(b"from the host")
        assert guest.read(13) == b"from the host"
        guest.close()
        assert host.recv(1) == b""


def test_a_host_program_connects_to_the_guest(driver, vsock):
    with vsock.ask(1234) as host:
        guest = driver.accept()
        assert (guest.cid, guest.own_port) == (2, 1234)
        assert host.recv(64) == b"OK %d\n" % guest.port
        host.sendall(b"ping")
        assert guest.read(4) == b"ping"
        guest.write(b"pong")
        assert host.recv(64) == b"pong"


def test_what_follows_the_line_is_for_the_guest(split, vsock):
    with vsock.connect() as host:
        host.sendall(b"CONNECT 5\nearly")
        guest = split.accept()
        assert guest.read(5) == b"early"
        assert host.recv(64).startswith(b"OK ")


def test_a_line_may_come_byte_by_byte(split, vsock):
    with vsock.connect() as host:
        for byte in b"CONNECT 77\n":
            host.sendall(bytes([byte]))
        assert split.accept().own_port == 77


@pytest.mark.parametrize(
    "line",
    [b"HELLO\n", b"CONNECT \n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"CONNECT 1 2\n",
     b"CONNECT " + b"0" * 40, b"CONNECT -1\n", b"\0" * 64],
    ids=repr,
)  # fmt: skip
def test_a_line_that_is_none_ends_its_program(split, vsock, line):
    with vsock.connect() as host:
        host.sendall(line)
        with contextlib.suppress(ConnectionResetError):
            assert host.recv(64) == b""
    assert split.is_silent()


def test_a_guest_that_refuses_ends_the_program(split, vsock):
    with vsock.ask(9) as host:
        request = split.receive()
        split.send(Packet(Op.RST, src_port=9, dst_port=request.src_port))
        assert host.recv(64) == b""


def test_a_guest_that_does_not_answer_ends_the_program_in_time(split, vsock):
    with vsock.ask(9) as host:
        assert split.receive().op == Op.REQUEST
        assert host.recv(64) == b""
        assert split.receive().op == Op.RST


def test_a_port_where_nobody_listens_is_refused(split):
    guest = split.request(4)
    guest.wait(lambda: guest.is_reset)


@pytest.mark.parametrize("cid", [0, 1, CID, 99, 0xFFFFFFFF])
def test_a_cid_that_nobody_has_is_refused(split, cid):
    guest = split.request(4, cid=cid)
    guest.wait(lambda: guest.is_reset)


# ---- and end ----


def test_a_host_program_that_closes_shuts_both_ways(split, vsock):
    with accepted(split, vsock) as (guest, host):
        host.sendall(b"last words")
        host.close()
        assert guest.read(64) == b"last words"
        guest.wait(lambda: guest.shut == SEND | RECEIVE)
        guest.close()
    vsock.wait_for_connections(0)


def test_a_guest_that_never_answers_a_shutdown_is_reset(split, vsock):
    with accepted(split, vsock) as (guest, host):
        host.close()
        guest.wait(lambda: guest.is_reset, timeout=20)
        assert guest.shut == SEND | RECEIVE
    vsock.wait_for_connections(0)


def test_a_host_program_may_go_on_receiving(split, vsock):
    with accepted(split, vsock) as (guest, host):
        host.shutdown(socket.SHUT_WR)
        guest.wait(lambda: guest.shut == SEND)
        guest.write(b"still")
        assert read_all(host, 5) == b"still"
        guest.close()
        assert host.recv(1) == b""


def test_a_host_program_that_closes_later_shuts_the_rest(split, vsock):
    with accepted(split, vsock) as (guest, host):
        host.shutdown(socket.SHUT_WR)
        guest.wait(lambda: guest.shut == SEND)
        host.close()
        guest.wait(lambda: guest.shut == SEND | RECEIVE)


def test_a_guest_may_go_on_receiving(split, vsock):
    with accepted(split, vsock) as (guest, host):
        guest.write(b"all")
        guest.send(Op.SHUTDOWN, flags=SEND)
        assert read_all(host, 3) == b"all"
        assert host.recv(1) == b""
        host.sendall(b"answer")
        assert guest.read(6) == b"answer"
        host.close()
        guest.wait(lambda: guest.shut == SEND | RECEIVE)


def test_a_guest_may_go_on_sending(split, vsock):
    with accepted(split, vsock) as (guest, host):
        guest.send(Op.SHUTDOWN, flags=RECEIVE)
        split.flush()
        guest.write(b"more")
        assert read_all(host, 4) == b"more"


def test_what_a_guest_sent_before_it_closed_arrives(split, vsock):
    data = random.Random(1).randbytes(BUF_ALLOC)
    with accepted(split, vsock) as (guest, host):
        guest.write(data)
        guest.close()
        assert read_all(host, len(data)) == data
        assert host.recv(1) == b""
    vsock.wait_for_connections(0)


def test_connections_end_with_the_front_end(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end)
        with accepted(driver, vsock) as (_, host):
            front_end.close()
            assert host.recv(1) == b""
    vsock.wait_for_connections(0)


def test_a_driver_that_begins_anew_has_no_connections(split, vsock):
    with accepted(split, vsock) as (guest, host):
        guest.write(b"x")
        assert read_all(host, 1) == b"x"
        for index, ring in enumerate((split.rx, split.tx)):
            split.front_end.stop_ring(index)
            ring.rewind()
        for index, ring in enumerate((split.rx, split.tx)):
            split.front_end.start_ring(index, ring=ring)
        assert host.recv(1) == b""


def test_connections_outlive_a_pause_of_the_machine(split, vsock):
    with accepted(split, vsock) as (guest, host):
        bases = [split.front_end.stop_ring(index) for index in (0, 1)]
        host.sendall(b"meanwhile")
        for index, ring in enumerate((split.rx, split.tx)):
            split.front_end.start_ring(index, ring=ring, base=bases[index])
        assert guest.read(9) == b"meanwhile"


# ---- data, and credit ----


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_much_data_arrives_both_ways(driver, vsock, indirect):
    driver.indirect = indirect
    data = random.Random(2).randbytes(3 * MIB)
    with accepted(driver, vsock) as (guest, host):
        echo = threading.Thread(target=echo_all, args=[host])
        echo.start()
        answer = bytearray()
        for at in range(0, len(data), 100_000):
            part = data[at : at + 100_000]
            guest.write(part)
            answer += guest.read(len(part))
        assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
        guest.close()
        echo.join(10)


def test_a_guest_is_sent_no_more_than_it_has_room_for(split, vsock):
    with accepted(split, vsock, buf_alloc=10_000) as (guest, host):
        host.sendall(bytes(50_000))
        guest.wait(lambda: guest.rx_count == 10_000)
        guest.wait(lambda: guest.asked)
        assert split.is_silent()
        assert guest.asked == 1
        assert len(guest.read(50_000)) == 50_000


def test_a_guest_that_gives_no_credit_holds_nobody_up(split, vsock):
    with accepted(split, vsock, buf_alloc=0) as (_, host):
        host.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                host.send(bytes(65536))
        with accepted(split, vsock, port=81, src_port=1025) as (guest, other):
            other.sendall(b"through")
            assert guest.read(7) == b"through"


def test_a_host_program_that_never_reads_holds_nobody_up(split, vsock):
    with accepted(split, vsock) as (guest, _host):
        while guest.peer_free > 0:
            guest.write(bytes(min(guest.peer_free, 65536)))
            with contextlib.suppress(AssertionError):
                guest.wait(lambda: guest.peer_free > 0, timeout=0.5)
        assert guest.peer_free == 0
        with accepted(split, vsock, port=81, src_port=1025) as (other, host):
            other.write(b"through")
            assert read_all(host, 7) == b"through"


def test_a_guest_that_sends_more_than_it_may_is_reset(split, vsock):
    with accepted(split, vsock) as (guest, _host):
        for _ in range(12):
            guest.send(Op.RW, bytes(65536))
        guest.wait(lambda: guest.is_reset)


def test_credit_is_said_when_it_is_asked_for(split, vsock):
    with accepted(split, vsock) as (guest, _host):
        guest.peer_buf_alloc = 0
        guest.send(Op.CREDIT_REQUEST)
        guest.wait(lambda: guest.peer_buf_alloc)
        assert guest.peer_free == BUF_ALLOC
