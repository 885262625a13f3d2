# SPDX-License-Identifier: Apache-2.0
"""What is known of I/O virtual addresses, and chains that are walked by it."""

import errno
import struct

import pytest
from blkd.probes import Guest
from hypothesis import given
from hypothesis import strategies as st

NEXT, WRITE, INDIRECT = 1, 2, 4
DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000
SIZE = 8
PAGE = 4096
LOW, HIGH = 0x10000, 0x40000
READ, BOTH = 1, 3
LAST = 2**64 - 1


class Ring:
    """A ring of 8 descriptors, and two regions of data that do not continue each other."""

    def __init__(self, capacity=64, **options):
        self.ring = bytearray(4 * PAGE)
        self.low, self.high = bytearray(16 * PAGE), bytearray(16 * PAGE)
        self.guest = Guest(
            [(0, self.ring), (LOW, self.low), (HIGH, self.high)],
            size=SIZE,
            desc=DESC,
            avail=AVAIL,
            used=USED,
            **options,
        )
        self.guest.go_behind_iommu(capacity)

    def describe(self, *descriptors):
        struct.pack_into("<" + "QIHH" * len(descriptors), self.ring, DESC, *sum(descriptors, ()))


def misses(ring, head=0):
    """What a walk from `head` lacks."""
    with pytest.raises(OSError, match="temporarily") as refused:
        ring.guest.walk(head)
    assert refused.value.errno == errno.EAGAIN
    return ring.guest.missing()


def test_a_buffer_lies_where_its_iova_is_translated_to():
    ring = Ring()
    ring.guest.learn(0x1000000, PAGE, HIGH)
    ring.describe((0x1000010, 100, WRITE, 0))
    assert ring.guest.walk(0) == [(HIGH + 0x10, 100, True)]


def test_what_is_missing_is_the_page_and_what_it_is_needed_for():
    ring = Ring()
    ring.describe((0x1000010, 100, NEXT, 1), (0x2000FFF, 2, WRITE, 0))
    assert misses(ring) == (0x1000000, 1)
    ring.guest.learn(0x1000000, PAGE, LOW, READ)
    assert misses(ring) == (0x2000000, 2)
    ring.guest.learn(0x2000000, PAGE, LOW + PAGE)
    assert misses(ring) == (0x2001000, 2)
    ring.guest.learn(0x2001000, PAGE, HIGH, 2)
    assert ring.guest.walk(0) == [
        (LOW + 0x10, 100, False),
        (LOW + PAGE + 0xFFF, 1, True),
        (HIGH, 1, True),
    ]


def test_memory_that_is_only_to_be_read_is_not_written():
    ring = Ring()
    ring.guest.learn(0, PAGE, LOW)
    ring.guest.learn(PAGE, PAGE, LOW + PAGE, READ)
    ring.describe((16, 16, NEXT, 1), (PAGE, 16, NEXT | WRITE, 2), (64, 1, WRITE, 0))
    assert misses(ring) == (PAGE, 2)
    ring.guest.learn(PAGE, PAGE, LOW + PAGE)
    assert len(ring.guest.walk(0)) == 3


def test_memory_that_is_only_to_be_written_is_not_read():
    ring = Ring()
    ring.guest.learn(0, PAGE, LOW, 2)
    ring.describe((16, 16, 0, 0))
    assert misses(ring) == (0, 1)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)], ids=str)
def test_pages_that_continue_each_other_are_one_range(order):
    ring = Ring()
    for n in order:
        ring.guest.learn(0x1000000 + n * PAGE, PAGE, LOW + n * PAGE)
    assert ring.guest.known() == [(0x1000000, 4 * PAGE, LOW, BOTH)]


def test_pages_of_other_access_or_another_place_stay_apart():
    ring = Ring()
    ring.guest.learn(0, PAGE, LOW)
    ring.guest.learn(PAGE, PAGE, LOW + PAGE, READ)
    ring.guest.learn(2 * PAGE, PAGE, HIGH + 2 * PAGE, READ)
    assert len(ring.guest.known()) == 3


def test_where_ranges_overlap_the_later_holds():
    ring = Ring()
    ring.guest.learn(0, 4 * PAGE, LOW)
    ring.guest.learn(PAGE, PAGE, HIGH)
    assert ring.guest.known() == [
        (0, PAGE, LOW, BOTH),
        (PAGE, PAGE, HIGH, BOTH),
        (2 * PAGE, 2 * PAGE, LOW + 2 * PAGE, BOTH),
    ]


def test_the_last_addresses_can_be_known_and_forgotten():
    ring = Ring()
    ring.guest.learn(2**64 - PAGE, PAGE, LOW)
    ring.describe((2**64 - 16, 15, 0, 0))
    assert ring.guest.walk(0) == [(LOW + PAGE - 16, 15, False)]
    assert ring.guest.forget(0, LAST) == [(LOW, PAGE)]
    assert ring.guest.known() == []


def test_the_last_byte_of_all_can_be_merged_and_known():
    ring = Ring()
    ring.guest.learn(LAST, 1, LOW + 1)
    ring.guest.learn(LAST - 1, 1, LOW)
    assert ring.guest.known() == [(LAST - 1, 2, LOW, BOTH)]
    for n in range(8):
        ring.guest.learn(n * 2 * PAGE, PAGE, HIGH)
    assert len(ring.guest.known()) == 9


def test_the_last_page_does_not_continue_at_the_first():
    ring = Ring()
    ring.guest.learn(0, PAGE, LOW + PAGE)
    ring.guest.learn(2**64 - PAGE, PAGE, LOW)
    assert len(ring.guest.known()) == 2
    assert ring.guest.forget(0, PAGE - 1) == [(LOW + PAGE, PAGE)]


def test_a_buffer_may_end_with_the_last_address():
    ring = Ring()
    ring.guest.learn(2**64 - PAGE, PAGE, LOW)
    ring.describe((2**64 - 16, 16, 0, 0))
    assert ring.guest.walk(0) == [(LOW + PAGE - 16, 16, False)]


def test_a_buffer_that_wraps_is_refused():
    ring = Ring()
    ring.guest.learn(2**64 - PAGE, PAGE, LOW)
    ring.guest.learn(0, PAGE, LOW + PAGE)
    ring.describe((2**64 - 16, 32, 0, 0))
    with pytest.raises(OSError, match="address") as refused:
        ring.guest.walk(0)
    assert refused.value.errno == errno.EFAULT


def test_a_part_that_is_forgotten_leaves_the_rest():
    ring = Ring()
    ring.guest.learn(0, 4 * PAGE, LOW)
    assert ring.guest.forget(PAGE + 1, 2 * PAGE) == [(LOW + PAGE + 1, PAGE)]
    assert ring.guest.known() == [
        (0, PAGE + 1, LOW, BOTH),
        (2 * PAGE + 1, 2 * PAGE - 1, LOW + 2 * PAGE + 1, BOTH),
    ]


def test_without_room_for_another_all_is_forgotten():
    ring = Ring(capacity=4)
    for n in range(5):
        ring.guest.learn(2 * n * PAGE, PAGE, LOW)
    assert ring.guest.known() == [(8 * PAGE, PAGE, LOW, BOTH)]


def test_what_cannot_be_cut_is_forgotten_whole():
    ring = Ring(capacity=1)
    ring.guest.learn(0, 3 * PAGE, LOW)
    assert ring.guest.forget(PAGE, PAGE) is None
    assert ring.guest.known() == []


def test_an_indirect_table_may_lie_in_pieces():
    ring = Ring()
    table = struct.pack("<QIHHQIHH", 0x100, 16, NEXT, 1, 0x200, 512, WRITE, 0)
    ring.low[PAGE - 16 : PAGE], ring.high[:16] = table[:16], table[16:]
    ring.guest.learn(0, PAGE, LOW)
    ring.guest.learn(PAGE, PAGE, HIGH)
    ring.describe((PAGE - 16, 32, INDIRECT, 0))
    assert ring.guest.walk(0) == [(LOW + 0x100, 16, False), (LOW + 0x200, 512, True)]


def test_a_missing_half_of_an_indirect_table_is_asked_for():
    ring = Ring()
    ring.guest.learn(0, PAGE, LOW)
    ring.describe((PAGE - 16, 32, INDIRECT, 0))
    assert misses(ring) == (PAGE, 1)


def test_all_pages_that_a_chain_lacks_are_found_at_once():
    ring = Ring()
    ring.guest.learn(0x1001000, PAGE, LOW)
    ring.describe(
        (0x1000010, 3 * PAGE, NEXT, 1), (0x2000000, 16, NEXT | WRITE, 2), (5, 1, WRITE, 0)
    )
    assert ring.guest.all_missing(0) == [
        (0x1000000, 1),
        (0x1002000, 1),
        (0x1003000, 1),
        (0x2000000, 2),
        (0, 2),
    ]


def test_no_more_is_asked_for_at_once_than_there_is_room_for():
    ring = Ring()
    ring.describe((0, 2**32 - 1, NEXT, 1), (2**40, 2**32 - 1, 0, 0))
    assert ring.guest.all_missing(0) == [(n * PAGE, 1) for n in range(256)]


def test_of_a_chain_that_is_to_fail_the_last_bytes_are_looked_for():
    ring = Ring()
    ring.guest.learn(0, PAGE, LOW)
    ring.describe((0x1000010, 16, NEXT, 1), (PAGE - 8, 8, NEXT | WRITE, 2), (PAGE, 1, WRITE, 0))
    assert ring.guest.last_bytes(0) == [None, LOW + PAGE - 1, None]


def test_a_buffer_in_more_pieces_than_there_is_room_for_fails_its_chain():
    ring = Ring()
    for n in range(4):
        ring.guest.learn(n * PAGE, PAGE, LOW + (3 - n) * PAGE)
    ring.describe((0, 4 * PAGE, 0, 0))
    assert len(ring.guest.walk(0)) == 4
    with pytest.raises(OSError, match="temporarily"):
        ring.guest.walk(0, 3)
    assert ring.guest.is_to_fail()


pages = st.integers(0, 15)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("learn"), pages, st.integers(1, 6), pages, st.sampled_from([1, 3])),
            st.tuples(st.just("forget"), pages, st.integers(1, 6)),
        ),
        max_size=60,
    )
)
def test_it_knows_what_a_table_of_pages_would(steps):
    ring = Ring()
    table = {}
    for kind, at, count, *rest in steps:
        if kind == "learn":
            to, access = min(rest[0], 16 - count), rest[1]
            ring.guest.learn(at * PAGE, count * PAGE, LOW + to * PAGE, access)
            table |= {at + n: (LOW + (to + n) * PAGE, access) for n in range(count)}
        else:
            removed = ring.guest.forget(at * PAGE, (at + count) * PAGE - 1)
            gone = [table.pop(at + n) for n in range(count) if at + n in table]
            assert sum(size for _, size in removed) == len(gone) * PAGE
    found = {
        iova // PAGE + n: (address + n * PAGE, access)
        for iova, size, address, access in ring.guest.known()
        for n in range(size // PAGE)
    }
    assert found == table
