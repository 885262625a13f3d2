# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill that kills all parts of a daemon under load."""

import pytest

from drills.daemon import drill
from drills.reconnecting import BYTES


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_disks_of_a_daemon_outlive_all_of_its_processes(packed):
    seen = await drill(6, packed=packed)
    assert seen.errors == 0
    assert seen.figures["kills"] == 6
    assert seen.figures["reconnections"] > 0
    assert seen.figures["bytes verified"] > BYTES
