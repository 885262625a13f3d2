# SPDX-License-Identifier: Apache-2.0
import asyncio

import pytest

from blkd.daemon.api import exposition
from blkd.daemon.api.exposition import Exposition
from blkd.errors import NoAnswer
from tests.played_exports import PlayedExports


@pytest.fixture
def exports():
    played = PlayedExports()
    played.gate = asyncio.Event()
    return played


async def settle():
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_those_who_wait_share_what_is_observed_after_they_asked(exports):
    made = Exposition(exports)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(made.text()) for _ in range(20)]
        await settle()
        assert exports.observations == 1
        exports.gate.set()
    assert exports.observations == 2, "one for the first, one for all who came meanwhile"
    assert all(task.result().startswith(b"# HELP blkd_build_info ") for task in asked)


async def test_every_text_is_of_its_time(exports):
    exports.gate.set()
    made = Exposition(exports)
    async with asyncio.timeout(10):
        await made.text()
        await made.text()
    assert exports.observations == 2


async def test_who_leaves_holds_up_nobody(exports):
    made = Exposition(exports)
    async with asyncio.timeout(10):
        first, second = (asyncio.create_task(made.text()) for _ in range(2))
        await settle()
        first.cancel()
        exports.gate.set()
        assert await second
        assert first.cancelled()


async def test_a_text_that_takes_for_ever_is_not_waited_for(exports, monkeypatch):
    monkeypatch.setattr(exposition, "LIMIT", 0.0)
    exports.gate.set()
    with pytest.raises(NoAnswer):
        await Exposition(exports).text()
