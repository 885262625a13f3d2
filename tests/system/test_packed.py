# SPDX-License-Identifier: Apache-2.0
"""Packed virtqueues, served by blkd to the scripted front end."""

import itertools
import random
import struct

import pytest

from tests.daemon import image
from tests.frontend import DESC_WRITE, IN, OK, OUT, Disk, Feature, Request
from tests.packed_vring import PackedVring
from tests.vring import MIB

SIZE = 4 * MIB
SECTORS = SIZE // 512
NO_EVENT_IDX = Feature.EVENT_IDX
LIMIT = 5


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "a.img", SIZE)


def carry(disk, count, at_once):
    """Write numbered sectors, a few at a time, and read them back."""
    numbers = iter(range(count))
    while batch := list(itertools.islice(numbers, at_once)):
        heads = [disk.submit(OUT, n % SECTORS, n.to_bytes(4, "little") * 128) for n in batch]
        assert all(done.status == OK and done.written == 1 for done in disk.wait(*heads))
        heads = [disk.submit(IN, n % SECTORS, size=512) for n in batch]
        for n, done in zip(batch, disk.wait(*heads), strict=True):
            assert (done.status, done.written) == (OK, 513)
            assert done.data == n.to_bytes(4, "little") * 128


@pytest.mark.parametrize("size", [4, 5, 64, 100, 1000, 1024])
@pytest.mark.parametrize("without", [0, NO_EVENT_IDX], ids=["event_idx", "flags"])
def test_rings_of_every_size_carry_many_times_their_length(serve, path, size, without):
    daemon, front_end = serve(path)
    disk = front_end.disk(size=size, packed=True, without=without)
    assert daemon.call("show")["front_end"]["features"] & Feature.RING_PACKED
    carry(disk, size * 3, max(1, size // 3))
    assert daemon.call("stats")["total"]["errors"] == 0


@pytest.mark.parametrize("without", [0, NO_EVENT_IDX], ids=["event_idx", "flags"])
def test_indirect_tables_take_one_descriptor_each(serve, path, without):
    _, front_end = serve(path)
    disk = front_end.disk(size=16, packed=True, without=without)
    carry(Disk(front_end, disk.ring, indirect=True), 100, 16)


def test_answers_come_in_any_order(serve, path):
    _, front_end = serve(f"faulty:delay=30ms@write/3:{path}")
    disk = front_end.disk(size=64, packed=True)
    heads = [disk.submit(OUT, n, bytes([n]) * 512) for n in range(20)]
    order = []
    while len(order) < len(heads):
        order += [head for head, _ in disk.ring.wait_used(LIMIT)]
    assert order != heads
    assert sorted(order) == heads
    assert path.read_bytes()[: 20 * 512] == b"".join(bytes([n]) * 512 for n in range(20))


def test_buffer_ids_go_back_as_they_came(serve, path):
    _, front_end = serve(path)
    ring = PackedVring(front_end.memory, 32, event_idx=True)
    ring.first_id = 0xFFE0
    ring.rewind()
    front_end.negotiate(
        front_end.call_u64(Request.GET_FEATURES) & ~Feature.LOG_ALL & ~Feature.PROTOCOL_FEATURES
        | Feature.PROTOCOL_FEATURES
    )
    front_end.share_memory()
    carry(Disk(front_end, front_end.start_ring(ring=ring)), 60, 7)


def test_a_stopped_ring_goes_on_from_the_base_that_it_gave(serve, path):
    _, front_end = serve(path)
    disk = front_end.disk(size=7, packed=True)
    for turn in range(20):
        assert disk.write(turn, bytes([turn]) * 512) == OK
        base = front_end.stop_ring()
        assert base == disk.ring.base
        front_end.start_ring(ring=disk.ring, base=base)
    carry(disk, 30, 2)


def test_a_front_end_that_gives_half_a_base_is_understood(serve, path):
    _, front_end = serve(path)
    disk = front_end.disk(size=8, packed=True)
    assert disk.write(0, bytes(512)) == OK
    base = front_end.stop_ring()
    front_end.start_ring(ring=disk.ring, base=base & 0xFFFF)
    carry(disk, 30, 2)


def test_only_packed_rings_have_a_base_of_two_halves(serve, path):
    _, front_end = serve(path)
    front_end.negotiate()
    base = struct.pack("=II", 0, 0x80008000)
    assert front_end.ack(Request.SET_VRING_BASE, base) != 0
    front_end.features |= Feature.RING_PACKED
    front_end.set_features()
    assert front_end.ack(Request.SET_VRING_BASE, base) == 0


def test_only_packed_rings_may_have_any_size(serve, path):
    _, front_end = serve(path)
    front_end.negotiate()
    assert front_end.ack(Request.SET_VRING_NUM, struct.pack("=II", 0, 100)) != 0
    front_end.features |= Feature.RING_PACKED
    front_end.set_features()
    assert front_end.ack(Request.SET_VRING_NUM, struct.pack("=II", 0, 100)) == 0
    assert front_end.ack(Request.SET_VRING_NUM, struct.pack("=II", 0, 1025)) != 0


def test_drivers_of_both_layouts_follow_each_other(serve, path):
    """As firmware does it with a split ring, and the system behind it with a packed one."""
    _, front_end = serve(path)
    carry(front_end.disk(size=16), 20, 3)
    for turn in range(4):
        front_end.stop_ring()
        front_end.rings.pop(0).close()
        front_end.enable(0, on=False)
        front_end.features ^= Feature.RING_PACKED
        front_end.set_features()
        carry(Disk(front_end, front_end.start_ring(size=16 + turn % 2 * 16)), 40, 3)


def test_memory_changes_while_a_packed_ring_runs(serve, path):
    _, front_end = serve(path)
    disk = front_end.disk(size=32, packed=True)
    for _ in range(5):
        heads = [disk.submit(OUT, n, bytes(512)) for n in range(8)]
        front_end.add_region(front_end.memory.grow(MIB))
        assert all(done.status == OK for done in disk.wait(*heads))


def test_a_chain_as_long_as_the_ring_is_served(serve, path):
    _, front_end = serve(path)
    ring = front_end.disk(size=10, packed=True).ring
    memory = front_end.memory
    data = [memory.alloc(512, 512) for _ in range(8)]
    for _ in range(3):
        header = struct.pack("<IIQ", IN, 0, 0)
        chain = [(header, 16, 0), *((at, 512, DESC_WRITE) for at in data)]
        number = ring.add([*chain, (memory.alloc(16), 1, DESC_WRITE)])
        ring.publish(number)
        ring.notify()
        assert ring.wait_used(LIMIT) == [(number, 8 * 512 + 1)]


def endless(ring):
    for at in range(ring.size):
        ring.memory.write(ring.desc + 16 * at, struct.pack("<QIHH", 0, 0, at, 1 | 1 << 7))


def indirect_with_next(ring):
    ring.memory.write(ring.desc, struct.pack("<QIHH", MIB, 16, 0, 5 | 1 << 7))


def nowhere(ring):
    ring.memory.write(ring.desc, struct.pack("<QIHH", 1 << 50, 16, 0, 1 << 7))


@pytest.mark.parametrize("harm", [endless, indirect_with_next, nowhere])
def test_a_broken_packed_ring_is_reported_and_the_others_go_on(serve, path, harm):
    daemon, front_end = serve(path, "--workers", 1)
    first = front_end.disk(size=16, packed=True)
    second = Disk(front_end, front_end.start_ring(1, 16))
    harm(first.ring)
    first.ring.kick()
    assert first.ring.broken()
    assert daemon.call("show")["broken_rings"] == [0]
    carry(second, 20, 3)
    front_end.stop_ring(0)
    first.ring.rewind()
    front_end.start_ring(0, ring=first.ring)
    carry(first, 20, 3)


def test_garbage_in_the_event_area_costs_notifications_at_the_most(serve, path):
    _, front_end = serve(path)
    disk = front_end.disk(size=16, packed=True)
    for garbage in (0xFFFF, 0x7FFF, 3, 2, 0x8003):
        ring = disk.ring
        head = disk.submit(OUT, 0, bytes(512))
        ring.memory.write(ring.avail, struct.pack("<HH", garbage, garbage))
        assert disk.wait(head)[0].status == OK


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "split"])
@pytest.mark.parametrize("without", [0, NO_EVENT_IDX], ids=["event_idx", "flags"])
@pytest.mark.parametrize("poll_us", [0, 1, 32, 1000])
def test_no_kick_is_lost_whatever_the_gap_before_it(serve, packed, without, poll_us):
    _, front_end = serve("null:64M", "--poll-us", poll_us)
    disk = front_end.disk(size=16, packed=packed, without=without)
    chance = random.Random(poll_us)
    for n in range(1500):
        for _ in range(chance.choice((0, 0, 10, 100, 1000))):
            pass
        head = disk.submit(IN, n, size=512)
        assert disk.wait(head, timeout=LIMIT)[0].status == OK
