# SPDX-License-Identifier: Apache-2.0
"""Figures: what is said of histograms, sums, differences, and JSON."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.statistics.figures import (
    BOUNDS,
    BUCKETS,
    OPERATIONS,
    SIZE_CLASSES,
    Cell,
    Errors,
    Events,
    Figures,
    Histogram,
    Requests,
    decode,
    encode,
)

counts = st.integers(0, 2**40)
histograms = st.builds(
    lambda used, total: Histogram(tuple(used.get(n, 0) for n in range(BUCKETS)), total),
    st.dictionaries(st.integers(0, BUCKETS - 1), counts, max_size=3),
    counts,
)
requests = st.builds(
    Requests, st.integers(1, 2**40), counts, st.just(Histogram()), histograms, histograms
)
cells = st.lists(
    st.builds(Cell, st.sampled_from(OPERATIONS), st.sampled_from(SIZE_CLASSES), requests),
    unique_by=lambda cell: (cell.operation, cell.size),
    max_size=2,
).map(tuple)
errors = st.builds(Errors, no_space=counts, io=counts, refused=counts)
events = st.builds(Events, kicks=counts, calls=counts)
figures = st.builds(Figures, time_ns=counts, cells=cells, errors=errors, events=events)


def histogram_of(*times: int) -> Histogram:
    """The histogram of a few times, in ns."""
    buckets = [0] * BUCKETS
    for time in times:
        buckets[sum(time > bound for bound in BOUNDS)] += 1
    return Histogram(tuple(buckets), sum(times))


def test_bounds_go_from_16_ns_to_beyond_64_seconds():
    assert BOUNDS[0] == 16
    assert BOUNDS[-2] < 64e9 < BOUNDS[-1]


@given(st.lists(st.integers(0, BOUNDS[-1]), min_size=1), st.floats(0.01, 1))
def test_quantile_lies_in_the_bucket_of_the_true_one(times, share):
    true = sorted(times)[max(-int(-len(times) * share // 1), 1) - 1]
    bucket = sum(true > bound for bound in BOUNDS)
    lower = BOUNDS[bucket - 1] if bucket else 0
    assert lower <= histogram_of(*times).quantile_ns(share) <= BOUNDS[bucket]


@given(st.lists(st.integers(0, BOUNDS[-1]), min_size=1))
def test_longest_is_within_twice_what_is_said(times):
    said = histogram_of(*times).max_ns
    assert max(times) <= said
    assert said <= max(2 * max(times), BOUNDS[0])


def test_nothing_counted_has_no_times():
    empty = Histogram()
    assert (empty.count, empty.mean_ns, empty.max_ns, empty.quantile_ns(0.99)) == (0, 0, 0, 0)


def test_what_is_beyond_all_bounds_is_said_to_be_the_last_one():
    beyond = histogram_of(10**12)
    assert beyond.quantile_ns(0.5) == beyond.max_ns == BOUNDS[-1]


@given(figures, figures)
def test_what_was_added_is_the_difference(earlier, more):
    both = Figures.sum([earlier, more])
    grown = both.since(earlier)
    assert grown.total == more.total
    assert (grown.errors, grown.events) == (more.errors, more.events)


@given(figures, figures, figures)
def test_sums_do_not_depend_on_order(a, b, c):
    assert Figures.sum([a, b, c]) == Figures.sum([c, Figures.sum([b, a])])


def test_counter_that_began_anew_counts_from_there():
    earlier = Figures(events=Events(kicks=100))
    assert Figures(events=Events(kicks=7)).since(earlier).events.kicks == 7


def test_gauges_of_a_difference_are_those_of_now():
    earlier = Figures(time_ns=5, in_flight=9, oldest_ns=100)
    later = Figures(time_ns=25, in_flight=2, throttled=1, held=1, oldest_ns=3)
    grown = later.since(earlier)
    assert (grown.time_ns, grown.in_flight, grown.throttled, grown.held) == (20, 2, 1, 1)
    assert grown.oldest_ns == 3


def test_times_of_all_requests_add_up():
    read = Requests(1, 4096, histogram_of(100), histogram_of(10**9), histogram_of(5000))
    flush = Requests(1, 0, histogram_of(50), histogram_of(0), histogram_of(700))
    both = Figures(cells=(Cell("read", "4K", read), Cell("flush", "4K", flush)))
    assert both.weighted_ns == 100 + 10**9 + 5000 + 50 + 700
    assert both.throttled_ns == 10**9
    assert both.of("read") == read
    assert both.total.count == 2


@given(figures)
def test_figures_survive_json(figures):
    assert decode(encode(figures)) == figures


@pytest.mark.parametrize(
    "text",
    [b"[]", b'{"in_flight": "many"}', b'{"cells": [{"operation": "trim"}]}'],
    ids=["no-object", "no-number", "no-operation"],
)
def test_what_is_not_figures_is_refused(text):
    with pytest.raises(msgspec.ValidationError):
        decode(text)
