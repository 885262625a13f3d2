# SPDX-License-Identifier: Apache-2.0
"""The short form of the drill that sends bytes to a guest and back."""

import pytest

from drills import transfer


@pytest.mark.timeout(300)
async def test_bytes_go_to_a_guest_and_back(monkeypatch):
    monkeypatch.setattr(transfer, "ROUND", 16 * transfer.MIB)
    seen = await transfer.drill(2)
    assert seen.errors == 0
    assert seen.figures == {"bytes verified": 32 * transfer.MIB, "kills": 1}
