# SPDX-License-Identifier: Apache-2.0
"""Packed rings through a whole blkd: of any size, out of order, stopped, broken and misled."""

import itertools
import os
import random
import struct

import pytest

from harness.daemon import Daemon, image
from harness.frontend import IN, OK, OUT, Disk, Feature, FrontEnd, Request
from harness.packed_vring import DISABLE, ENABLE, ONE_DESC, START, WRAP, PackedVring
from harness.vring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from tests.hostile_chains import EITHER_LAYOUT, HEADER

pytestmark = pytest.mark.usefixtures("each_engine")

MIB = 1 << 20
SIZE = 4 * MIB
LIMIT = 5.0  # seconds of anything


@pytest.fixture(scope="module")
def daemon(each_engine, tmp_path_factory):  # noqa: ARG001 - started anew for each
    """One blkd for all tests: front ends come and go."""
    directory = tmp_path_factory.mktemp("packed")
    with Daemon(image(directory / "disk.img", SIZE), directory, "--queues", 2) as started:
        started.ready()
        yield started


@pytest.fixture
def disks(front_end):
    """Two rings: one to break, one that must go on."""
    return list(front_end.disks(2, 16, packed=True))


def without(front_end, feature):
    return Feature(front_end.offered() & ~feature)


def carry(disk, turns, at_once, seed=0):
    """Write and read back as many sectors at a time, and tell nothing of what was seen wrong."""
    chance = random.Random(seed)
    for turn in range(turns):
        sectors = chance.sample(range(SIZE // 512), at_once)
        data = [s.to_bytes(4, "little") + turn.to_bytes(4, "little") for s in sectors]
        pairs = list(zip(sectors, data, strict=True))
        for done in disk.wait(*[disk.submit(OUT, s, content * 64) for s, content in pairs]):
            assert (done.status, done.written) == (OK, 1)
        heads = [disk.submit(IN, s, size=512) for s in sectors]
        for done, (_, content) in zip(disk.wait(*heads), pairs, strict=True):
            assert (done.status, done.data, done.written) == (OK, content * 64, 513)


# Carrying data


@pytest.mark.parametrize("size", [3, 5, 100, 1000])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_rings_of_any_size_carry_many_times_their_length(front_end, size, event_idx, indirect):
    features = None if event_idx else without(front_end, Feature.EVENT_IDX)
    disk = front_end.disk(size=size, features=features, packed=True)
    disk.indirect = indirect
    at_once = min(size if indirect else size // 3, 100)
    carry(disk, turns=-(-4 * size // (at_once * (1 if indirect else 3))), at_once=at_once)
    assert disk.ring.seen >= 4 * size


def test_a_ring_of_one_descriptor_is_served(front_end):
    disk = front_end.disk(size=1, packed=True)
    disk.indirect = True
    carry(disk, turns=5, at_once=1)


def test_answers_come_back_in_the_order_in_which_they_are_ready(serve, tmp_path):
    """Some requests are delayed, some bounced, some large: each is known by its id alone."""
    path = image(tmp_path / "a.img", SIZE)
    _, front_end = serve(f"faulty:delay=3ms@any/3:{path}")
    disk = front_end.disk(size=61, packed=True)
    chance, overtaken = random.Random(1), 0
    for turn in range(8):
        disk.indirect = turn % 2 == 1
        wanted, heads = {}, []
        for n in range(12):
            length = chance.choice([512, 4096, 65536])
            content = bytes([turn * 12 + n]) * length
            heads.append(disk.submit(OUT, n * 256, content))
            wanted[n] = content
        order = []
        while len(order) < len(heads):
            used = disk.ring.wait_used()
            assert used
            order += [ident for ident, _ in used]
        assert sorted(order) == sorted(heads)
        overtaken += order != heads
        for n, content in wanted.items():
            assert path.read_bytes()[n * 256 * 512 :][: len(content)] == content
    assert overtaken > 0


def test_a_driver_that_wants_no_calls_gets_none_and_its_answers_all_the_same(disks):
    disk, _ = disks
    assert disk.ring.called(LIMIT)  # at the start
    disk.ring.event_flags = DISABLE
    for n in range(20):
        disk.submit(OUT, n, bytes(512))
        while not disk.ring.take_used():
            os.sched_yield()
    assert not disk.ring.called(0.05)


def test_a_driver_is_called_for_the_descriptor_that_it_names(disks):
    disk, _ = disks
    ring = disk.ring
    ring.event_at, ring.event_flags = ring.position(9), ONE_DESC
    assert ring.called(LIMIT)  # at the start
    for n in range(5):
        assert not ring.called(0)
        disk.submit(OUT, n, bytes(512))  # of three descriptors
        while not ring.take_used():
            os.sched_yield()
        assert ring.called(0.05) is (n == 3)


@pytest.mark.parametrize("ident", [0, 16, 0x8000, 0xFFFF])
def test_an_id_is_the_drivers_own(disks, ident):
    disk, _ = disks
    ring = disk.ring
    for _ in range(8):
        ring.publish(ring.add([(HEADER, 16, 0), (bytes(513), 513, DESC_WRITE)], ident))
        ring.kick()
        assert ring.wait_used() == [(ident, 513)]


def test_two_chains_of_the_same_id_are_two_requests(disks):
    ring = disks[0].ring
    header, data = ring.memory.alloc(16), ring.memory.alloc(513)
    for at in (2, 0):
        ring.put_desc(at + 1, data, 513, DESC_WRITE | ring.marks(ring.added), 7)
        ring.put_desc(at, header, 16, DESC_NEXT | ring.marks(ring.added), 7)
    ring.kick()
    while [ring.get_desc(at)[2:] for at in (0, 2)] != [(7, DESC_WRITE | 0x8080)] * 2:
        os.sched_yield()


# Stopping and starting


def test_a_stopped_ring_goes_on_from_the_base_that_it_gave(front_end):
    disk = front_end.disk(size=5, packed=True)
    disk.indirect = True
    wraps = set()
    for turn in range(14):
        base = front_end.stop_ring(0)
        assert base == disk.ring.base
        wraps.add((base & WRAP, base >> 16 & WRAP))
        head = disk.submit(OUT, turn, bytes([turn]) * 512)  # while it is stopped
        front_end.start_ring(0, ring=disk.ring, base=base)
        assert disk.wait(head)[0].status == OK
        assert disk.read(turn, 512) == (OK, bytes([turn]) * 512)
    assert wraps == {(0, 0), (WRAP, WRAP)}


def test_a_base_without_a_used_half_is_taken(front_end):
    disk = front_end.disk(size=5, packed=True)
    disk.indirect = True
    for turn in range(12):
        base = front_end.stop_ring(0) & 0xFFFF
        front_end.start_ring(0, ring=disk.ring, base=base)
        assert disk.write(turn, bytes(512)) == OK


def test_a_stop_answers_all_that_was_fetched_and_gives_the_place_of_the_rest(serve, tmp_path):
    _, front_end = serve(f"faulty:delay=2ms@write:{image(tmp_path / 'a.img', SIZE)}")
    disk = front_end.disk(size=7, packed=True)
    disk.indirect = True
    for _ in range(20):
        heads = [disk.submit(OUT, n, bytes(512)) for n in range(7)]
        base = front_end.stop_ring(0)
        answered = disk.ring.take_used()
        assert base == disk.ring.base
        front_end.start_ring(0, ring=disk.ring, base=base)
        while len(answered) < 7:
            used = disk.ring.wait_used()
            assert used
            answered += used
        assert sorted(answered) == sorted((head, 1) for head in heads)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_only_a_packed_ring_has_a_base_of_more_than_16_bits(front_end, packed):
    front_end.prepare(packed=packed)
    payload = struct.pack("=II", 0, 0x80018001)
    assert (front_end.ack(Request.SET_VRING_BASE, payload) == 0) is packed


@pytest.mark.parametrize("base", [0x80088008, 8, 0x80087FFF, 0xFFFF8000])
def test_a_base_outside_the_ring_is_refused(front_end, base):
    front_end.prepare(packed=True)
    ring = PackedVring(front_end.memory, 8)
    with pytest.raises(AssertionError, match="SET_VRING_KICK"):
        front_end.start_ring(0, ring=ring, base=base)
    front_end.start_ring(0, ring=ring)


@pytest.mark.parametrize("size", [0, 1025, 2**15, 2**32 - 1])
def test_a_ring_of_no_size_that_can_be_is_refused(front_end, size):
    front_end.prepare(packed=True)
    assert front_end.ack(Request.SET_VRING_NUM, struct.pack("=II", 0, size)) != 0


def test_firmware_with_split_rings_and_a_driver_with_packed_ones_take_turns(front_end):
    """As SeaBIOS and Linux do at each boot."""
    disk = front_end.disk()
    for packed in (True, False, True, True, False):
        assert disk.write(3, bytes([packed]) * 512) == OK
        front_end.set(Request.SET_STATUS, struct.pack("=Q", 0))
        front_end.enable(0, on=False)
        front_end.stop_ring(0)
        features = without(front_end, Feature(0)) | (Feature.RING_PACKED if packed else 0)
        front_end.features = Feature(features)
        front_end.set_features()
        disk = Disk(front_end, front_end.start_ring(0, 100 if packed else 64))
        assert isinstance(disk.ring, PackedVring) is packed
        carry(disk, turns=8, at_once=20)


def test_the_base_of_the_other_layout_is_forgotten(front_end):
    front_end.prepare(packed=True)
    front_end.ring_state(Request.SET_VRING_BASE, 0, 0x80058005)
    for features, base in ((0, 0), (Feature.RING_PACKED, START)):
        front_end.features = Feature(without(front_end, Feature(0)) | features)
        front_end.set_features()
        assert front_end.stop_ring(0) == base


@pytest.mark.parametrize("served", [1, 4, 5, 9])
def test_a_ring_whose_front_end_does_not_know_its_place_is_not_served(daemon, served):
    """QEMU says that a ring is fresh when blkd has come again: it does not know how far it was."""
    with FrontEnd.connect(daemon.socket) as first:
        disk = first.disk(size=5, packed=True)
        disk.indirect = True
        for n in range(served):
            assert disk.write(n, bytes([n]) * 512) == OK
        waiting = [disk.submit(OUT, n, b"w" * 512) for n in range(5)]
        for head in disk.wait(*waiting):
            assert head.status == OK
        first.sock.close()
        with FrontEnd.connect(daemon.socket) as second:
            second.memory = first.memory
            second.prepare(packed=True)
            second.start_ring(0, ring=disk.ring, base=START)
            known = (served + 5) % 10 == 0
            assert disk.ring.broken(1 if not known else 0) is not known
            assert daemon.call("show")["broken_rings"] == ([] if known else [0])
            second.stop_ring(0)
            again = Disk(second, second.start_ring(0, 5))  # as after a reset of the guest
            again.indirect = True
            assert again.write(0, bytes(512)) == OK
            second.rings = {}
            second.memory = None
    assert "its front end does not know how far" in daemon.errors()


# Breaking


def whole_ring(ring):
    for at in range(ring.size):
        ring.put_desc(at, ring.memory.alloc(16), 16, DESC_NEXT | ring.marks(ring.added))


def indirect_with_next(ring):
    table = ring.memory.alloc(64)
    ring.publish(ring.add([(table, 64, DESC_INDIRECT), (table, 1, DESC_WRITE)]))


def indirect_in_a_chain(ring):
    ring.publish(ring.add([(HEADER, 16, 0), (ring.memory.alloc(64), 64, DESC_INDIRECT)]))


def nested_indirect(ring):
    """What looks like a table is a buffer for the device to read: there is no status."""
    table = ring.memory.alloc(64)
    ring.publish(ring.add_indirect([(table, 64, DESC_INDIRECT)]))


BREAKERS = [
    *EITHER_LAYOUT,
    whole_ring,
    indirect_with_next,
    indirect_in_a_chain,
    nested_indirect,
]


@pytest.mark.parametrize("break_ring", BREAKERS, ids=lambda f: f.__name__)
def test_a_broken_ring_is_reported_and_the_other_goes_on(daemon, disks, break_ring):
    broken, healthy = disks
    break_ring(broken.ring)
    broken.ring.kick()
    assert broken.ring.broken()
    carry(healthy, turns=5, at_once=4)
    assert daemon.call("show")["broken_rings"] == [0]
    front_end = broken.front_end
    front_end.stop_ring(0)
    fresh = Disk(front_end, front_end.start_ring(0, 16))
    assert fresh.read(0, 512)[0] == OK


def test_an_indirect_table_without_the_feature_breaks_the_ring(front_end):
    features = without(front_end, Feature.INDIRECT_DESC)
    disk = front_end.disk(features=features, packed=True)
    assert disk.write(0, bytes(512)) == OK
    disk.indirect = True
    disk.submit(IN, 0, size=512)
    assert disk.ring.broken()


@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
def test_garbage_in_the_event_areas_harms_nobody_but_its_driver(front_end, event_idx):
    features = None if event_idx else without(front_end, Feature.EVENT_IDX)
    front_end.prepare(features, packed=True)
    wild, other = (Disk(front_end, front_end.start_ring(index, 16)) for index in range(2))
    chance = random.Random(2)
    for turn in range(200):
        for area in (wild.ring.avail, wild.ring.used):
            wild.memory.write(area, chance.randbytes(4))
        wild.submit(OUT, turn, bytes([turn % 251]) * 512)
        wild.ring.kick()
        while not wild.ring.take_used():
            os.sched_yield()
    assert other.read(199, 512) == (OK, bytes([199]) * 512)
    wild.ring.event_flags = ENABLE
    assert front_end.stop_ring(0) == wild.ring.base


def test_a_guest_that_rewrites_its_descriptors_all_the_time_stays_in_its_memory(daemon, disks):
    racy, other = disks
    ring, memory = racy.ring, racy.memory
    header, data, status = memory.alloc(16), memory.alloc(512, 512), memory.alloc(1)
    memory.write(header, struct.pack("<IIQ", OUT, 0, 0))
    at = itertools.count()
    for turn in range(2000):
        first, second, third = (next(at) for _ in range(3))
        ring.put_desc(third % 16, status, 1, DESC_WRITE | ring.marks(third), 0xFFFF)
        ring.put_desc(second % 16, data, 512, DESC_NEXT | ring.marks(second), 5)
        ring.put_desc(first % 16, header, 16, DESC_NEXT | ring.marks(first), 5)
        ring.kick()
        flags = ring.marks(second) | DESC_WRITE | (DESC_NEXT, DESC_INDIRECT)[turn % 2]
        ring.put_desc(second % 16, 2**50 + turn, 2**31, flags, turn % 7)
        if ring.broken(0):
            break
    assert other.read(0, 512)[0] == OK
    assert daemon.process.poll() is None


def test_a_ring_goes_on_when_its_memory_comes_back(daemon, disks):
    disk, _ = disks
    region = disk.memory.regions[0]
    disk.front_end.remove_region(region)
    assert daemon.call("show")["broken_rings"] == [0, 1]
    disk.front_end.add_region(region)
    carry(disk, turns=10, at_once=4)
    assert daemon.call("show")["broken_rings"] == []
