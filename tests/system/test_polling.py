# SPDX-License-Identifier: Apache-2.0
"""A worker that polls before it sleeps loses no kick between the two."""

import random

import pytest

from harness.frontend import IN, OK, Feature

REQUESTS = 1500
LIMIT = 5.0  # seconds of one request


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "split"])
@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX], ids=["event_idx", "flags"])
@pytest.mark.parametrize("poll_us", [0, 1, 32, 1000])
def test_no_kick_is_lost_whatever_the_gap_before_it(serve, packed, without, poll_us):
    _, front_end = serve("null:64M", "--poll-us", poll_us)
    disk = front_end.disk(
        size=16, packed=packed, features=front_end.offered() & ~Feature.LOG_ALL & ~without
    )
    chance = random.Random(poll_us)
    for n in range(REQUESTS):
        for _ in range(chance.choice((0, 0, 10, 100, 1000))):
            pass
        head = disk.submit(IN, n, size=512)
        assert disk.wait(head, timeout=LIMIT)[0].status == OK


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "split"])
def test_a_driver_that_goes_on_at_once_need_not_kick(serve, packed):
    daemon, front_end = serve("null:64M", "--poll-us", 1000)
    disk = front_end.disk(size=16, packed=packed)
    for n in range(REQUESTS):
        assert disk.read(n, 512)[0] == OK
    # One each if it always kicked; how many are spared is up to the machine's speed.
    assert daemon.call("stats")["total"]["kicks"] < REQUESTS
