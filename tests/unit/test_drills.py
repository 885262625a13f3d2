# SPDX-License-Identifier: Apache-2.0
"""The page of the drills says what they have seen."""

from drills.outcome import Outcome
from drills.report import PAGE, page, rows
from drills.run import kept

SEEN = Outcome(drill="a drill", rounds=7, errors=0, figures={"kills": 7000, "pause p50, ms": 1.5})


def test_the_page_says_what_is_kept():
    assert PAGE.read_text() == page(PAGE.read_text(), kept()), "run: python -m drills.report"


def test_an_outcome_is_a_row():
    assert list(rows([SEEN])) == [("a drill", "0", "kills 7,000, pause p50, ms 1.5")]
