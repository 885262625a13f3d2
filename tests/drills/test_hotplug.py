# SPDX-License-Identifier: Apache-2.0
"""A guest's memory comes and goes while it does I/O in it."""

import pytest

from drills.hotplug import drill


@pytest.mark.timeout(200)
async def test_a_guest_does_io_in_memory_that_comes_and_goes(machine):
    outcome = await drill(rounds=1, machine=machine)
    assert outcome.errors == 0, outcome
    assert outcome.figures["DIMMs plugged, used and unplugged"] == 1
    assert outcome.figures["changes of a virtio-mem device"] == 2
    assert outcome.figures["bytes verified"] >= 2 * (96 << 20)
