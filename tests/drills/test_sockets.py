# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill that sends much data through guests' sockets."""

import pytest

from drills.sockets import ROUND, drill


@pytest.mark.timeout(120)
async def test_what_is_sent_through_sockets_arrives():
    outcome = await drill(rounds=2)
    assert outcome.errors == 0, outcome
    assert list(outcome.figures.values()) == [2 * ROUND, 2 * ROUND, 2 * ROUND // 8]
