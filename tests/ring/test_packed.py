# SPDX-License-Identifier: Apache-2.0
import errno
import struct

import pytest
from blkd.probes import Guest
from hypothesis import given
from hypothesis import strategies as st

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ENABLE, DISABLE, ONE = 0, 1, 2
DESC, DRIVER, DEVICE, DATA = 0x0, 0x8000, 0x8100, 0x10000
MEMORY = 0x8000
START = 0x80008000
SIZE = 8


class Ring:
    """A packed ring, and a driver that writes descriptors wherever it is told."""

    def __init__(self, size=SIZE, **options):
        self.size = size
        self.low = bytearray(0x9000)
        self.data = bytearray(MEMORY)
        self.guest = Guest(
            [(0, self.low), (DATA, self.data)],
            size=size,
            desc=DESC,
            avail=DRIVER,
            used=DEVICE,
            packed=True,
            **options,
        )
        self.guest.start(START)

    def put(self, at, address=DATA, length=16, flags=0, number=0, *, wrap=True):
        """Make descriptor `at` available in a round with this wrap counter."""
        state = AVAIL if wrap else USED
        struct.pack_into("<QIHH", self.low, 16 * at, address, length, number, flags | state)

    def seen(self, at):
        """Length, id and flags of descriptor `at`."""
        return struct.unpack_from("<8xIHH", self.low, 16 * at)

    def table(self, *entries):
        struct.pack_into("<" + "QIHH" * len(entries), self.data, 0, *sum(entries, ()))
        return len(entries) * 16

    def wish(self, where, flags):
        """Say when the driver wants to be called."""
        struct.pack_into("<HH", self.low, DRIVER, where, flags)

    def asked(self):
        """When the device wants to be kicked."""
        return struct.unpack_from("<HH", self.low, DEVICE)


def refused(call, *arguments):
    with pytest.raises(OSError) as error:  # noqa: PT011 - the number is what counts
        call(*arguments)
    return error.value.errno


def test_an_empty_ring_has_nothing_to_take():
    assert Ring().guest.take() is None


def test_chains_are_taken_in_order_with_the_id_of_their_last_descriptor():
    ring = Ring()
    ring.put(0, DATA, 16, NEXT, 7)
    ring.put(1, DATA + 32, 1, WRITE, 9)
    ring.put(2, DATA + 64, 5, 0, 0xFFFF)
    assert ring.guest.take() == (9, 2, [(DATA, 16, False), (DATA + 32, 1, True)])
    assert ring.guest.take() == (0xFFFF, 1, [(DATA + 64, 5, False)])
    assert ring.guest.take() is None


def test_a_chain_goes_on_at_the_ring_s_beginning():
    ring = Ring()
    ring.guest.start(0x8000 | 7 | (0x8000 | 7) << 16)
    ring.put(7, DATA, 16, NEXT, 1)
    ring.put(0, DATA + 16, 1, WRITE, 1, wrap=False)
    assert ring.guest.take() == (1, 2, [(DATA, 16, False), (DATA + 16, 1, True)])
    assert ring.guest.base() & 0xFFFF == 1


def test_what_was_available_a_round_ago_is_not_available_again():
    ring = Ring(3)
    for at in range(3):
        ring.put(at, number=at)
    assert [ring.guest.take()[0] for _ in range(3)] == [0, 1, 2]
    assert ring.guest.take() is None
    ring.put(0, number=5, wrap=False)
    assert ring.guest.take()[0] == 5


def test_a_used_descriptor_is_not_available():
    ring = Ring()
    ring.put(0)
    ring.low[15] |= USED >> 8
    assert ring.guest.take() is None


def test_in_an_indirect_table_only_write_means_something():
    ring = Ring(longest_chain=16)
    size = ring.table(
        (DATA + 512, 16, 3, NEXT | AVAIL), (DATA + 600, 7, 9, WRITE), (DATA + 700, 2, 0, INDIRECT)
    )
    ring.put(0, DATA, size, INDIRECT | WRITE, 4)
    assert ring.guest.take() == (
        4,
        1,
        [(DATA + 512, 16, False), (DATA + 600, 7, True), (DATA + 700, 2, False)],
    )


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        pytest.param((DATA, 16, INDIRECT | NEXT), errno.EINVAL, id="indirect-with-next"),
        pytest.param((DATA, 24, INDIRECT), errno.EINVAL, id="indirect-of-odd-size"),
        pytest.param((DATA, 0, INDIRECT), errno.EINVAL, id="indirect-of-no-size"),
        pytest.param((DATA, 16 * 9, INDIRECT), errno.ENOBUFS, id="indirect-too-long"),
        pytest.param((0x9800, 16, INDIRECT), errno.EFAULT, id="indirect-nowhere"),
        pytest.param((0x9800, 16, 0), errno.EFAULT, id="nowhere"),
        pytest.param((2**64 - 8, 16, 0), errno.EFAULT, id="address-wraps"),
        pytest.param((DATA, 2**32 - 1, 0), errno.EFAULT, id="longer-than-memory"),
    ],
)
def test_a_hostile_chain_is_refused(first, expected):
    ring = Ring()
    ring.put(0, *first)
    assert refused(ring.guest.take) == expected


def test_an_indirect_descriptor_stands_alone():
    ring = Ring()
    ring.put(0, DATA, 16, NEXT)
    ring.put(1, DATA, ring.table((DATA, 1, 0, 0)), INDIRECT)
    assert refused(ring.guest.take) == errno.EINVAL


def test_indirect_descriptors_need_the_feature():
    ring = Ring(indirect=False)
    ring.put(0, DATA, ring.table((DATA, 1, 0, 0)), INDIRECT)
    assert refused(ring.guest.take) == errno.EINVAL


@pytest.mark.parametrize("size", [1, 3, 8, 1000])
def test_a_chain_without_end_is_refused(size):
    ring = Ring(size)
    for at in range(size):
        ring.put(at, length=0, flags=NEXT)
    assert refused(ring.guest.take) == errno.ELOOP


def test_used_descriptors_tell_id_and_length_and_skip_what_the_chain_took():
    ring = Ring(event_idx=True)
    ring.guest.give_back((7, 3), (0xABCD, 1))
    assert ring.seen(0) == (1, 7, AVAIL | USED | WRITE)
    assert ring.seen(1) == ring.seen(2) == (0, 0, 0)
    assert ring.seen(3) == (1, 0xABCD, AVAIL | USED | WRITE)
    assert ring.guest.base() >> 16 == 0x8000 | 4


def test_used_descriptors_change_their_flags_with_each_round():
    ring = Ring(5)
    ring.guest.give_back((1, 4), (2, 3), (3, 1))
    assert ring.seen(4)[1:] == (2, AVAIL | USED | WRITE)
    assert ring.seen(2)[1:] == (3, WRITE)
    assert ring.guest.base() >> 16 == 3


@pytest.mark.parametrize(
    ("flags", "wanted"), [(ENABLE, True), (DISABLE, False), (ONE, True), (3, True)]
)
def test_without_event_idx_only_disable_keeps_the_driver_from_being_called(flags, wanted):
    ring = Ring()
    ring.wish(5, flags)
    assert ring.guest.give_back(0) is wanted


@given(
    size=st.integers(1, 70),
    start=st.data(),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_a_driver_is_called_when_its_descriptor_is_used(size, start, steps):
    """Against positions counted without end: rounds are `size` long."""
    at = start.draw(st.integers(0, 2 * size - 1))
    steps = [min(step, size) for step in steps]
    total = sum(steps)
    if total > size:
        steps, total = [size], size
    event = start.draw(st.integers(max(0, at - size + 1), at + size - 1))
    ring = Ring(size, event_idx=True)
    base = at % size | (0x8000 if at // size % 2 == 0 else 0)
    ring.guest.start(base | base << 16)
    ring.wish(event % size | (0x8000 if event // size % 2 == 0 else 0), ONE)
    wanted = ring.guest.give_back(*((0, step) for step in steps))
    if event <= at + size - 1 and event >= at + total - size:
        assert wanted is (at <= event < at + total)


@pytest.mark.parametrize("event_idx", [False, True])
def test_asking_for_kicks_again_notices_what_came_meanwhile(event_idx):
    ring = Ring(event_idx=event_idx)
    assert not ring.guest.rearm()
    ring.put(0)
    assert ring.guest.rearm()


def test_the_driver_is_asked_to_kick_for_the_next_descriptor_only():
    ring = Ring(event_idx=True)
    ring.guest.start(0x0005_0005)
    ring.guest.rearm()
    assert ring.asked() == (5, ONE)
    ring.guest.start(START)
    ring.guest.rearm()
    assert ring.asked() == (0x8000, ONE)


def test_the_driver_is_told_not_to_kick():
    ring = Ring()
    ring.guest.rearm()
    assert ring.asked()[1] == ENABLE
    ring.guest.suppress()
    assert ring.asked()[1] == DISABLE


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (START, START),
        (0x8003_8005, 0x8003_8005),
        (0x0007_8000, 0x0007_8000),
        pytest.param(0x8004, 0x8004_8004, id="of-a-front-end-without-a-used-half"),
    ],
)
def test_a_base_comes_back_as_it_was_given(base, expected):
    ring = Ring()
    ring.guest.start(base)
    assert ring.guest.base() == expected


@pytest.mark.parametrize("base", [0x8008, 0x8000_0008, 0x7FFF, 0x8000_8008, 0xFFFF_8000])
def test_a_base_outside_the_ring_is_refused(base):
    assert refused(Ring().guest.start, base) == errno.ERANGE


@given(st.binary(min_size=16 * SIZE, max_size=16 * SIZE), st.integers(0, 2 * SIZE))
def test_no_contents_make_the_walk_leave_guest_memory_or_run_for_ever(contents, turns):
    ring = Ring()
    ring.low[: len(contents)] = contents
    for _ in range(turns):
        try:
            taken = ring.guest.take()
        except OSError:
            return
        if taken is None:
            return
        assert 1 <= taken[1] <= SIZE
        assert all(length > 0 for _, length, _ in taken[2])


@given(
    size=st.integers(1, 20),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_a_driver_and_the_device_never_lose_each_other(size, lengths, order):
    """A driver that fills the ring, a device that answers in any order, round after round."""
    ring = Ring(size)
    at, wrap, room = 0, True, size
    seen, seen_wrap = 0, True
    out = {}
    for number, length in enumerate(min(length, size) for length in lengths):
        while room < length:
            taken = list(out.items())
            order.shuffle(taken)
            ring.guest.give_back(*taken)
            for key, count in taken:
                _, found, flags = ring.seen(seen)
                assert (found, bool(flags & AVAIL), bool(flags & USED)) == (
                    key,
                    seen_wrap,
                    seen_wrap,
                )
                seen += count
                room += count
                if seen >= size:
                    seen, seen_wrap = seen - size, not seen_wrap
            out.clear()
        for n in range(length):
            ring.put(at, DATA, n + 1, NEXT if n + 1 < length else 0, number, wrap=wrap)
            at += 1
            if at == size:
                at, wrap = 0, not wrap
        room -= length
        taken = ring.guest.take()
        assert taken == (number, length, [(DATA, n + 1, False) for n in range(length)])
        out[number] = length
        assert ring.guest.take() is None
