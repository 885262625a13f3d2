# SPDX-License-Identifier: Apache-2.0
"""A driver, a front end and host programs that do as they please: others are not held up."""

import contextlib
import itertools
import os
import random
import signal
import socket
import time

import pytest

from harness.frontend import DESC_WRITE, FrontEnd
from harness.vsock import (
    BUF_ALLOC,
    EVENT,
    RX,
    TX,
    Op,
    Packet,
    VsockDriver,
)
from tests.vsock_host import CID, Vsock, accepted, read_all

THOUSANDS = 5000


def still_serves(driver, vsock, port=99):
    """A new connection works both ways."""
    driver.connections.clear()
    with vsock.ask(port) as host:
        while (packet := driver.receive()).op != Op.REQUEST or packet.dst_port != port:
            pass
        driver.waiting.appendleft(packet)
        guest = driver.accept()
        assert host.recv(64).startswith(b"OK ")
        guest.write(b"here")
        assert read_all(host, 4) == b"here"
        host.sendall(b"there")
        assert guest.read(5) == b"there"


def drain(driver):
    """Take all packets that there are."""
    while driver.poll(0.05):
        pass
    driver.waiting.clear()


@pytest.mark.parametrize("layout", ["split", "packed"])
def test_malformed_packets_by_the_thousand(vsock, layout):
    chance = random.Random(7)
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end, packed=layout == "packed")
        for _ in range(THOUSANDS):
            kind = chance.randrange(5)
            if kind == 0:
                driver.send(chance.randbytes(chance.randrange(1, 200)))
            elif kind == 1:
                driver.send(Packet(chance.randrange(12), length=chance.randrange(1 << 32)))
            elif kind == 2:
                driver.send(Packet(chance.randrange(12), src_cid=chance.randrange(9)))
            elif kind == 3:
                driver.send(
                    Packet(
                        chance.randrange(12),
                        dst_cid=chance.choice([0, 1, 2, 3, 4, 1 << 32, 2 | 1 << 32]),
                        type=chance.randrange(1 << 16),
                        payload=chance.randbytes(chance.randrange(100)),
                    )
                )
            else:
                driver.send(
                    Packet(
                        chance.randrange(9),
                        type=chance.choice([1, 2]),
                        flags=chance.randrange(1 << 32),
                        buf_alloc=chance.randrange(1 << 32),
                        fwd_cnt=chance.randrange(1 << 32),
                        dst_port=chance.randrange(4),
                        payload=chance.randbytes(chance.randrange(100)),
                    )
                )
            if driver.rx.used_idx != driver.rx.seen if layout == "split" else True:
                driver.poll(0)
        driver.flush(30)
        drain(driver)
        still_serves(driver, vsock)
    assert vsock.call("show")["devices"][0]["broken_rings"] == []


def test_hostile_packets_on_an_open_connection(vsock):
    chance = random.Random(8)
    with FrontEnd.connect(vsock.socket) as front_end, vsock.listen(80) as listener:
        driver = VsockDriver(front_end)
        for turn in range(200):
            port = 3000 + turn
            driver.connections.clear()
            driver.send(Packet(Op.REQUEST, src_port=port))
            while (packet := driver.receive()).op != Op.RESPONSE or packet.dst_port != port:
                pass  # of a connection before
            host, _ = listener.accept()
            with host:
                for _ in range(chance.randrange(1, 8)):
                    driver.send(
                        Packet(
                            chance.randrange(1, 9),
                            src_port=port,
                            type=chance.choice([1, 1, 1, 2]),
                            flags=chance.randrange(8),
                            buf_alloc=chance.choice([0, 1, 1 << 18, (1 << 32) - 1]),
                            fwd_cnt=chance.choice([0, 1, 1 << 31, (1 << 32) - 1]),
                            payload=chance.randbytes(chance.randrange(3000)),
                        )
                    )
                with contextlib.suppress(OSError):
                    host.sendall(b"words")
            driver.flush()
            drain(driver)
        still_serves(driver, vsock)


def test_packets_of_no_connection_are_all_answered(split):
    sent = 0
    answers = 0
    while answers < THOUSANDS:
        if sent < THOUSANDS and sent - answers < 1000:
            split.send(*(Packet(Op.RW, src_port=sent + n, payload=b"x") for n in range(50)))
            sent += 50
        answers += sum(packet.op == Op.RST for packet in split.poll(0.1))
    assert split.is_silent()


def test_a_guest_that_takes_no_packets_is_fetched_from_no_more(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end, offer=False)
        packets = [Packet(Op.RW, src_port=n) for n in range(4000)]
        with pytest.raises(AssertionError, match="the device takes nothing"):
            driver.send(*packets, timeout=2)
        driver.offer(64)
        answers = 0
        while packets := driver.poll(0.5):
            answers += sum(packet.op == Op.RST for packet in packets)
        assert 512 <= answers < 4000
        still_serves(driver, vsock)


@pytest.mark.parametrize("size", [1, 43, 44])
def test_a_buffer_without_room_for_a_packet_breaks_its_ring_only(vsock, size):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end, offer=False)
        at = front_end.memory.alloc(size)
        driver.rx.publish(driver.rx.add([(at, size, DESC_WRITE)]))
        driver.rx.notify()
        driver.request(80)
        assert driver.rx.broken()
        (device,) = vsock.call("show")["devices"]
        assert device["broken_rings"] == [RX]
        assert "no room for more than a header" in device["broken_reasons"][0]


def test_a_thousand_connections_at_once(vsock):
    count = 1000
    with FrontEnd.connect(vsock.socket) as front_end, contextlib.ExitStack() as stack:
        driver = VsockDriver(front_end)
        listener = stack.enter_context(vsock.listen(80, backlog=count))
        guests, hosts = [], []
        for n in range(count // 2):
            guests.append(driver.connect(80, src_port=5000 + n))
            host, _ = listener.accept()
            hosts.append(stack.enter_context(host))
        for n in range(count // 2):
            hosts.append(stack.enter_context(vsock.ask(5000 + n)))
            guests.append(driver.accept())
            assert hosts[-1].recv(64).startswith(b"OK ")
        assert vsock.connections() == count
        for n, (guest, host) in enumerate(zip(guests, hosts, strict=True)):
            guest.write(b"%d" % n)
            host.settimeout(10)
            assert read_all(host, len(b"%d" % n)) == b"%d" % n
            host.sendall(b"<%d>" % n)
        for n, guest in enumerate(guests):
            assert guest.read(len(b"<%d>" % n)) == b"<%d>" % n
        for guest in guests:
            guest.close()
    vsock.wait_for_connections(0)


def test_one_connection_too_many_is_refused_and_the_others_go_on(vsock):
    most = 2048
    with FrontEnd.connect(vsock.socket) as front_end, contextlib.ExitStack() as stack:
        driver = VsockDriver(front_end)
        listener = stack.enter_context(vsock.listen(80, backlog=64))
        first = None
        for n in range(most):
            guest = driver.connect(80, src_port=5000 + n)
            first = first or guest
            stack.enter_context(listener.accept()[0])
        late = driver.request(80, src_port=1)
        late.wait(lambda: late.is_reset)
        with vsock.connect() as host:
            assert host.recv(1) == b""
        first.close()
        driver.connect(80, src_port=1)


def test_programs_that_never_write_their_line_hold_nobody_up(split, vsock):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(vsock.connect())
            stack.enter_context(vsock.connect()).sendall(b"CONNECT 12")
        still_serves(split, vsock)
    vsock.wait_for_connections(1, timeout=20)


@pytest.mark.usefixtures("split")
def test_programs_that_never_write_their_line_are_left_in_time(vsock):
    with vsock.connect() as one, vsock.connect() as other:
        other.sendall(b"CONN")
        assert one.recv(1) == other.recv(1) == b""


def test_a_listener_whose_queue_is_full_refuses_at_once(split, vsock):
    with vsock.listen(80, backlog=0):
        guests = [split.request(80, src_port=100 + n) for n in range(4)]
        guests[-1].wait(lambda: guests[-1].is_reset, timeout=1)
        assert guests[0].is_open


def test_packets_that_were_never_answered_make_no_room_missing(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end, offer=False)
        for _ in range(4):  # each time the driver begins anew with as much room as before
            driver.send(*(Packet(Op.RW, src_port=n) for n in range(400)))
            driver.flush()
            for index, ring in enumerate((driver.rx, driver.tx)):
                front_end.stop_ring(index)
                ring.rewind()
            for index, ring in enumerate((driver.rx, driver.tx)):
                front_end.start_ring(index, ring=ring)
        driver.buffers.clear()
        driver.offer(64)
        still_serves(driver, vsock)


def test_a_shared_memory_that_shrinks_ends_the_connection_only(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end)
        for region in front_end.memory.regions:
            region.memory.close()
            os.ftruncate(region.fd, 0)
        os.eventfd_write(driver.tx.kick_fd, 1)
        assert front_end.wait_closed()
    with FrontEnd.connect(vsock.socket) as front_end:
        still_serves(VsockDriver(front_end), vsock)


@pytest.mark.parametrize("by_reset", [False, True], ids=["shutdown", "rst"])
def test_what_is_read_late_arrives(split, vsock, by_reset):
    data = random.Random(11).randbytes(BUF_ALLOC)
    with accepted(split, vsock) as (guest, host):
        guest.write(data)
        while guest.peer_free < BUF_ALLOC // 2:  # until the socket is full
            guest.wait(lambda before=guest.peer_free: guest.peer_free > before)
        guest.write(data[: BUF_ALLOC // 2])
        guest.close()
        if by_reset:  # as Linux does when its time is over
            split.send(guest.packet(Op.RST))
            split.flush()
        time.sleep(10)  # longer than any limit
        sent = data + data[: BUF_ALLOC // 2]
        assert read_all(host, len(sent)) == sent
        assert host.recv(1) == b""


def test_siblings_leave_connections_to_others(siblings, tmp_path):
    one, other = siblings
    for n in range(2048):
        one.send(Packet(Op.REQUEST, dst_cid=4, src_port=n + 1))
    one.flush()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "host-4_80"))
        listener.listen()
        mine = other.request(80)
        while not mine.is_open:
            packet = other.receive()
            if packet.op == Op.RESPONSE:
                mine.take(packet)


# ---- kill -9 ----


@pytest.mark.parametrize("recorded", [False, True], ids=["unrecorded", "recorded"])
def test_the_driver_goes_on_after_a_kill(tmp_path, recorded):
    with Vsock(tmp_path) as process:
        process.ready()
        front_end = FrontEnd.connect(process.socket)
        with front_end:
            driver = VsockDriver(front_end, recorded=recorded)
            with accepted(driver, process) as (guest, host):
                guest.write(b"before")
                assert read_all(host, 6) == b"before"
                process.end(signal.SIGKILL)
                assert host.recv(1) == b""
            (tmp_path / f"host-{CID}_80").unlink()
            with Vsock(tmp_path) as again:
                again.ready()
                front_end.resume(again.socket)
                assert driver.event_ids() == [0]
                guest.send(Op.RW, b"more")
                guest.wait(lambda: guest.is_reset)
                still_serves(driver, again)


def test_requests_in_flight_at_a_kill_are_carried_out(tmp_path):
    with Vsock(tmp_path) as process, FrontEnd.connect(process.socket) as front_end:
        process.ready()
        driver = VsockDriver(front_end, recorded=True)
        process.process.send_signal(signal.SIGSTOP)
        guests = [driver.request(80, src_port=200 + n) for n in range(20)]
        process.end(signal.SIGKILL)
        with Vsock(tmp_path) as again:
            again.ready()
            with again.listen(80) as listener:
                front_end.resume(again.socket)
                for guest in guests:
                    guest.wait(lambda guest=guest: guest.is_open)
                    listener.accept()[0].close()


def test_a_new_driver_is_told_of_no_reset(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end)
        with accepted(driver, vsock):
            assert driver.event_ids(0.2) == []


def test_a_reset_is_told_in_whatever_order_vrings_start(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end)
        with accepted(driver, vsock) as (guest, host):
            guest.write(b"x")
            assert read_all(host, 1) == b"x"
            front_end.rings = {index: front_end.rings[index] for index in (TX, RX, EVENT)}
            front_end.resume(vsock.socket)
            assert driver.event_ids() == [0]


def test_a_front_end_that_comes_back_is_told_of_a_reset(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end)
        with accepted(driver, vsock) as (guest, host):
            guest.write(b"x")
            assert read_all(host, 1) == b"x"
            front_end.resume(vsock.socket)
            assert driver.event_ids() == [0]
            assert host.recv(1) == b""
            still_serves(driver, vsock)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_reset_is_told_in_whatever_order_the_rings_start(vsock, order):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end)
        with accepted(driver, vsock) as (guest, host):
            guest.write(b"x")
            assert read_all(host, 1) == b"x"
            front_end.rings = {index: front_end.rings[index] for index in order}
            front_end.resume(vsock.socket)
            assert driver.event_ids() == [0]
            assert host.recv(1) == b""
            still_serves(driver, vsock)


@pytest.mark.parametrize("order", [(RX, TX), (TX, RX)], ids=str)
def test_a_driver_that_begins_anew_in_any_order_has_no_connections(split, vsock, order):
    with accepted(split, vsock) as (guest, host):
        guest.write(b"x")
        assert read_all(host, 1) == b"x"
        rings = {RX: split.rx, TX: split.tx}
        for index in order:
            split.front_end.stop_ring(index)
            rings[index].rewind()
        for index in order:
            split.front_end.start_ring(index, ring=rings[index])
        assert host.recv(1) == b""


def test_the_event_ring_is_of_no_need(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end, events=False)
        assert EVENT not in front_end.rings
        still_serves(driver, vsock)


@pytest.mark.parametrize("size", [2, 8, 256, 1024])
def test_rings_of_any_size_are_served(vsock, size):
    with FrontEnd.connect(vsock.socket) as front_end:
        driver = VsockDriver(front_end, size=size, indirect=size == 2)
        still_serves(driver, vsock)
