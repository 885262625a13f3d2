# SPDX-License-Identifier: Apache-2.0
"""The short form of the drills that kill blkd under load."""

import pytest

from drills import guest_restart, restart

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@both
async def test_a_verified_load_outlives_its_back_ends(packed):
    seen = await restart.drill(10, packed=packed)
    assert seen.errors == 0
    assert seen.figures["kills"] == 10
    assert seen.figures["reconnections"] > 1
    assert seen.figures["bytes verified"] > restart.SIZE


@both
async def test_a_verified_load_outlives_back_ends_that_limit_it(packed):
    seen = await restart.drill(8, packed=packed, limited=True)
    assert seen.errors == 0
    assert seen.figures["kills"] == 8
    assert seen.figures["reconnections"] > 1
    assert seen.figures["bytes verified"] > 0


@both
async def test_a_verified_load_outlives_back_ends_that_hold_what_fails(packed):
    seen = await restart.drill(8, packed=packed, holding=True)
    assert seen.errors == 0
    assert seen.figures["kills"] == 8
    assert seen.figures["times that requests were held"] >= 2
    assert seen.figures["bytes verified"] > 0


@both
async def test_a_guest_outlives_its_back_ends(packed):
    seen = await guest_restart.drill(4, packed=packed)
    assert seen.errors == 0
    assert seen.figures["kills"] >= 4
    assert seen.figures["bytes verified"] > 0
