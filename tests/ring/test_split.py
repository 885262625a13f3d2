# SPDX-License-Identifier: Apache-2.0
import errno
import struct

import pytest
from blkd.probes import Guest, passed
from hypothesis import given
from hypothesis import strategies as st

NEXT, WRITE, INDIRECT = 1, 2, 4
DESC, AVAIL, USED, DATA = 0x1000, 0x2000, 0x3000, 0x10000
SIZE = 8
MEMORY = 0x4000


class Ring:
    """A ring of 8 descriptors in one region and data in two adjacent ones and a distant one."""

    def __init__(self, **options):
        self.low = bytearray(MEMORY)
        self.data = bytearray(MEMORY)
        self.more = bytearray(MEMORY)
        self.far = bytearray(MEMORY)
        regions = [
            (0, self.low),
            (DATA, self.data),
            (DATA + MEMORY, self.more),
            (2**40, self.far),
        ]
        self.guest = Guest(regions, size=SIZE, desc=DESC, avail=AVAIL, used=USED, **options)

    def describe(self, *descriptors):
        struct.pack_into("<" + "QIHH" * len(descriptors), self.low, DESC, *sum(descriptors, ()))

    def table(self, *descriptors):
        struct.pack_into("<" + "QIHH" * len(descriptors), self.data, 0, *sum(descriptors, ()))
        return len(descriptors) * 16

    def make_available(self, index, heads=()):
        struct.pack_into("<H", self.low, AVAIL + 2, index)
        for n, head in enumerate(heads):
            struct.pack_into("<H", self.low, AVAIL + 4 + 2 * n, head)


def test_a_chain_becomes_its_segments_in_order():
    ring = Ring()
    ring.describe((DATA, 16, NEXT, 2), (0, 0, 0, 0), (2**40, 512, NEXT | WRITE, 1), (0, 0, 0, 0))
    ring.describe((DATA, 16, NEXT, 2), (DATA + 32, 1, WRITE, 0), (2**40, 512, NEXT | WRITE, 1))
    assert ring.guest.walk(0) == [(DATA, 16, False), (2**40, 512, True), (DATA + 32, 1, True)]


def test_a_buffer_over_two_adjacent_regions_becomes_two_segments():
    ring = Ring()
    ring.describe((DATA + MEMORY - 100, 300, 0, 0))
    assert ring.guest.walk(0) == [(DATA + MEMORY - 100, 100, False), (DATA + MEMORY, 200, False)]


def test_an_empty_descriptor_is_no_segment():
    ring = Ring()
    ring.describe((DATA, 0, NEXT, 1), (DATA, 5, 0, 0))
    assert ring.guest.walk(0) == [(DATA, 5, False)]


def test_an_indirect_table_ends_the_chain_and_may_follow_direct_descriptors():
    ring = Ring()
    size = ring.table((DATA + 512, 16, NEXT, 1), (DATA + 600, 7, WRITE, 0))
    ring.describe((DATA + 256, 3, NEXT, 1), (DATA, size, INDIRECT, 0))
    assert [s[1] for s in ring.guest.walk(0)] == [3, 16, 7]


def test_an_indirect_table_may_be_longer_than_the_ring_up_to_the_agreed_chain():
    ring = Ring(longest_chain=16)
    size = ring.table(*((DATA + 1024, 1, NEXT, n + 1) for n in range(15)), (DATA + 1024, 1, 0, 0))
    ring.describe((DATA, size, INDIRECT, 0))
    assert len(ring.guest.walk(0)) == 16


@pytest.mark.parametrize(
    ("descriptors", "expected"),
    [
        pytest.param([(DATA, 16, NEXT, 0)], errno.ELOOP, id="self-loop"),
        pytest.param([(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)], errno.ELOOP, id="loop-of-two"),
        pytest.param([(DATA, 0, NEXT, 0)], errno.ELOOP, id="loop-of-nothing"),
        pytest.param([(DATA, 16, NEXT, SIZE)], errno.ERANGE, id="next-past-table"),
        pytest.param([(0x9000, 16, 0, 0)], errno.EFAULT, id="between-regions"),
        pytest.param([(2**40 + MEMORY - 6, 16, 0, 0)], errno.EFAULT, id="past-the-last-region"),
        pytest.param([(2**64 - 8, 16, 0, 0)], errno.EFAULT, id="address-wraps"),
        pytest.param([(DATA, 2**32 - 1, 0, 0)], errno.EFAULT, id="longer-than-memory"),
        pytest.param([(DATA, 32, INDIRECT | NEXT, 0)], errno.EINVAL, id="indirect-with-next"),
        pytest.param([(DATA, 24, INDIRECT, 0)], errno.EINVAL, id="indirect-of-odd-size"),
        pytest.param([(DATA, 0, INDIRECT, 0)], errno.EINVAL, id="indirect-of-no-size"),
        pytest.param([(DATA, 16 * 9, INDIRECT, 0)], errno.ENOBUFS, id="indirect-too-long"),
        pytest.param([(0x9000, 16, INDIRECT, 0)], errno.EFAULT, id="indirect-nowhere"),
        pytest.param([(DATA + MEMORY - 16, 32, INDIRECT, 0)], errno.EFAULT, id="indirect-torn"),
    ],
)
def test_a_hostile_chain_is_refused(descriptors, expected):
    ring = Ring()
    ring.describe(*descriptors)
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        ring.guest.walk(0)
    assert refused.value.errno == expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        pytest.param([(DATA, 16, INDIRECT, 0)], errno.EINVAL, id="nested"),
        pytest.param([(DATA, 16, NEXT, 0)], errno.ELOOP, id="loop"),
        pytest.param([(DATA, 16, NEXT, 1)], errno.ERANGE, id="past-its-end"),
    ],
)
def test_a_hostile_indirect_table_is_refused(table, expected):
    ring = Ring()
    ring.describe((DATA, ring.table(*table), INDIRECT, 0))
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        ring.guest.walk(0)
    assert refused.value.errno == expected


def test_indirect_descriptors_need_the_feature():
    ring = Ring(indirect=False)
    ring.describe((DATA, ring.table((DATA, 16, 0, 0)), INDIRECT, 0))
    with pytest.raises(OSError, match="Invalid argument"):
        ring.guest.walk(0)


def test_a_head_outside_the_ring_is_refused():
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        Ring().guest.walk(SIZE)
    assert refused.value.errno == errno.ERANGE


def test_a_chain_of_more_segments_than_there_is_room_for_is_refused():
    ring = Ring()
    ring.describe((DATA, 1, NEXT, 1), (DATA, 1, NEXT, 2), (DATA, 1, 0, 0))
    assert len(ring.guest.walk(0, 3)) == 3
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        ring.guest.walk(0, 2)
    assert refused.value.errno == errno.ENOBUFS


@given(st.binary(min_size=SIZE * 16, max_size=SIZE * 16), st.integers(0, 2**16 - 1))
def test_no_descriptor_table_makes_the_walk_leave_guest_memory(table, head):
    ring = Ring()
    ring.low[DESC : DESC + len(table)] = table
    try:
        segments = ring.guest.walk(head)
    except OSError:
        return
    assert all(length > 0 for _, length, _ in segments)


def test_chains_are_taken_in_order_across_the_wrap_of_the_index():
    ring = Ring()
    struct.pack_into("<H", ring.low, USED + 2, 0xFFFE)
    ring.guest.start(0xFFFE)
    ring.describe(*((DATA, 1, 0, 0) for _ in range(SIZE)))
    struct.pack_into("<8H", ring.low, AVAIL + 4, 2, 3, 0, 0, 0, 0, 7, 1)
    ring.make_available(1)
    assert [ring.guest.take()[0] for _ in range(3)] == [7, 1, 2]
    assert ring.guest.take() is None


@pytest.mark.parametrize("behind", [0, 1, SIZE])
@pytest.mark.parametrize("used", [0, 3, 0x8000])
def test_what_was_given_back_is_not_taken_again_whatever_the_front_end_says(used, behind):
    ring = Ring()
    struct.pack_into("<H", ring.low, USED + 2, used)
    ring.guest.start((used - behind) & 0xFFFF)
    assert ring.guest.base() == used


def test_a_base_that_has_nothing_to_do_with_the_used_index_counts():
    ring = Ring()
    ring.guest.start(SIZE + 1)
    assert ring.guest.base() == SIZE + 1


def test_an_index_more_than_a_ring_ahead_is_wild():
    ring = Ring()
    ring.make_available(SIZE + 1)
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        ring.guest.take()
    assert refused.value.errno == errno.ERANGE


def test_used_elements_are_shown_all_at_once():
    ring = Ring()
    assert ring.guest.give_back(3, 5)
    flags, index, *elements = struct.unpack_from("<HHIIII", ring.low, USED)
    assert (flags, index, elements) == (0, 2, [3, 1, 5, 1])


def test_a_driver_may_refuse_calls():
    ring = Ring()
    struct.pack_into("<H", ring.low, AVAIL, 1)
    assert not ring.guest.give_back(0)


@pytest.mark.parametrize(
    ("event", "given", "wanted"),
    [(0, 1, True), (1, 1, False), (1, 2, True), (5, 3, False), (0xFFFF, 3, False)],
)
def test_a_driver_is_called_when_its_event_is_crossed(event, given, wanted):
    ring = Ring(event_idx=True)
    struct.pack_into("<H", ring.low, AVAIL + 4 + 2 * SIZE, event)
    assert ring.guest.give_back(*range(given)) is wanted


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(1, 0x8000))
def test_an_event_is_crossed_exactly_when_it_lies_in_the_step(event, before, step):
    now = (before + step) & 0xFFFF
    crossed = event in {(before + n) & 0xFFFF for n in range(step)}
    assert passed(event, now, before) is crossed


@pytest.mark.parametrize("event_idx", [False, True])
def test_asking_for_kicks_again_notices_what_came_meanwhile(event_idx):
    ring = Ring(event_idx=event_idx)
    assert not ring.guest.rearm()
    ring.make_available(1)
    assert ring.guest.rearm()


def test_the_driver_is_asked_to_kick_for_the_next_chain_only():
    ring = Ring(event_idx=True)
    ring.guest.start(41)
    ring.guest.rearm()
    assert struct.unpack_from("<H", ring.low, USED + 4 + 8 * SIZE) == (41,)
