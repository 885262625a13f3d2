# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill behind an IOMMU."""

import pytest

from drills import iommu


@pytest.mark.timeout(200)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_no_page_is_touched_after_it_was_taken_back(packed):
    seen = await iommu.drill(6, packed=packed)
    assert seen.errors == 0
    assert seen.figures["kills"] + seen.figures["upgrades"] == 6
    assert seen.figures["kills"] > 0
    assert seen.figures["upgrades"] > 0
    assert seen.figures["requests denied"] > 10
    assert seen.figures["translations missed"] > seen.figures["requests"]
