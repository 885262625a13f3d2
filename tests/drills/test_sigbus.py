# SPDX-License-Identifier: Apache-2.0
"""Memory that shrinks at any moment ends a connection, and harms nothing else."""

from drills.sigbus import SETTINGS, drill


async def test_front_ends_that_shrink_their_memory_end_alone():
    outcome = await drill(rounds=8)
    assert outcome.errors == 0, outcome
    assert outcome.figures["front ends whose memory shrank"] == 8 * len(SETTINGS)
    assert outcome.figures["requests answered before"] > 100
