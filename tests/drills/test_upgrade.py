# SPDX-License-Identifier: Apache-2.0
import pytest

from drills.upgrade import drill


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_disk_is_handed_over_under_load(packed):
    outcome = await drill(5, packed=packed)
    assert outcome.errors == 0
    assert outcome.figures["upgrades"] == 5
    assert outcome.figures["requests"] > 500
    assert outcome.figures["bytes verified"] > 1 << 20
    assert 0 < outcome.figures["pause p50, ms"] < 500
