# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is filled before it is registered: the latest map, one at a time."""

import asyncio
import errno
import threading

import pytest

from blkd.dataplane.registration import Registration

LIMIT = 5


class ToyMap:
    """Plays what is asked of a memory map; filled once `go_on` is set."""

    def __init__(self, error=None):
        self.error = error
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def populate(self):
        self.begun.set()
        assert self.go_on.wait(LIMIT)
        if self.error is not None:
            raise self.error


@pytest.fixture
async def told():
    return asyncio.Queue()


@pytest.fixture
async def registration(told):
    return Registration(told.put_nowait)


async def begun(memory):
    assert await asyncio.to_thread(memory.begun.wait, LIMIT)


async def test_the_loop_goes_on_while_memory_is_filled(registration, told):
    memory = ToyMap()
    registration.want(memory)
    await begun(memory)
    assert told.empty()
    memory.go_on.set()
    assert await asyncio.wait_for(told.get(), LIMIT) is None


async def test_only_the_latest_map_is_told_of(registration, told):
    first, second, third = ToyMap(), ToyMap(), ToyMap()
    registration.want(first)
    await begun(first)
    registration.want(second)
    registration.want(third)
    assert not third.begun.is_set()
    for memory in (first, third):
        memory.go_on.set()
    assert await asyncio.wait_for(told.get(), LIMIT) is None
    assert third.begun.is_set()
    assert not second.begun.is_set()
    assert told.empty()


async def test_a_map_that_is_wanted_no_more_is_not_told_of(registration, told):
    memory, other = ToyMap(), ToyMap()
    registration.want(memory)
    await begun(memory)
    registration.want(None)
    memory.go_on.set()
    other.go_on.set()
    registration.want(other)
    assert await asyncio.wait_for(told.get(), LIMIT) is None
    assert other.begun.is_set()
    assert told.empty()


async def test_what_cannot_be_filled_is_told_with_the_reason(registration, told):
    memory = ToyMap(OSError(errno.ENOMEM, "Cannot allocate memory"))
    memory.go_on.set()
    registration.want(memory)
    assert (await asyncio.wait_for(told.get(), LIMIT)).errno == errno.ENOMEM
