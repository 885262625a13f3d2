# SPDX-License-Identifier: Apache-2.0
"""Requests in flight: whatever kills a back end, the next does the rest, once and in order."""

import contextlib
import errno
import os
import struct

import pytest
from blkd.probes import Guest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from harness.packed_vring import PackedVring
from harness.vring import DESC_WRITE, GuestMemory, Vring
from tests.ring.test_driver_and_device import PackedTalk, SplitTalk, Talk

START = 0x80008000
SPLIT_HEAD, SPLIT_ENTRY = struct.Struct("=QHHHH"), struct.Struct("=B5xHQ")
PACKED_HEAD = struct.Struct("=QHHHHHHBB10x")
PACKED_ENTRY = struct.Struct("=BxHHHQHHIQ")


class Recorded(Talk):
    """A device that may die at any moment: after linking a batch, after publishing it, or idle."""

    def begin(self, base):
        if not hasattr(self, "region"):
            self.region = bytearray(32 + 32 * self.ring.size)
        self.device.record_in(self.region, self.ring.size)
        assert self.device.recover(base) == []

    @rule(data=st.data(), steps=st.integers(1, 2))
    @precondition(lambda self: self.fetched)
    def die_giving_back(self, data, steps):
        chains = data.draw(st.permutations(self.fetched))
        chains = chains[: data.draw(st.integers(1, len(chains)))]
        self.device.give_back(*chains, steps=steps)
        if steps > 1:
            for chain in chains:
                self.fetched.remove(chain)
                self.returned.append(chain[0])
        self.die()

    @rule()
    def die(self):
        base = self.base_after_death()
        self.device = self.make_device()
        self.device.record_in(self.region, self.ring.size)
        again = self.device.recover(base)
        found = [self.device.walk_again(n) for n in range(len(again))]
        expected = [(ident, taken, self.segments[ident]) for ident, taken in self.fetched]
        if self.layout is PackedVring and not found and base == START:
            self.offered = expected + self.offered  # nothing of it was ever used: fetched anew
            self.fetched = []
        else:
            assert found == expected
        self.sleeps = self.waits = False

    @rule()
    def take(self):
        for ident, _, segments in self.offered[:1]:
            self.segments[ident] = segments
        super().take()


class RecordedSplit(Recorded, SplitTalk):
    def __init__(self):
        super().__init__()
        self.segments = {}

    def base_after_death(self):
        return self.ring.used_idx


class RecordedPacked(Recorded, PackedTalk):
    starts = st.just(0)

    def __init__(self):
        super().__init__()
        self.segments = {}

    def base_after_death(self):
        return START  # all that QEMU knows


for machine in (RecordedSplit, RecordedPacked):
    machine.TestCase.settings = settings(max_examples=200, stateful_step_count=50)

TestRecordedSplit = RecordedSplit.TestCase
TestRecordedPacked = RecordedPacked.TestCase


class Case:
    """A ring of 8 descriptors, its record, and devices that come and go."""

    def __init__(self, layout, size=8):
        self.memory = GuestMemory([1 << 20])
        self.ring = layout(self.memory, size)
        self.packed = layout is PackedVring
        self.region = bytearray(32 + 32 * size)
        self.buffer = self.memory.alloc(64)
        self.renew()

    def close(self):
        self.ring.close()
        self.memory.close()

    def renew(self):
        """Another device in the place of a dead one."""
        self.device = Guest(
            [(region.gpa, region.memory) for region in self.memory.regions],
            size=self.ring.size,
            desc=self.ring.desc,
            avail=self.ring.avail,
            used=self.ring.used,
            packed=self.packed,
        )
        self.device.record_in(self.region, self.ring.size)

    def fetch(self, count):
        """Chains of one descriptor, made available and fetched: (id, descriptors) each."""
        for n in range(count):
            self.ring.publish(self.ring.add([(self.buffer + n, 1, DESC_WRITE)]))
        return [self.device.take()[:2] for _ in range(count)]

    def head(self, *fields):
        (PACKED_HEAD if self.packed else SPLIT_HEAD).pack_into(self.region, 0, *fields)

    def entry(self, number, *fields):
        head, entry = (PACKED_HEAD, PACKED_ENTRY) if self.packed else (SPLIT_HEAD, SPLIT_ENTRY)
        entry.pack_into(self.region, head.size + number * entry.size, *fields)

    def get_entry(self, number):
        head, entry = (PACKED_HEAD, PACKED_ENTRY) if self.packed else (SPLIT_HEAD, SPLIT_ENTRY)
        return entry.unpack_from(self.region, head.size + number * entry.size)


@pytest.fixture
def case(request):
    case = Case(request.param)
    yield case
    case.close()


both = pytest.mark.parametrize("case", [Vring, PackedVring], indirect=True, ids=["split", "packed"])
split = pytest.mark.parametrize("case", [Vring], indirect=True, ids=["split"])
packed = pytest.mark.parametrize("case", [PackedVring], indirect=True, ids=["packed"])


@split
def test_a_split_region_is_laid_out_as_specified(case):
    case.device.recover(0)
    assert SPLIT_HEAD.unpack_from(case.region) == (0, 1, 8, 0, 0)
    chains = case.fetch(3)
    assert [case.get_entry(head) for head, _ in chains] == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]
    first, second, third = (head for head, _ in chains)
    case.device.give_back(chains[2], chains[0])
    assert SPLIT_HEAD.unpack_from(case.region) == (0, 1, 8, first, 2)
    assert case.get_entry(first) == (0, third, 0)
    assert case.get_entry(second) == (1, 0, 1)
    assert case.get_entry(third) == (0, 0, 2)


@packed
def test_a_packed_region_is_laid_out_as_specified(case):
    case.device.recover(START)
    assert PACKED_HEAD.unpack_from(case.region) == (0, 1, 8, 0, 0, 0, 0, 1, 1)
    ring = case.ring
    ring.publish(ring.add([(case.buffer, 1, 0), (case.buffer + 1, 2, DESC_WRITE)]))
    ring.publish(ring.add([(case.buffer + 2, 3, DESC_WRITE)]))
    first, second = (case.device.take()[:2] for _ in range(2))
    assert PACKED_HEAD.unpack_from(case.region) == (0, 1, 8, 3, 3, 0, 0, 1, 1)
    inflight, link, last, num, counter, _, flags, length, address = case.get_entry(0)
    assert (inflight, link, last, num, counter) == (1, 1, 1, 2, 0)
    assert (flags & 7, length, address) == (1, 1, case.buffer)
    assert case.get_entry(1)[5:] == (first[0], DESC_WRITE | 1 << 7, 2, case.buffer + 1)
    assert case.get_entry(2)[:5] == (1, 3, 2, 1, 1)
    case.device.give_back(second)
    assert PACKED_HEAD.unpack_from(case.region) == (0, 1, 8, 2, 2, 1, 1, 1, 1)
    assert case.get_entry(2)[:2] == (0, 3)


@both
def test_a_whole_batch_is_recovered_not_only_its_last_chain(case):
    case.device.recover(START if case.packed else 0)
    chains = case.fetch(6)
    case.device.give_back(*chains[1:5], steps=2)  # dies before it has noted any of them
    case.renew()
    again = case.device.recover(START if case.packed else case.ring.used_idx)
    assert [case.device.walk_again(n)[:2] for n in range(len(again))] == [chains[0], chains[5]]


@split
@pytest.mark.parametrize("used", [1, 0x7FFF, 0xFFFF])
def test_a_fresh_region_begins_where_the_ring_is(case, used):
    case.ring.rewind(used)
    assert case.device.recover(used) == []
    assert SPLIT_HEAD.unpack_from(case.region) == (0, 1, 8, 0, used)
    (chain,) = case.fetch(1)
    case.renew()
    assert case.device.recover(used) == [chain]
    assert case.device.base() == (used + 1) & 0xFFFF


@packed
def test_a_fresh_packed_region_begins_where_the_front_end_says(case):
    base = case.ring.position(13) * 0x10001
    case.ring.rewind(base)
    assert case.device.recover(base) == []
    assert PACKED_HEAD.unpack_from(case.region) == (0, 1, 8, 0, 0, 5, 5, 0, 0)


@packed
def test_a_ring_whose_position_the_front_end_forgot_goes_on_from_the_region(case):
    case.device.recover(START)
    for _ in range(11):  # beyond the first round
        case.device.give_back(*case.fetch(1))
        case.ring.take_used()
    position = case.device.base()
    case.renew()
    assert case.device.recover(START) == []
    assert case.device.base() == position


@packed
def test_a_ring_that_was_reset_begins_anew_whatever_the_region_says(case):
    case.device.recover(START)
    case.device.give_back(*case.fetch(3))
    case.ring.rewind()
    case.renew()
    assert case.device.recover(START) == []
    assert case.device.base() == START
    assert PACKED_HEAD.unpack_from(case.region) == (0, 1, 8, 0, 0, 0, 0, 1, 1)


@split
def test_a_region_of_another_life_is_begun_anew(case):
    case.head(0, 1, 8, 3, 500)
    case.entry(2, 1, 0, 7)
    assert case.device.recover(0) == []
    assert SPLIT_HEAD.unpack_from(case.region) == (0, 1, 8, 0, 0)
    assert case.get_entry(2) == (0, 0, 0)


@split
@pytest.mark.parametrize("links", [(0, 0), (1, 0), (9, 0), (0xFFFF, 0xFFFF)], ids=str)
def test_loops_and_wild_links_of_a_split_batch_do_no_harm(case, links):
    case.ring.rewind(4)
    case.head(0, 1, 8, links[0], 0)  # says that four were given back
    for number in range(8):
        case.entry(number, 1, links[1], number)
    again = case.device.recover(4)
    assert len(again) >= 6
    assert SPLIT_HEAD.unpack_from(case.region)[4] == 4


@split
def test_chains_in_flight_come_in_the_order_of_their_counters_whatever_those_are(case):
    case.head(0, 1, 8, 0, 0)
    for number, counter in enumerate([7, 2**64 - 1, 0, 5, 2**63, 5, 1, 3]):
        case.entry(number, 1, 0, counter)
    order = [entry for entry, _ in case.device.recover(0)]
    assert [n for n in order if n not in (3, 5)] == [2, 6, 7, 0, 4, 1]
    assert [case.get_entry(n)[2] for n in order] == list(range(8))


DAMAGES = {
    "used index beyond the ring": {"head": (0, 1, 8, 0, 0, 8, 8, 1, 1)},
    "old used index beyond the ring": {"head": (0, 1, 8, 0, 0, 0, 0xFFFF, 1, 1)},
    "a loop in the free list": {"entries": {2: (0, 1, 0, 0)}},
    "a chain of no descriptors": {"entries": {0: (1, 1, 0, 0)}, "free": 1},
    "a chain longer than the ring": {"entries": {0: (1, 1, 0, 9)}, "free": 1},
    "a chain that leaves the region": {"entries": {0: (1, 700, 1, 2)}, "free": 2},
    "a chain through the free list": {"entries": {0: (1, 3, 3, 2)}, "free": 2},
    "a chain that ends elsewhere": {"entries": {0: (1, 1, 5, 2)}, "free": 2},
    "a chain in a loop": {"entries": {0: (1, 0, 0, 4)}, "free": 1},
    "two chains with one end": {"entries": {0: (1, 2, 2, 2), 1: (1, 2, 2, 2)}, "free": 3},
}


@packed
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_packed_region_is_found_out(case, damage):
    base = case.ring.position(3) * 0x10001
    case.ring.rewind(base)
    case.device.recover(base)
    free = damage.get("free", 0)
    case.head(*damage.get("head", (0, 1, 8, free, free, 3, 3, 1, 1)))
    for number, fields in damage.get("entries", {}).items():
        case.entry(number, *fields, 0, 0, 0, 0, 0)
    case.renew()
    with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)):
        case.device.recover(base)


@pytest.mark.parametrize("layout", [Vring, PackedVring], ids=["split", "packed"])
@given(garbage=st.binary(min_size=288, max_size=288), version=st.sampled_from([0, 1]))
def test_no_region_makes_a_device_reach_beyond_guest_memory(layout, garbage, version):
    case = Case(layout)
    case.region[:] = garbage
    case.region[8:12] = struct.pack("=HH", version, 8)
    base = case.ring.position(5) * 0x10001 if case.packed else 5
    case.renew()
    with contextlib.suppress(OSError):
        for number in range(len(case.device.recover(base))):
            with contextlib.suppress(OSError):
                case.device.walk_again(number)  # raises AssertionError beyond guest memory
    case.close()
