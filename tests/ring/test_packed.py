# SPDX-License-Identifier: Apache-2.0
"""The packed virtqueue: chains, wrap counters, used descriptors, event suppression, bases."""

import errno
import struct

import pytest
from blkd.probes import Guest
from hypothesis import assume, given
from hypothesis import strategies as st

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ENABLE, DISABLE, ONE_DESC, RESERVED = range(4)
WRAP = 1 << 15
START = 0x80008000
DESC, DRIVER, DEVICE, DATA = 0x1000, 0x5000, 0x5010, 0x10000
MEMORY = 0x6000
SIZES = [1, 2, 3, 5, 8, 1000]


class Ring:
    """A packed ring with its driver's place in it: data in two adjacent regions and a distant one.

    A descriptor is (address, length, flags); `offer` adds NEXT and what makes it available.
    """

    def __init__(self, size=8, **options):
        self.size = size
        self.low, self.data, self.more, self.far = (bytearray(MEMORY) for _ in range(4))
        regions = [
            (0, self.low),
            (DATA, self.data),
            (DATA + MEMORY, self.more),
            (2**40, self.far),
        ]
        self.guest = Guest(
            regions, size=size, desc=DESC, avail=DRIVER, used=DEVICE, packed=True, **options
        )
        self.begin(START)

    def begin(self, base):
        self.guest.start(base)
        self.at, self.wrap = base & (WRAP - 1), bool(base & WRAP)

    def put(self, at, address, length, ident, flags):
        struct.pack_into("<QIHH", self.low, DESC + 16 * at, address, length, ident, flags)

    def get(self, at):
        return struct.unpack_from("<QIHH", self.low, DESC + 16 * at)

    def offer(self, *descriptors, ident=0):
        for n, (address, length, flags) in enumerate(descriptors):
            more = NEXT if n + 1 < len(descriptors) else 0
            marks = AVAIL if self.wrap else USED
            # Only the last id counts: the others are wrong on purpose.
            self.put(self.at, address, length, ident ^ 0xFFFF * bool(more), flags | more | marks)
            self.at = (self.at + 1) % self.size
            self.wrap ^= self.at == 0

    def offer_bytes(self, *idents):
        """Make a chain of one byte available for each id."""
        for ident in idents:
            self.offer((DATA, 1, 0), ident=ident)

    def table(self, *entries):
        """Write an indirect table of (address, length, id, flags): its length in bytes."""
        struct.pack_into("<" + "QIHH" * len(entries), self.data, 0, *sum(entries, ()))
        return 16 * len(entries)

    def driver_event(self, where, flags):
        struct.pack_into("<HH", self.low, DRIVER, where, flags)

    @property
    def device_event(self):
        return struct.unpack_from("<HH", self.low, DEVICE)

    def turn(self):
        """Carry the ring one whole round further, a descriptor at a time."""
        for ident in range(self.size):
            self.offer_bytes(ident)
            assert self.guest.take()[0] == ident
            self.guest.give_back(ident)


def position(count, size):
    """Offset and wrap counter of descriptor `count`, counted from the start for ever."""
    turn, offset = divmod(count, size)
    return offset | (0 if turn % 2 else WRAP)


def refusal(ring):
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        ring.guest.take()
    return refused.value.errno


# Chains


def test_a_chain_becomes_its_segments_in_order_and_has_the_last_descriptors_id():
    ring = Ring()
    ring.offer((DATA, 16, 0), (2**40, 512, WRITE), (DATA + 32, 1, WRITE), ident=0xBEEF)
    segments = [(DATA, 16, False), (2**40, 512, True), (DATA + 32, 1, True)]
    assert ring.guest.take() == (0xBEEF, 3, segments)
    assert ring.guest.take() is None


@pytest.mark.parametrize("size", SIZES)
def test_chains_are_taken_in_order_round_after_round(size):
    ring = Ring(size)
    for n in range(3 * size + 1):
        ring.offer((DATA + n % MEMORY, 1, 0), ident=n)
        assert ring.guest.take() == (n, 1, [(DATA + n % MEMORY, 1, False)])
        assert ring.guest.take() is None
        ring.guest.give_back(n)


def test_a_chain_may_lie_across_the_end_of_the_ring():
    ring = Ring(5)
    ring.begin(3 | WRAP | (3 | WRAP) << 16)
    ring.offer((DATA, 1, 0), (DATA, 2, 0), (DATA, 3, 0), (DATA, 4, WRITE), ident=7)
    ident, descriptors, segments = ring.guest.take()
    assert (ident, descriptors, [s[1] for s in segments]) == (7, 4, [1, 2, 3, 4])
    assert ring.guest.base() & 0xFFFF == 2  # the wrap counter has changed to 0


def test_a_chain_may_fill_the_ring():
    for size in SIZES:
        ring = Ring(size)
        ring.offer(*[(DATA, 1, 0)] * size, ident=1)
        assert ring.guest.take()[1] == size
        assert ring.guest.take() is None


def test_a_buffer_over_two_adjacent_regions_becomes_two_segments():
    ring = Ring()
    ring.offer((DATA + MEMORY - 100, 300, 0))
    assert ring.guest.take()[2] == [(DATA + MEMORY - 100, 100, False), (DATA + MEMORY, 200, False)]


def test_an_empty_descriptor_is_no_segment_and_yet_one_of_the_chain():
    ring = Ring()
    ring.offer((DATA, 0, 0), (DATA, 5, 0))
    assert ring.guest.take() == (0, 2, [(DATA, 5, False)])


@pytest.mark.parametrize(
    "flags", [0, NEXT, INDIRECT, NEXT | INDIRECT, AVAIL, USED, 0xFFFF & ~WRITE]
)
@pytest.mark.parametrize("write", [0, WRITE], ids=["readable", "writable"])
def test_in_an_indirect_table_only_the_write_flag_has_a_meaning(flags, write):
    ring = Ring()
    entries = [(DATA + 512 + n, 7, 0xAAAA, flags | write) for n in range(3)]
    ring.offer((DATA, ring.table(*entries), INDIRECT), ident=5)
    assert ring.guest.take() == (5, 1, [(DATA + 512 + n, 7, bool(write)) for n in range(3)])


def test_an_indirect_table_may_be_longer_than_the_ring_up_to_the_agreed_chain():
    ring = Ring(3, longest_chain=16)
    ring.offer((DATA, ring.table(*[(DATA + 1024, 1, 0, 0)] * 16), INDIRECT | WRITE))
    assert len(ring.guest.take()[2]) == 16
    ring.offer((DATA, 16 * 17, INDIRECT))
    assert refusal(ring) == errno.ENOBUFS


@pytest.mark.parametrize(
    ("descriptors", "expected"),
    [
        pytest.param([(0x9000, 16, 0)], errno.EFAULT, id="between-regions"),
        pytest.param([(2**40 + MEMORY - 6, 16, 0)], errno.EFAULT, id="past-the-last-region"),
        pytest.param([(2**64 - 8, 16, 0)], errno.EFAULT, id="address-wraps"),
        pytest.param([(DATA, 2**32 - 1, 0)], errno.EFAULT, id="longer-than-memory"),
        pytest.param([(DATA, 16, 0), (0x9000, 1, 0)], errno.EFAULT, id="second-between-regions"),
        pytest.param([(DATA, 32, INDIRECT | NEXT)], errno.EINVAL, id="indirect-with-next"),
        pytest.param([(DATA, 16, 0), (DATA, 32, INDIRECT)], errno.EINVAL, id="indirect-in-chain"),
        pytest.param([(DATA, 24, INDIRECT)], errno.EINVAL, id="indirect-of-odd-size"),
        pytest.param([(DATA, 0, INDIRECT)], errno.EINVAL, id="indirect-of-no-size"),
        pytest.param([(DATA, 16 * 9, INDIRECT)], errno.ENOBUFS, id="indirect-too-long"),
        pytest.param([(DATA, 2**32 - 16, INDIRECT)], errno.ENOBUFS, id="indirect-enormous"),
        pytest.param([(0x9000, 16, INDIRECT)], errno.EFAULT, id="indirect-nowhere"),
        pytest.param([(2**64 - 16, 16, INDIRECT)], errno.EFAULT, id="indirect-at-the-last-byte"),
        pytest.param([(DATA + MEMORY - 16, 32, INDIRECT)], errno.EFAULT, id="indirect-torn"),
    ],
)
def test_a_hostile_chain_is_refused(descriptors, expected):
    ring = Ring()
    ring.offer(*descriptors)
    assert refusal(ring) == expected


def test_an_indirect_table_that_points_nowhere_is_refused():
    ring = Ring()
    ring.offer((DATA, ring.table((DATA, 1, 0, 0), (0x9000, 1, 0, 0)), INDIRECT))
    assert refusal(ring) == errno.EFAULT


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [0, 1], ids=["of-nothing", "of-bytes"])
def test_a_chain_longer_than_the_ring_is_a_loop(size, length):
    ring = Ring(size)
    for at in range(size):
        ring.put(at, DATA, length, 0, NEXT | AVAIL)
    assert refusal(ring) == errno.ELOOP


def test_indirect_descriptors_need_the_feature():
    ring = Ring(indirect=False)
    ring.offer((DATA, ring.table((DATA, 16, 0, 0)), INDIRECT))
    assert refusal(ring) == errno.EINVAL


# Wrap counters


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("marks", [0, AVAIL, USED, AVAIL | USED])
def test_a_descriptor_is_available_by_its_marks_and_the_wrap_counter(wrap, marks):
    ring = Ring()
    at = WRAP if wrap else 0
    ring.guest.start(2 | at | (2 | at) << 16)
    ring.put(2, DATA, 1, 9, marks)
    expected = (9, 1, [(DATA, 1, False)]) if marks == (AVAIL if wrap else USED) else None
    assert ring.guest.take() == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_after_a_round_what_stands_in_the_ring_is_not_available(size, turns):
    ring = Ring(size)
    for _ in range(turns):
        ring.turn()
    ring.offer_bytes(*range(size))
    for ident in range(size):
        assert ring.guest.take()[0] == ident
    assert ring.guest.take() is None  # still marked as in this round, and nothing given back
    assert not ring.guest.rearm()


def test_a_descriptor_behind_one_that_is_not_available_is_not_looked_at():
    ring = Ring()
    ring.put(1, DATA, 1, 0, AVAIL)
    assert ring.guest.take() is None


# Used descriptors


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_ids_are_given_back_as_they_came_in_whatever_order(idents, random):
    ring = Ring()
    ring.offer_bytes(*idents)
    assert [ring.guest.take()[0] for _ in idents] == idents
    random.shuffle(idents)
    ring.guest.give_back(*idents)
    assert [ring.get(at)[2] for at in range(len(idents))] == idents


@pytest.mark.parametrize(("base", "marks"), [(START, AVAIL | USED), (0x10001, 0)])
def test_a_used_descriptor_has_id_length_and_the_rounds_marks(base, marks):
    ring = Ring()
    ring.begin(base)
    at = base & (WRAP - 1)
    ring.offer((DATA, 100, 0), (DATA, 200, WRITE), ident=0xABCD)
    ident, length, _ = ring.guest.take()
    behind = ring.get(at + 1)
    assert ring.guest.give_back((ident, length))
    assert ring.get(at) == (DATA, 1, 0xABCD, WRITE | marks)  # the probe says 1 byte written
    assert ring.get(at + 1) == behind


@given(
    st.sampled_from([2, 3, 5, 8]), st.data(), st.lists(st.integers(1, 8), min_size=1, max_size=40)
)
def test_used_descriptors_skip_what_their_chains_took(size, data, lengths):
    ring = Ring(size)
    count = 0
    for wanted in lengths:
        length = min(wanted, size)
        ident = data.draw(st.integers(0, 0xFFFF))
        ring.offer(*[(DATA, 1, 0)] * length, ident=ident)
        assert ring.guest.take()[:2] == (ident, length)
        ring.guest.give_back((ident, length))
        where = position(count, size)
        marks = AVAIL | USED if where & WRAP else 0
        assert ring.get(where & (WRAP - 1))[1:] == (1, ident, WRITE | marks)
        count += length
    assert ring.guest.base() == position(count, size) * 0x10001


@given(st.sampled_from([3, 5, 8]), st.integers(0, 20), st.data())
def test_many_used_descriptors_are_shown_at_once_also_across_the_end(size, start, data):
    ring = Ring(size)
    ring.begin(position(start, size) * 0x10001)
    lengths = []
    while (room := size - sum(lengths)) and len(lengths) < 6:
        lengths.append(data.draw(st.integers(1, room)))
    for ident, length in enumerate(lengths):
        ring.offer(*[(DATA, 1, 0)] * length, ident=ident)
    taken = [ring.guest.take()[:2] for _ in lengths]
    assert taken == list(enumerate(lengths))
    ring.guest.give_back(*taken)
    count = start
    for ident, length in taken:
        where = position(count, size)
        marks = AVAIL | USED if where & WRAP else 0
        assert ring.get(where & (WRAP - 1))[1:] == (1, ident, WRITE | marks)
        count += length


# Event suppression: when the driver is called


@pytest.mark.parametrize(
    ("flags", "event_idx", "wanted"),
    [
        pytest.param(ENABLE, True, True, id="enable"),
        pytest.param(ENABLE, False, True, id="enable-without-event-idx"),
        pytest.param(DISABLE, True, False, id="disable"),
        pytest.param(DISABLE, False, False, id="disable-without-event-idx"),
        pytest.param(ONE_DESC, True, False, id="another-descriptor"),
        pytest.param(ONE_DESC, False, True, id="descriptor-without-event-idx"),
        pytest.param(RESERVED, True, True, id="reserved"),
        pytest.param(RESERVED, False, True, id="reserved-without-event-idx"),
    ],
)
def test_a_driver_is_called_as_its_flags_say(flags, event_idx, wanted):
    ring = Ring(event_idx=event_idx)
    ring.driver_event(5 | WRAP, flags)
    assert ring.guest.give_back(0) is wanted


@given(
    st.integers(1, 1000), st.integers(0, 4000), st.data(), st.booleans(), st.integers(0, 2**15 - 1)
)
def test_a_driver_is_called_exactly_when_its_descriptor_was_stepped_over(
    size, before, data, wrap, offset
):
    steps = data.draw(st.integers(1, size))
    event = offset % size | (WRAP if wrap else 0)
    ring = Ring(size, event_idx=True)
    ring.guest.start(position(before, size) * 0x10001)
    ring.driver_event(event, ONE_DESC)
    crossed = {position(before + n, size) for n in range(steps)}
    # However the steps are cut into chains.
    first = data.draw(st.integers(0, steps - 1))
    chains = [(1, first), (2, steps - first)] if first else [(2, steps)]
    assert ring.guest.give_back(*chains) is (event in crossed)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_event_of_a_small_ring_is_met_after_as_many_steps_as_it_is_away(size):
    for before in range(2 * size):
        for steps in range(1, size + 1):
            crossed = {position(before + n, size) for n in range(steps)}
            for event in (offset | wrap for offset in range(size) for wrap in (0, WRAP)):
                ring = Ring(size, event_idx=True)
                ring.guest.start(position(before, size) * 0x10001)
                ring.driver_event(event, ONE_DESC)
                assert ring.guest.give_back((0, steps)) is (event in crossed)


# Event suppression: when we are kicked


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
def test_asking_for_kicks_again_notices_what_came_meanwhile(event_idx):
    ring = Ring(event_idx=event_idx)
    assert not ring.guest.rearm()
    ring.offer_bytes(0)
    assert ring.guest.rearm()


@given(st.integers(1, 1000), st.integers(0, 4000))
def test_the_driver_is_asked_to_kick_for_the_next_descriptor_only(size, count):
    ring = Ring(size, event_idx=True)
    ring.guest.start(position(count, size) * 0x10001)
    ring.guest.suppress()
    assert ring.device_event[1] == DISABLE
    ring.guest.rearm()
    assert ring.device_event == (position(count, size), ONE_DESC)


def test_without_event_idx_kicks_are_switched_on_and_off():
    ring = Ring()
    ring.guest.suppress()
    assert ring.device_event == (0, DISABLE)
    ring.guest.rearm()
    assert ring.device_event == (0, ENABLE)


# Bases


@given(st.integers(1, 1000), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_a_base_is_given_as_it_was_taken(size, avail, used):
    assume(used != 0)
    ring = Ring(size)
    base = avail | used << 16
    if max(avail & ~WRAP, used & ~WRAP) < size:
        ring.guest.start(base)
        assert ring.guest.base() == base
    else:
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
            ring.guest.start(base)
        assert refused.value.errno == errno.ERANGE


@pytest.mark.parametrize("avail", [0, 5, WRAP, 5 | WRAP])
def test_a_base_of_16_bits_has_nothing_in_flight(avail):
    ring = Ring()
    ring.guest.start(avail)
    assert ring.guest.base() == avail << 16 | avail


@pytest.mark.parametrize("base", [8, 8 | WRAP, 0x7FFF, 0x80008008, 0x80088000, 0xFFFFFFFF])
def test_a_base_outside_the_ring_is_refused(base):
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
        Ring().guest.start(base)
    assert refused.value.errno == errno.ERANGE


def test_a_base_tells_what_is_fetched_and_what_is_given_back():
    ring = Ring()
    ring.offer_bytes(1, 2, 3)
    for _ in range(3):
        ring.guest.take()
    ring.guest.give_back(2)
    assert ring.guest.base() == (3 | WRAP) | (1 | WRAP) << 16


# Whatever a ring contains

hostile = st.tuples(
    st.one_of(
        st.integers(DATA, DATA + 2 * MEMORY),
        st.integers(0, MEMORY),
        st.sampled_from([0, 2**40, 2**40 + MEMORY - 1, 2**64 - 1, 2**63]),
    ),
    st.one_of(st.integers(0, 64), st.sampled_from([MEMORY, 2**31, 2**32 - 1])),
    st.integers(0, 0xFFFF),
    st.integers(0, 7).flatmap(lambda low: st.sampled_from([low | AVAIL, low | USED, low])),
)


@given(st.integers(1, 12).flatmap(lambda n: st.lists(hostile, min_size=n, max_size=n)))
def test_no_ring_makes_the_walk_leave_guest_memory_or_run_for_ever(descriptors):
    ring = Ring(len(descriptors), longest_chain=32)
    for at, descriptor in enumerate(descriptors):
        ring.put(at, *descriptor)
    for _ in range(4 * len(descriptors)):
        try:
            taken = ring.guest.take()  # describes only what lies in guest memory
        except OSError:
            return
        if taken is None:
            return
        _, length, segments = taken
        assert 1 <= length <= len(descriptors)
        assert all(size > 0 for _, size, _ in segments)


@given(st.binary(min_size=0x400, max_size=0x400))
def test_no_bytes_make_the_walk_leave_guest_memory(content):
    ring = Ring(64)
    ring.low[DESC : DESC + len(content)] = content
    for at in range(64):
        ring.guest.start(at | WRAP | (at | WRAP) << 16)
        try:
            ring.guest.take()
        except OSError:
            continue


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.booleans())
def test_no_event_structure_makes_more_than_a_call_of_it(where, flags, event_idx):
    ring = Ring(event_idx=event_idx)
    ring.driver_event(where, flags)
    assert ring.guest.give_back(0) in {True, False}
    assert ring.low[DRIVER : DRIVER + 4] == struct.pack("<HH", where, flags)
