# SPDX-License-Identifier: Apache-2.0
"""A packed ring that is said to be fresh, by a front end that may have forgotten where it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ring.test_packed import DATA, INDIRECT, SIZES, Ring


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_that_was_served_is_no_fresh_one_unless_it_is_back_at_its_beginning(size):
    ring = Ring(size)
    for count in range(4 * size + 1):
        assert ring.guest.is_no_fresh_ring() is (count % (2 * size) > 0)
        ring.offer((DATA, 16, INDIRECT), ident=count % 0xFFFF)
        ring.guest.give_back(count % 0xFFFF)


@given(st.lists(st.integers(1, 8), max_size=8), st.integers(0, 1))
def test_a_ring_that_only_its_driver_has_filled_is_fresh(lengths, turns):
    ring = Ring()
    for _ in range(2 * turns):
        ring.turn()
    room = ring.size
    for wanted in lengths:
        length = min(wanted, room)
        room -= length
        if length:
            ring.offer(*[(DATA, 1, 0)] * length)
    assert not ring.guest.is_no_fresh_ring()


@pytest.mark.parametrize("size", [3, 8])
def test_a_ring_full_of_waiting_indirect_chains_is_no_fresh_one(size):
    """Left in its second round, with all of the rest of it waiting."""
    ring = Ring(size)
    for _ in range(size + 1):
        ring.offer((DATA, 16, INDIRECT))
        ring.guest.give_back(0)
    for _ in range(size):
        ring.offer((DATA, 16, INDIRECT))
    assert ring.guest.is_no_fresh_ring()


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_is_untouched_until_its_first_chain_is_given_back(size):
    ring = Ring(size)
    assert ring.guest.is_untouched()
    for count in range(size):
        ring.offer((DATA, 1, 0), ident=count)
        assert ring.guest.is_untouched()
    for count in range(2 * size):
        ring.guest.give_back(count % size)
        assert not ring.guest.is_untouched()
        ring.offer((DATA, 1, 0), ident=count % size)
        # One that waits whole, in a round of the first one's marks, looks like a fresh ring.
        assert ring.guest.is_untouched() is (count + 1 == 2 * size)
