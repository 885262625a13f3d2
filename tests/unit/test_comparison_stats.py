# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.figures import count, figure, reach
from compare.stats import Spread, ratios
from harness.markdown import table

positive = st.floats(1e-6, 1e9)


@given(st.lists(positive, min_size=1))
def test_the_median_lies_within_the_reach(values):
    seen = Spread.of(values)
    assert seen.low == min(values)
    assert seen.high == max(values)
    assert seen.low <= seen.median <= seen.high
    assert seen.rounds == len(values)


def test_one_round_that_went_astray_leaves_the_median_alone():
    assert Spread.of([10, 11, 12, 13, 90]).median == 12


def test_no_round_has_no_median():
    with pytest.raises(ValueError, match="no rounds"):
        Spread.of([])


def test_only_what_ran_in_the_same_round_is_compared():
    assert ratios({1: 10.0, 2: 30.0, 4: 5.0}, {1: 5.0, 2: 10.0, 3: 1.0}) == [2.0, 3.0]


def test_a_round_without_a_figure_of_theirs_is_left_out():
    assert ratios({1: 10.0, 2: 4.0}, {1: 0.0, 2: 2.0}) == [2.0]


@given(st.dictionaries(st.integers(1, 9), positive, min_size=1))
def test_who_is_compared_with_himself_is_as_good(values):
    assert set(ratios(values, values)) == {1.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(0, "0", id="nothing"),
        pytest.param(0.0962, "0.0962", id="small"),
        pytest.param(1.5, "1.50", id="one-digit"),
        pytest.param(45.33, "45.3", id="two-digits"),
        pytest.param(297.02, "297", id="three-digits"),
        pytest.param(2926.8, "2927", id="more"),
    ],
)
def test_a_figure_has_the_digits_that_mean_something(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(999, "999", id="ones"),
        pytest.param(33_077, "33.1 k", id="thousands"),
        pytest.param(568_628, "569 k", id="hundreds-of-thousands"),
        pytest.param(4_305_527, "4.31 M", id="millions"),
    ],
)
def test_requests_a_second_are_shown_in_k_and_m(value, text):
    assert count(value) == text


def test_one_round_has_no_reach():
    assert reach(Spread.of([3])) == "–"
    assert reach(Spread.of([3, 5])) == "3.00–5.00"


def test_columns_of_numbers_are_to_the_right():
    assert table(["a", "b"], [["x", "1"]], numbers=1) == "| a | b |\n| --- | ---: |\n| x | 1 |"
