# SPDX-License-Identifier: Apache-2.0
"""Idle exports of a launcher: `compare.idle` in its short form."""

import os

import pytest

from compare import idle

COUNT = 6
WINDOW = 2.0  # seconds in which wake-ups are counted

pytestmark = pytest.mark.alone


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one user for all exports")
@pytest.mark.parametrize("through", ["launcher", "daemon"])
async def test_idle_exports_take_little_and_wake_nobody(through):
    seen = await idle.run(COUNT, WINDOW, through, sandbox=True)
    assert seen.missed == []
