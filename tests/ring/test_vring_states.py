# SPDX-License-Identifier: Apache-2.0
"""The states of a vring: what changes them is what the page shows."""

import re
from pathlib import Path

from blkd.probes import STATES, state_changes

PAGE = Path(__file__).parents[2] / "docs" / "design" / "vring-states.md"


def rows(header):
    """The rows of the page's table that has this header, as tuples of their first three cells."""
    text = PAGE.read_text()
    [table] = re.findall(rf"^\| {header} .*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [tuple(re.split(r"\s*\|\s*", row)[1:4]) for row in table.splitlines()]


def test_the_page_shows_every_change():
    assert rows("In state") == list(state_changes())


def test_the_page_says_what_each_state_means():
    assert [state for state, _, _ in rows("State")] == list(STATES)


def test_every_state_can_be_reached_and_left():
    changes = list(state_changes())
    assert {before for before, _, _ in changes} == set(STATES)
    assert {after for _, _, after in changes} == set(STATES)


def test_whatever_has_happened_a_vring_stops_and_starts_again():
    after = {(before, event): state for before, event, state in state_changes()}
    for state in set(STATES) - {"stopped"}:
        assert after.get((state, "stop"), state) == "stopping"
    assert after["stopping", "settle"] == "stopped"
    assert after["stopped", "start"] == "running"
