# SPDX-License-Identifier: Apache-2.0
"""The load generator's inline functions: blocks that describe themselves, latencies, places."""

import itertools

import pytest
from blkd.loadgen_probes import count_latencies, judge_block, make_block, passed, place
from hypothesis import given
from hypothesis import strategies as st

from blkd.loadgen.latency import BUCKET_ERROR, WHOLE, Counted

INTACT, FOREIGN, DAMAGED, MISPLACED, OTHER_SEED, STALE = range(6)
HEAD = 48  # bytes

sizes = st.sampled_from([512, 4096, 65536])
numbers = st.integers(0, 2**64 - 1)


def counted(values):
    count, total, least, most, buckets = count_latencies(values)
    return Counted(count, total, least, most, dict(buckets))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=400), st.integers(1, WHOLE))
def test_a_percentile_is_the_sorted_lists_up_to_the_guaranteed_error(values, share):
    true = sorted(values)[max(1, -(-len(values) * share // WHOLE)) - 1]
    found = counted(values).percentile(share)
    assert true <= found <= true * (1 + BUCKET_ERROR)


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=50))
def test_count_sum_and_both_ends_are_exact(values):
    counts = counted(values)
    assert (counts.count, counts.total) == (len(values), sum(values) % 2**64)
    assert (counts.least, counts.most) == (min(values), max(values))
    assert (counts.percentile(WHOLE), sum(counts.buckets.values())) == (max(values), len(values))


@given(sizes, numbers, numbers, numbers, numbers)
def test_an_intact_block_is_found_intact(size, offset, seed, generation, sequence):
    of = {"offset": offset, "seed": seed, "generation": generation, "sequence": sequence}
    assert judge_block(make_block(size, **of), **of)[0] == INTACT


@given(st.integers(0, 4095), st.integers(1, 255))
def test_a_changed_byte_is_found_where_it_is(at, flip):
    block = make_block(4096, offset=8192)
    block[at] ^= flip
    what, found_at, found, expected = judge_block(block, offset=8192)
    assert what == (FOREIGN if at < 8 else DAMAGED)
    assert found_at == at
    assert found ^ expected == flip << 8 * (at % 8)


@given(st.integers(HEAD, 4095), st.integers(1, 255))
def test_damage_shows_where_it_is_when_the_generation_is_not_known(at, flip):
    block = make_block(4096, offset=0, generation=7, sequence=9)
    block[at] ^= flip
    assert judge_block(block, offset=0, any_generation=True)[:2] == (DAMAGED, at)


@pytest.mark.parametrize(
    ("made", "what", "found", "expected"),
    [
        pytest.param({"offset": 4096}, MISPLACED, 4096, 0, id="elsewhere"),
        pytest.param({"offset": 0, "seed": 2}, OTHER_SEED, 2, 1, id="other-run"),
        pytest.param({"offset": 0, "generation": 2}, STALE, 2, 3, id="older"),
    ],
)
def test_a_whole_block_in_the_wrong_place_is_distinguished_from_damage(made, what, found, expected):
    verdict = judge_block(make_block(4096, **{"generation": 3} | made), offset=0, generation=3)
    assert (verdict[0], *verdict[2:]) == (what, found, expected)


@pytest.mark.parametrize("cut", [512, 2048, 3584])
def test_a_torn_block_is_damaged(cut):
    old = make_block(4096, offset=0, generation=1)
    new = make_block(4096, offset=0, generation=2)
    assert judge_block(new[:cut] + old[cut:], offset=0, generation=2)[:2] == (DAMAGED, cut)


@pytest.mark.parametrize("content", [bytes(4096), b"\xff" * 4096], ids=["zeros", "ones"])
def test_what_was_never_written_is_foreign(content):
    assert judge_block(bytearray(content), offset=0)[0] == FOREIGN


@given(st.integers(1, 600), st.integers(0, 2**63))
def test_a_random_pass_comes_to_each_block_once(blocks, seed):
    assert sorted(place(i, blocks, seed) for i in range(blocks)) == list(range(blocks))


def test_a_random_pass_is_not_in_order():
    order = [place(i, 1000, 1) for i in range(1000)]
    steps = {b - a for a, b in itertools.pairwise(order)}
    assert len(steps) > 500
    assert order != [place(i, 1000, 2) for i in range(1000)]


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 300))
def test_an_event_is_crossed_where_it_lies_between_two_indices(event, before, added):
    now = (before + added) & 0xFFFF
    assert passed(event, now, before) == (event in {(before + i) & 0xFFFF for i in range(added)})
