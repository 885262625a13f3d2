# SPDX-License-Identifier: Apache-2.0
import pytest

from compare.groups import Case, missed, shared_table
from compare.results import Shared


@pytest.mark.parametrize(
    ("weights", "carried", "is_missed"),
    [
        ((1, 1), (1000, 1000), False),
        ((1, 1), (1039, 961), False),
        ((1, 1), (1578, 470), True),
        ((3, 1), (1500, 500), False),
        ((3, 1), (1530, 470), True),
        ((3, 1), (1000, 1000), True),
    ],
)
def test_shares_are_those_of_the_weights(weights, carried, is_missed):
    assert missed(Case(2000, (32, 1), weights), carried) is is_missed


def test_a_row_says_what_each_has_carried():
    name = Case(2000, (32, 1), (3, 1)).name
    row = shared_table([Shared(name, (1578, 470), None)]).splitlines()[-1]
    assert row == "| 2000 IOPS, depths 32 and 1, weights 3 : 1 | 1578 and 470 (77.1%) | - |"
