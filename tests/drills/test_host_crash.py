# SPDX-License-Identifier: Apache-2.0
"""What a flush has covered outlives the host, on every kind of disk and in every cache mode."""

import os

import pytest

from drills.host_crash import SETTINGS, drill


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts and loop devices are root's")
async def test_an_acknowledged_flush_outlives_a_host_crash():
    outcome = await drill(rounds=3)
    assert outcome.errors == 0, outcome
    assert outcome.rounds == 3 * len(SETTINGS)
    assert outcome.figures["flushes acknowledged"] > 100
    assert outcome.figures["blocks lost that no flush had covered"] > 0
