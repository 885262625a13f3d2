# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is filled before it is registered, and left at once when it changes."""

import asyncio
import errno
import threading

import pytest

from blkd.dataplane.registration import PageFiller

LIMIT = 5


class ToyMap:
    """Plays what is asked of a memory map; a piece is filled once `go_on` is set."""

    def __init__(self, error=None):
        self.error = error
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.pieces = 0

    def populate(self, wanted):
        for _ in range(2):
            if not wanted():
                return
            self.begun.set()
            assert self.go_on.wait(LIMIT)
            self.pieces += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
async def ready():
    return asyncio.Queue()


@pytest.fixture
async def filler(ready):
    return PageFiller(ready.put_nowait)


async def begun(memory):
    assert await asyncio.to_thread(memory.begun.wait, LIMIT)


async def test_the_loop_goes_on_while_memory_is_filled(filler, ready):
    memory = ToyMap()
    filler.fill(memory)
    await begun(memory)
    assert ready.empty()
    memory.go_on.set()
    assert await asyncio.wait_for(ready.get(), LIMIT) is None


async def test_what_is_left_is_touched_no_more_and_not_reported(filler, ready):
    memory, other = ToyMap(), ToyMap()
    filler.fill(memory)
    await begun(memory)
    leaving = asyncio.create_task(filler.stop())
    await asyncio.sleep(0)
    assert not leaving.done()
    memory.go_on.set()
    await asyncio.wait_for(leaving, LIMIT)
    assert memory.pieces == 1
    other.go_on.set()
    filler.fill(other)
    assert await asyncio.wait_for(ready.get(), LIMIT) is None
    assert other.pieces == 2
    assert ready.empty()


async def test_memory_that_hangs_is_left_after_a_while(filler, ready, monkeypatch):
    monkeypatch.setattr("blkd.dataplane.registration.FILL_LIMIT", 0.01)
    memory = ToyMap()
    filler.fill(memory)
    await begun(memory)
    await filler.stop()
    filler.fill(ToyMap())
    assert (await asyncio.wait_for(ready.get(), LIMIT)).errno == errno.EBUSY
    memory.go_on.set()


async def test_what_cannot_be_filled_is_reported_with_the_reason(filler, ready):
    memory = ToyMap(OSError(errno.ENOMEM, "Cannot allocate memory"))
    memory.go_on.set()
    filler.fill(memory)
    assert (await asyncio.wait_for(ready.get(), LIMIT)).errno == errno.ENOMEM
