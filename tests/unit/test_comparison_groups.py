# SPDX-License-Identifier: Apache-2.0
import pytest

from compare.groups import Case, shown


@pytest.mark.parametrize(
    ("weights", "carried", "missed"),
    [
        ((1, 1), (1000, 1000), False),
        ((1, 1), (1039, 961), False),
        ((1, 1), (1578, 470), True),
        ((3, 1), (1500, 500), False),
        ((3, 1), (1530, 470), True),
        ((3, 1), (1000, 1000), True),
    ],
)
def test_shares_are_those_of_the_weights(weights, carried, missed):
    assert Case(2000, (32, 1), weights).missed(carried) is missed


def test_a_row_says_what_each_has_carried():
    assert shown((1578, 470)) == "1578 and 470 (77.1%)"
    assert Case(2000, (32, 1), (3, 1)).name == "2000 IOPS, depths 32 and 1, weights 3 : 1"
