# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill that migrates a guest."""

import pytest

from drills import migration
from harness.guest import Iommu


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({}, id="split"),
        pytest.param({"packed": True}, id="packed"),
        pytest.param({"iommu": Iommu.STRICT}, id="behind-an-iommu"),
    ],
)
async def test_a_guest_migrates_there_and_back_under_load(kind):
    seen = await migration.drill(1, **kind)
    assert seen.errors == 0
    assert seen.figures["migrations"] == 2
    assert seen.figures["migrations cancelled"] == 1
    assert seen.figures["migrations failed at their end"] == 1
    assert seen.figures["bytes verified"] > 0
