# SPDX-License-Identifier: Apache-2.0
"""A network device served to a scripted front end, its TAP in a network namespace of its own."""

import fcntl
import json
import os
import signal
import struct
import time
from random import Random

import pytest

from harness.daemon import Serving
from harness.dirtylog import DirtyLog, pages
from harness.frontend import DESC_INDIRECT, DESC_WRITE, Feature, FrontEnd, Request
from harness.network import Namespace
from harness.nic import (
    ERROR,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_UDP,
    HEADER,
    NEEDS_CSUM,
    OF_RINGS,
    OK,
    PLAIN,
    RECEIVE,
    TRANSMIT,
    USUAL,
    ControlDriver,
    NetDriver,
    NetFeature,
    frame,
    is_ours,
    tcp_segment,
)
from harness.process import worker_sleeps

TSO4 = HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16, 0)
SHORTER_RING = 16
STATUS_AT = 6  # of the configuration space


class NetDaemon(Serving):
    """`blkd net` in a namespace."""

    def __init__(self, namespace, directory, *options, log="log", **popen):
        self.socket = directory / "net.sock"
        self.control = directory / "control.sock"
        where = ["--socket", self.socket, "--control", self.control, "--json"]
        self.namespace = namespace
        tap = [] if "--tap-fd" in options else ["--tap", "tap0"]
        command = ["blkd", "net", *tap, *where, *options]
        with namespace.inside():
            super().__init__(command, directory / log, **popen)

    def facts(self):
        return self.call("show")["devices"][0]["facts"]

    def counts(self, index):
        [ring] = [ring for ring in self.call("stats")["rings"] if ring["ring"] == index]
        return ring["counts"]

    def wait_for_fact(self, name, value):
        deadline = time.monotonic() + 10
        while (facts := self.facts())[name] != value:
            assert time.monotonic() < deadline, facts


@pytest.fixture
def namespace():
    with Namespace() as made:
        made.tap()
        yield made


@pytest.fixture
def start(namespace, tmp_path):
    """Starts `blkd net`."""
    started = []

    def start(*options, **popen):
        daemon = NetDaemon(namespace, tmp_path, *options, log=f"log.{len(started)}", **popen)
        started.append(daemon)
        daemon.ready()
        return daemon

    yield start
    for daemon in started:
        daemon.__exit__()


@pytest.fixture
def daemon(start):
    return start()


@pytest.fixture
def front_end(daemon):
    with FrontEnd.connect(daemon.socket) as connected:
        yield connected


@pytest.fixture(params=["split", "packed"])
def driver(front_end, request):
    return NetDriver.negotiate(front_end, packed=request.param == "packed")


@pytest.fixture
def wire(namespace):
    """The host's end: frames that go into the TAP and come out of it."""
    with namespace.packets() as sock:
        yield sock


def next_frame(wire):
    """The next frame of ours that the guest has sent."""
    while True:
        data, (_, _, kind, *_) = wire.recvfrom(1 << 17)
        if is_ours(data) and kind != 4:  # PACKET_OUTGOING
            return data


# ---- packets ----


def test_what_the_guest_sends_comes_out_of_the_tap(driver, wire):
    frames = [frame(size, number=size) for size in (46, 64, 1000, 1500)]
    driver.send(*frames)
    assert [next_frame(wire) for _ in frames] == frames
    driver.sent(len(frames))


def test_what_goes_into_the_tap_comes_to_the_guest(driver, wire):
    driver.offer(8)
    frames = [frame(size, number=size) for size in (46, 64, 1000, 1500)]
    for each in frames:
        wire.send(each)
    received = driver.received(len(frames))
    assert [packet.frame for packet in received] == frames
    assert {packet.header for packet in received} == {(0, 0, 0, 0, 0, 0, 1)}


def test_a_packet_waits_for_a_buffer(driver, wire):
    wire.send(frame())
    assert driver.nothing_comes()
    driver.offer()
    assert driver.received()[0].frame == frame()


def test_a_packet_fills_several_buffers(driver, wire):
    driver.offer(10, 500)
    wire.send(frame(1400))
    wire.send(frame(100))
    big, small = driver.received(2)
    assert (big.frame, big.buffers) == (frame(1400), 3)
    assert (small.frame, small.buffers) == (frame(100), 1)


def test_a_big_frame_fills_many_buffers(driver, namespace, wire):
    namespace.ip("link set tap0 mtu 65000")
    driver.offer(60, 1500)
    for size in (64000, 64000, 50):
        wire.send(frame(size))
    assert driver.received()[0].frame == frame(64000)
    driver.offer(60, 1500)
    assert [packet.frame for packet in driver.received(2)] == [frame(64000), frame(50)]


def test_a_packet_that_has_some_buffers_waits_for_the_rest(daemon, driver, wire):
    driver.offer(2, 500)
    wire.send(frame(1400))
    assert driver.nothing_comes()
    driver.offer(1, 500)
    packet = driver.received()[0]
    assert (packet.frame, packet.buffers) == (frame(1400), 3)
    assert daemon.counts(RECEIVE)["copied"] == 1


def test_buffers_that_wait_are_given_up_when_their_ring_stops(driver, wire):
    driver.offer(2, 500)
    wire.send(frame(1400))
    assert driver.nothing_comes()
    base = driver.front_end.stop_ring(RECEIVE)
    assert base & 0x7FFF == 0
    driver.front_end.start_ring(RECEIVE, ring=driver.receive, base=base)
    wire.send(frame(300))
    assert driver.received()[0].frame == frame(300)


def test_buffers_that_wait_move_to_other_memory(driver, wire):
    driver.offer(2, 500)
    wire.send(frame(1400))
    assert driver.nothing_comes()
    driver.front_end.add_region(driver.front_end.memory.grow(1 << 20))
    driver.offer(1, 500)
    assert driver.received()[0].frame == frame(1400)


def test_a_pause_ends_though_buffers_wait(daemon, driver, wire):
    driver.offer(2, 500)
    wire.send(frame(1400))
    assert driver.nothing_comes()
    assert daemon.pause(5) == 0
    driver.offer(1, 500)
    assert driver.nothing_comes()
    daemon.call("resume")
    assert driver.received()[0].frame == frame(1400)


def test_buffers_that_are_not_used_are_not_fetched(driver, wire):
    driver.offer(20)
    for _ in range(3):
        wire.send(frame())
    driver.received(3)
    assert driver.front_end.stop_ring(RECEIVE) & 0x7FFF == 3


def test_without_merged_buffers_each_packet_has_a_chain(daemon, front_end, wire):
    driver = NetDriver.negotiate(front_end, features=USUAL & ~int(NetFeature.MRG_RXBUF))
    driver.offer(1, 500)
    driver.offer(3, 2000)
    wire.send(frame(1400))  # for which the first chain has no room
    wire.send(frame(100))
    wire.send(frame(1400))
    assert [packet.frame for packet in driver.received(2)] == [frame(100), frame(1400)]
    assert daemon.counts(RECEIVE)["oversized"] == 1


def test_a_driver_of_old_has_a_shorter_header(front_end, wire):
    driver = NetDriver.negotiate(front_end, features=int(Feature.PROTOCOL_FEATURES))
    driver.offer(2)
    driver.send(frame(100))
    assert next_frame(wire) == frame(100)
    wire.send(frame(70))
    assert driver.received()[0].frame == frame(70)


def test_packets_go_on_for_many_rounds_of_the_ring(driver, wire):
    for number in range(40):
        driver.offer(40 - len(driver.buffers), 700)
        frames = [frame(300 + 17 * (number + n) % 1000, number=n) for n in range(16)]
        for each in frames:
            wire.send(each)
        driver.send(*frames)
        assert [packet.frame for packet in driver.received(16)] == frames
        assert [next_frame(wire) for _ in frames] == frames
        driver.sent(16)


def test_a_worker_that_waits_for_packets_does_not_wake(daemon, driver, wire):
    driver.offer(64)
    wire.send(frame())
    driver.received()
    driver.send(frame())
    driver.sent(1)
    pid = daemon.process.pid
    before = worker_sleeps(pid)
    assert driver.nothing_comes(1)
    assert worker_sleeps(pid) - before < 3


def test_a_chain_of_many_pieces_is_sent(front_end, wire):
    driver = NetDriver.negotiate(front_end)
    data = PLAIN + frame(1000)
    chain = [(bytes([byte]), 1, 0) for byte in data[:127]]
    driver.transmit.publish(
        driver.transmit.add_indirect([*chain, (data[127:], len(data) - 127, 0)])
    )
    driver.transmit.notify()
    assert next_frame(wire) == frame(1000)


# ---- offloads ----


def test_a_large_segment_is_sent_as_it_is(daemon, driver, wire):
    segment = tcp_segment(bytes(8000))
    driver.send(segment, header=TSO4)
    driver.sent(1)
    counts = daemon.counts(TRANSMIT)
    assert (counts["packets"], counts["refused"], counts["malformed"]) == (1, 0, 0)
    while True:
        data = wire.recv(1 << 17)
        if data[12:14] == b"\x08\0":
            assert len(data) == len(segment)
            break


def test_the_tap_has_the_offloads_that_the_guest_takes(daemon, front_end):
    NetDriver.negotiate(front_end, features=int(OF_RINGS) | int(NetFeature.GUEST_CSUM))
    assert daemon.facts()["offloads"] == ["GUEST_CSUM"]


@pytest.mark.parametrize(
    "features",
    [
        pytest.param(NetFeature.GUEST_TSO4, id="tso-without-csum"),
        pytest.param(NetFeature.GUEST_CSUM | NetFeature.GUEST_ECN, id="ecn-without-tso"),
        pytest.param(NetFeature.GUEST_UFO, id="ufo-without-csum"),
    ],
)
def test_offloads_that_lack_what_they_need_are_refused_and_change_nothing(daemon, wire, features):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate(USUAL & front_end.offered())
        wanted = int(OF_RINGS) | int(features)
        assert front_end.ack(Request.SET_FEATURES, struct.pack("=Q", wanted)) != 0
    with FrontEnd.connect(daemon.socket) as front_end:
        driver = NetDriver.negotiate(front_end)
        driver.offer()
        wire.send(frame())
        assert driver.received()[0].frame == frame()


def test_a_guest_that_takes_no_segments_gets_none_that_were_kept(daemon, namespace, wire):
    """A large segment lies in the TAP when a driver comes that does not take it."""
    with FrontEnd.connect(daemon.socket) as front_end:
        NetDriver.negotiate(front_end)
    vnet = HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16, 0)[:10]
    with namespace.packets() as segments:
        segments.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        segments.send(vnet + tcp_segment(bytes(5000)))
    wire.send(frame())
    with FrontEnd.connect(daemon.socket) as front_end:
        driver = NetDriver.negotiate(front_end, features=int(OF_RINGS) | int(NetFeature.MRG_RXBUF))
        driver.offer(32)
        assert driver.received()[0].frame == frame()
        assert daemon.counts(RECEIVE)["oversized"] == 1


def test_packets_longer_than_the_mtu_agreed_upon_are_dropped(daemon, front_end, namespace, wire):
    driver = NetDriver.negotiate(front_end, features=USUAL | int(NetFeature.MTU))
    namespace.ip("link set tap0 mtu 9000")
    driver.offer(32)
    for size in (5000, 1504, 1505, 1500):
        wire.send(frame(size))
    assert [len(packet.frame) for packet in driver.received(2)] == [1518, 1514]
    assert daemon.counts(RECEIVE)["oversized"] == 2


# ---- hostile guests ----

HOSTILE = {
    "no-such-segmentation": HEADER.pack(NEEDS_CSUM, 7, 54, 1000, 34, 16, 0),
    "segments-of-nothing": HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, 0, 34, 16, 0),
    "segments-without-checksum": HEADER.pack(0, GSO_TCPV4, 54, 1000, 34, 16, 0),
    "ecn-alone": HEADER.pack(NEEDS_CSUM, GSO_ECN | GSO_NONE, 54, 1000, 34, 16, 0),
    "udp-with-a-flag": HEADER.pack(NEEDS_CSUM, GSO_UDP | 0x20, 54, 1000, 34, 6, 0),
    "checksum-behind-the-end": HEADER.pack(NEEDS_CSUM, 0, 0, 0, 60, 0xFFFF, 0),
    "checksum-at-the-end": HEADER.pack(NEEDS_CSUM, 0, 0, 0, 77, 0, 0),
    "checksum-starts-behind-the-end": HEADER.pack(NEEDS_CSUM, 0, 0, 0, 0xFFFF, 0xFFFF, 0),
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_dropped_and_its_chain_comes_back(daemon, driver, wire, header):
    driver.send(frame(64), header=header)
    driver.sent(1)
    driver.send(frame(100))
    assert next_frame(wire) == frame(100)
    counts = daemon.counts(TRANSMIT)
    assert (counts["malformed"], counts["packets"]) == (1, 1)


@pytest.mark.parametrize(
    ("features", "header"),
    [
        pytest.param(0, HEADER.pack(NEEDS_CSUM, 0, 0, 0, 14, 0, 0), id="checksum"),
        pytest.param(NetFeature.CSUM, TSO4, id="segments"),
        pytest.param(
            NetFeature.CSUM | NetFeature.HOST_TSO4,
            HEADER.pack(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 54, 1000, 34, 16, 0),
            id="ecn",
        ),
    ],
)
def test_what_was_not_agreed_upon_is_dropped(daemon, front_end, features, header):
    driver = NetDriver.negotiate(front_end, features=int(OF_RINGS) | int(features))
    driver.send(tcp_segment(bytes(2000)), header=header)
    driver.sent(1)
    assert daemon.counts(TRANSMIT)["malformed"] == 1


@pytest.mark.parametrize("size", [0, 1, 13, 70000], ids=str)
def test_a_packet_of_no_possible_length_is_dropped(daemon, driver, size):
    driver.transmit.publish(driver.transmit.add([(PLAIN + bytes(size), 12 + size, 0)]))
    driver.transmit.notify()
    driver.sent(1)
    assert daemon.counts(TRANSMIT)["malformed"] == 1


def test_thousands_of_random_headers_do_no_harm(daemon, driver, wire):
    random = iter(os.urandom(12) for _ in range(4000))
    taken = 0
    while taken < 4000:
        heads = [
            driver.transmit.add([(next(random), 12, 0), (frame(64), 78, 0)]) for _ in range(50)
        ]
        driver.transmit.publish(*heads)
        driver.transmit.notify()
        driver.sent(50)
        taken += 50
    driver.send(frame(99))
    while next_frame(wire) != frame(99):
        pass
    counts = daemon.counts(TRANSMIT)
    assert counts["malformed"] + counts["refused"] + counts["packets"] == 4001
    assert counts["malformed"] > 2000
    assert daemon.call("show")["devices"][0]["broken_rings"] == []


def test_a_bad_chain_behind_too_few_buffers_breaks_its_ring(daemon, driver, wire):
    driver.offer(2, 500)
    at = driver.front_end.memory.alloc(2048)
    driver.receive.publish(driver.receive.add([(at, 64, 0), (at, 2000, DESC_WRITE)]))
    driver.receive.notify()
    wire.send(frame(1400))
    assert driver.receive.broken()
    [said] = daemon.call("show")["devices"][0]["broken_reasons"]
    assert "to be read" in said


def test_buffers_in_tiny_pieces_take_what_they_can(daemon, front_end, wire):
    driver = NetDriver.negotiate(front_end)
    heads = []
    for _ in range(16):
        at = front_end.memory.alloc(128)
        pieces = [(at + n, 1, DESC_WRITE) for n in range(127)]
        heads.append(driver.receive.add_indirect(pieces))
        driver.buffers[heads[-1]] = at, 127
    driver.receive.publish(*heads)
    driver.receive.notify()
    wire.send(frame(1400))  # for which a call of the kernel takes no such buffers
    wire.send(frame(300))
    assert driver.received()[0].frame == frame(300)
    counts = daemon.counts(RECEIVE)
    assert (counts["oversized"], counts["packets"]) == (1, 1)
    before = worker_sleeps(daemon.process.pid)
    assert driver.nothing_comes(0.5)
    assert worker_sleeps(daemon.process.pid) - before < 3


def test_a_broken_chain_breaks_its_ring_only(driver, wire):
    driver.offer(4)
    driver.transmit.publish(driver.transmit.add([(2**40, 100, 0)]))
    driver.transmit.notify()
    assert driver.transmit.broken()
    wire.send(frame())
    assert driver.received()[0].frame == frame()
    restart(driver, TRANSMIT, driver.transmit)
    driver.send(frame(123))
    assert next_frame(wire) == frame(123)


def restart(driver, index, ring):
    """Have a ring begin anew, as a driver does that resets its device."""
    driver.front_end.stop_ring(index)
    ring.rewind()
    driver.front_end.start_ring(index, ring=ring)


def random_chain(random, memory):
    """A chain of which hardly anything is right."""
    here = memory.alloc(4096)
    chain = []
    for _ in range(random.randint(1, 5)):
        at = random.choice([here, here + 4000, random.getrandbits(64), random.getrandbits(24)])
        length = random.choice([0, 1, 12, 64, 1500, random.getrandbits(32)])
        chain.append((at, length, random.choice([0, 0, DESC_WRITE, DESC_WRITE, DESC_INDIRECT])))
    memory.free(here, 4096)
    return chain


def test_thousands_of_random_chains_do_no_harm(daemon, driver, wire):
    random = Random(1)
    for number in range(2000):
        ring = random.choice([driver.receive, driver.transmit])
        ring.publish(ring.add(random_chain(random, driver.front_end.memory)))
        ring.kick()
        wire.send(frame())
        if number % 10 == 9:  # before a ring is full
            for each in ((RECEIVE, driver.receive), (TRANSMIT, driver.transmit)):
                restart(driver, *each)
    for index, ring in ((RECEIVE, driver.receive), (TRANSMIT, driver.transmit)):
        restart(driver, index, ring)
    driver.offer(100)
    while not driver.nothing_comes():  # what the TAP has kept meanwhile
        count = len(driver.came)
        driver.received(count)
        driver.offer(count)
    driver.send(frame(111))
    while next_frame(wire) != frame(111):
        pass
    wire.send(frame(112))
    assert driver.received()[0].frame == frame(112)
    assert daemon.call("show")["devices"][0]["broken_rings"] == []


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        pytest.param([(bytes(64), 64, 0), (None, 2000, DESC_WRITE)], "to be read", id="readable"),
        pytest.param([(None, 11, DESC_WRITE)], "no room for a header", id="short"),
    ],
)
def test_a_chain_that_nothing_can_be_received_into_breaks_its_ring(
    daemon, driver, wire, chain, reason
):
    at = driver.front_end.memory.alloc(2048)
    filled = [(at if buffer is None else buffer, *rest) for buffer, *rest in chain]
    driver.offer(1)
    driver.receive.publish(driver.receive.add(filled))
    driver.receive.notify()
    wire.send(frame())
    assert driver.received()[0].frame == frame(), "what came before it is used"
    wire.send(frame())
    assert driver.receive.broken()
    driver.send(frame(77))
    assert next_frame(wire) == frame(77)
    [said] = daemon.call("show")["devices"][0]["broken_reasons"]
    assert reason in said


# ---- the TAP ----


def test_a_tap_that_is_down_refuses_packets_and_shows_no_link(daemon, driver, namespace):
    front_end = driver.front_end
    assert front_end.config(STATUS_AT, 2) == b"\1\0"
    namespace.ip("link set tap0 down")
    _, config = front_end.answer_backend()
    assert config[STATUS_AT] == 0
    driver.send(frame())
    driver.sent(1)
    assert daemon.counts(TRANSMIT)["refused"] == 1
    namespace.ip("link set tap0 up")
    _, config = front_end.answer_backend()
    assert config[STATUS_AT] == 1
    assert daemon.facts()["link_up"] is True


def test_a_tap_that_is_deleted_is_told_of_once(daemon, driver, namespace):
    driver.offer(4)
    namespace.ip("link delete tap0")
    daemon.wait_for_log("TAP gone", tap="tap0")
    for _ in range(20):
        driver.send(frame())
        driver.sent(1)
    assert daemon.counts(TRANSMIT)["refused"] == 20
    before = worker_sleeps(daemon.process.pid)
    assert driver.nothing_comes(0.5)
    assert worker_sleeps(daemon.process.pid) - before < 3


def test_queues_are_attached_for_the_pairs_in_use(start):
    daemon = start("--queues", 3)
    with FrontEnd.connect(daemon.socket) as front_end:
        driver = NetDriver.negotiate(front_end, features=USUAL | int(NetFeature.MQ))
        NetDriver(front_end, 1)
        daemon.wait_for_fact("pairs_attached", 2)
        front_end.enable(2, on=False)
        daemon.wait_for_fact("pairs_attached", 1)
        assert driver.receive.index == 0


def test_all_pairs_carry_packets(start, wire):
    daemon = start("--queues", 2, "--workers", 2)
    with FrontEnd.connect(daemon.socket) as front_end:
        pairs = [NetDriver.negotiate(front_end, features=USUAL | int(NetFeature.MQ))]
        pairs.append(NetDriver(front_end, 1))
        daemon.wait_for_fact("pairs_attached", 2)
        for number, pair in enumerate(pairs):
            pair.send(frame(200, number=number))
            assert next_frame(wire) == frame(200, number=number)
            pair.offer(32)
        for number in range(32):
            wire.send(frame(100, number=number))
        deadline = time.monotonic() + 10
        while sum(daemon.counts(index)["packets"] for index in (0, 2)) < 32:
            assert time.monotonic() < deadline


def test_a_guest_is_announced(driver, wire):
    mac = b"\x52\x54\0\1\2\3"
    front_end = driver.front_end
    front_end.set(Request.SEND_RARP, mac + bytes(2))
    while True:
        data = wire.recv(2000)
        if data[12:14] == b"\x80\x35":
            break
    assert data[:12] == b"\xff" * 6 + mac
    assert data[20:42] == b"\0\3" + mac + bytes(4) + mac + bytes(4)


# ---- the control queue ----

MQ, OFFLOADS = 4, 5


@pytest.fixture
def control(start):
    daemon = start("--queues", 2, "--control-queue")
    with FrontEnd.connect(daemon.socket) as front_end:
        NetDriver.negotiate(front_end, features=USUAL | int(NetFeature.MQ))
        NetDriver(front_end, 1)
        yield daemon, ControlDriver(front_end, 4)


def test_the_driver_chooses_how_many_pairs_it_uses(control):
    daemon, driver = control
    daemon.wait_for_fact("pairs_attached", 1)
    assert driver.command(MQ, 0, struct.pack("<H", 2)) == OK
    assert daemon.facts()["pairs_attached"] == 2
    assert driver.command(MQ, 0, struct.pack("<H", 1)) == OK
    assert daemon.facts()["pairs_attached"] == 1


def test_the_driver_chooses_what_it_does_of_a_cards_work(control):
    daemon, driver = control
    wanted = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4
    assert driver.command(OFFLOADS, 0, struct.pack("<Q", wanted)) == OK
    assert daemon.facts()["offloads"] == ["GUEST_CSUM", "GUEST_TSO4"]


@pytest.mark.parametrize(
    ("kind", "command", "value"),
    [
        pytest.param(MQ, 0, struct.pack("<H", 0), id="no-pairs"),
        pytest.param(MQ, 0, struct.pack("<H", 3), id="too-many-pairs"),
        pytest.param(MQ, 0, b"\1", id="cut-short"),
        pytest.param(MQ, 1, struct.pack("<H", 1), id="unknown-command"),
        pytest.param(OFFLOADS, 0, struct.pack("<Q", 1 << 63), id="no-such-offload"),
        pytest.param(OFFLOADS, 0, struct.pack("<Q", NetFeature.GUEST_TSO4), id="without-csum"),
        pytest.param(
            OFFLOADS, 0, struct.pack("<Q", NetFeature.GUEST_CSUM | NetFeature.GUEST_ECN), id="ecn"
        ),
        pytest.param(0, 0, b"\1", id="unknown-class"),
        pytest.param(255, 255, bytes(4000), id="long"),
    ],
)
def test_a_command_that_cannot_be_done_is_refused(control, kind, command, value):
    _, driver = control
    assert driver.command(kind, command, value) == ERROR
    assert driver.command(MQ, 0, struct.pack("<H", 2)) == OK


def test_a_command_is_answered_though_the_tap_is_gone(control):
    daemon, driver = control
    daemon.namespace.ip("link delete tap0")
    assert driver.command(OFFLOADS, 0, struct.pack("<Q", NetFeature.GUEST_CSUM)) == ERROR
    assert "GUEST_TSO4" in daemon.facts()["offloads"]
    assert driver.command(OFFLOADS, 0, struct.pack("<Q", NetFeature.GUEST_CSUM)) == ERROR
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0


def test_thousands_of_commands_in_one_go_are_answered(control):
    _, driver = control
    front_end, ring = driver.front_end, driver.ring
    ack = front_end.memory.alloc(1)
    for _ in range(200):
        heads = [ring.add([(bytes([9, 9]), 2, 0), (ack, 1, DESC_WRITE)]) for _ in range(8)]
        ring.publish(*heads)
        ring.notify()
        came = 0
        while came < len(heads):
            used = ring.wait_used()
            assert used
            came += len(used)
    assert driver.command(MQ, 0, struct.pack("<H", 2)) == OK


def test_a_command_without_room_for_an_answer_breaks_the_queue(control):
    daemon, driver = control
    driver.ring.publish(driver.ring.add([(bytes(4), 4, 0)]))
    driver.ring.notify()
    assert driver.ring.broken()
    assert daemon.call("show")["devices"][0]["broken_rings"] == [4]


# ---- a back end that is killed, a migration ----


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_new_process_goes_on_after_a_kill(start, wire, packed):
    daemon = start()
    with FrontEnd.connect(daemon.socket) as front_end:
        features = USUAL & front_end.offered() | (int(Feature.RING_PACKED) if packed else 0)
        front_end.prepare(features)
        front_end.track_inflight(queues=2)
        driver = NetDriver(front_end)
        for number in range(5):
            driver.offer(8)
            wire.send(frame(900, number=number))
            driver.send(frame(800, number=number))
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
            daemon.socket.unlink()
            daemon.control.unlink()
            daemon = start()
            front_end.resume(daemon.socket)
            wait_until_quiet(driver)
            driver.offer(3)
            wire.send(frame(1000, number=number))
            while driver.received()[0].frame != frame(1000, number=number):
                pass
            driver.send(frame(1001, number=number))
            while next_frame(wire) != frame(1001, number=number):
                pass


def wait_until_quiet(driver):
    """Drop the buffers that a killed back end had, which come back empty, and what has come."""
    while driver.transmit.wait_used(0.1):
        pass
    for head, written in driver.receive.wait_used(0.1):
        at, size = driver.buffers.pop(head)
        if written:
            driver.came.append((head, written))
            driver.buffers[head] = at, size


def test_what_is_received_is_logged_during_a_migration(driver, wire):
    front_end = driver.front_end
    with DirtyLog(front_end) as log:
        log.start()
        driver.offer(3, 4096)
        places = [at for at, _ in driver.buffers.values()]
        wire.send(frame(1400))
        assert driver.received()[0].frame == frame(1400)
        marked = log.take()
        assert pages(places[0], 12 + 14 + 1400) <= marked
        assert not pages(places[2] + 4096, 1) & marked
        log.stop()


# ---- a TAP that is full ----

TUNSETIFF, TUNSETSNDBUF = 0x400454CA, 0x400454D4
TAP_FLAGS = 0x0002 | 0x1000 | 0x4000 | 0x0100  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE


FAR = "52:54:00:00:00:09"  # behind the slow line


@pytest.fixture
def tap_fd(namespace):
    """A descriptor of the TAP, as somebody else has opened it."""
    with namespace.inside():
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tap0", TAP_FLAGS))
    yield fd
    os.close(fd)


def test_a_tap_that_came_as_a_descriptor_is_served(start, wire, tap_fd):
    daemon = start("--tap-fd", tap_fd, pass_fds=[tap_fd])
    with FrontEnd.connect(daemon.socket) as front_end:
        driver = NetDriver.negotiate(front_end)
        driver.send(frame())
        assert next_frame(wire) == frame()
        driver.offer()
        wire.send(frame(70))
        assert driver.received()[0].frame == frame(70)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_full_tap_is_waited_for(namespace, start, tap_fd, packed):
    """Behind the TAP a bridge leads to a slow line, which keeps what it has not sent."""
    for command in (
        *("link add br0 type bridge", "link set br0 up", "link set tap0 master br0"),
        *("link add slow type veth peer name end", "link set slow master br0"),
        *("link set slow up", "link set end up"),
    ):
        namespace.ip(command)
    rate = ("rate", "8mbit", "burst", 3000, "limit", 10_000_000)
    namespace.run("bridge", "fdb", "add", FAR, "dev", "slow", "master", "static")
    namespace.run("tc", "qdisc", "add", "dev", "slow", "root", "tbf", *rate)
    fcntl.ioctl(tap_fd, TUNSETSNDBUF, struct.pack("i", 20000))
    daemon = start("--tap-fd", tap_fd, pass_fds=[tap_fd])
    with FrontEnd.connect(daemon.socket) as front_end, namespace.packets("end") as end:
        driver = NetDriver.negotiate(front_end, packed=packed)
        there = bytes.fromhex(FAR.replace(":", ""))
        frames = [there + frame(1000, number=number)[6:] for number in range(200)]
        for number in range(0, 200, 50):
            driver.send(*frames[number : number + 50])
            driver.sent(50)
        [line] = json.loads(namespace.ip("-j -s link show end"))
        assert line["stats64"]["rx"]["packets"] > 150, "no more is kept than the TAP takes"
        assert [next_frame(end) for _ in frames] == frames
        assert daemon.counts(TRANSMIT)["refused"] == 0


# ---- starting ----


def failed(namespace, tmp_path, *options, **popen):
    """What `blkd net` says where it does not start."""
    with NetDaemon(namespace, tmp_path, *options, **popen) as daemon:
        assert daemon.process.wait(10) == 1
        return daemon.errors()


def test_a_descriptor_that_is_no_tap_is_refused(namespace, tmp_path):
    with (tmp_path / "file").open("w") as file:
        fd = file.fileno()
        said = failed(namespace, tmp_path, "--tap-fd", fd, pass_fds=[fd])
    assert "is no TAP" in said


def test_a_descriptor_given_twice_is_refused(namespace, tmp_path, tap_fd):
    said = failed(namespace, tmp_path, "--tap-fd", f"{tap_fd},{tap_fd}", pass_fds=[tap_fd])
    assert "twice" in said


def test_a_descriptor_of_nothing_is_refused(namespace, tmp_path):
    assert "is no TAP" in failed(namespace, tmp_path, "--tap-fd", 77)


def test_a_tap_in_use_is_refused(namespace, tmp_path):
    namespace.ip("tuntap add tap1 mode tap vnet_hdr")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with NetDaemon(namespace, tmp_path / "a", "--tap", "tap1") as first:
        first.ready()
        said = failed(namespace, tmp_path / "b", "--tap", "tap1")
    assert "somebody else has it open" in said


def test_the_configuration_is_as_was_asked_for(start):
    daemon = start("--mac", "52:54:00:aa:bb:cc", "--mtu", 9000, "--queues", 2)
    with FrontEnd.connect(daemon.socket) as front_end:
        NetDriver.negotiate(front_end, features=USUAL)
        config = front_end.config(0, 12)
    assert config == bytes.fromhex("525400aabbcc") + struct.pack("<HHH", 1, 2, 9000)
    assert "mtu 9000" in daemon.namespace.ip("link show tap0")
