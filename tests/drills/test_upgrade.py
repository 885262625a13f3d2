# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill that upgrades blkd under load."""

import pytest

from drills.upgrade import drill

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@both
async def test_a_disk_is_handed_over_under_load(packed):
    seen = await drill(5, packed=packed)
    assert seen.errors == 0
    assert seen.figures["upgrades"] == 5
    assert seen.figures["requests"] > 500
    assert seen.figures["bytes verified"] > 1 << 20
    assert 0 < seen.figures["pause p50, ms"] < 500


@both
async def test_a_new_process_may_be_killed_at_any_time(packed):
    seen = await drill(8, packed=packed, killing=True)
    assert seen.errors == 0
    assert seen.figures["killed before go"] > 0
    assert seen.figures["killed afterwards"] > 0
    assert seen.figures["bytes verified"] > 1 << 20
