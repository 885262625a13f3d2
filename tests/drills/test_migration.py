# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill that migrates a guest."""

import pytest

from drills import migration


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_guest_migrates_there_and_back_under_load(packed):
    seen = await migration.drill(1, packed=packed)
    assert seen.errors == 0
    assert seen.figures["migrations"] == 2
    assert seen.figures["migrations cancelled"] == 1
    assert seen.figures["migrations failed at their end"] == 1
    assert seen.figures["bytes verified"] > 0
