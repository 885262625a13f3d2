# SPDX-License-Identifier: Apache-2.0
"""Grants written into pages, beside members that are played."""

import asyncio
import contextlib
import os
import time

import pytest

from blkd.daemon.grants import Grants, lift
from blkd.daemon.sharing import PERIOD, Rate
from blkd.statistics.limits_page import PAGE_BYTES, SECOND, Dimension, LimitsPage, Line

IOPS, BPS = Dimension.IOPS_TOTAL, Dimension.BPS_TOTAL
USED, WAITING = 72, 80  # bytes into a share, as limits_page.pxd has them
SHARES, SHARE = 832, 128
GRANTS = 16


class Member:
    """A process in a group: its page, its eventfd, and what it writes into the one."""

    def __init__(self):
        self.memory = bytearray(PAGE_BYTES)
        self.page = LimitsPage(memoryview(self.memory))
        self.words = memoryview(self.memory).cast("Q")
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self):
        os.close(self.wake)

    def say(self, dimension, *, used=0, waiting=0):
        at = (SHARES + SHARE * dimension) // 8
        self.words[at + USED // 8], self.words[at + WAITING // 8] = used, waiting

    def wait_for_grant(self, dimension=IOPS):
        self.say(dimension, waiting=1)
        os.eventfd_write(self.wake, 1)

    def grants(self):
        """How often it was granted something."""
        return self.words[GRANTS // 8]

    def rate(self, dimension=IOPS):
        line = self.page.granted(dimension, time.monotonic_ns())
        return 0 if line is None else line.rate


@pytest.fixture
def member():
    with contextlib.ExitStack() as stack:

        def make():
            made = Member()
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
async def grants():
    grants = Grants()
    running = asyncio.ensure_future(grants.run())
    yield grants
    running.cancel()
    await asyncio.wait([running])
    grants.close()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of what is under test
            await asyncio.sleep(PERIOD / 4)


async def test_all_who_live_begin_with_their_shares(grants, member):
    first, second = member(), member()
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.admit("a", "gold", 3, first.page, first.wake)
    assert first.rate() == 4000
    grants.admit("b", "gold", 1, second.page, second.wake)
    assert (first.rate(), second.rate()) == (3000, 1000)
    assert first.rate(BPS) == 0
    assert grants.granted("b") == {IOPS: 1000}


async def test_who_waits_gets_what_others_do_not_need(grants, member):
    busy, idle = member(), member()
    grants.limit("gold", {IOPS: Rate(4000)})
    for name, each in {"busy": busy, "idle": idle}.items():
        grants.admit(name, "gold", 1, each.page, each.wake)
    await until(lambda: not is_busy(grants))
    assert busy.rate() == 2000
    busy.wait_for_grant()
    await until(lambda: busy.rate() > 3900)
    idle.wait_for_grant()
    await until(lambda: idle.rate() >= 1900)
    busy.say(IOPS)
    await until(lambda: idle.rate() > 3900)


async def test_the_share_of_one_that_has_died_is_the_others(grants, member):
    first, second = member(), member()
    grants.limit("gold", {IOPS: Rate(4000)})
    for name, each in {"a": first, "b": second}.items():
        grants.admit(name, "gold", 1, each.page, each.wake)
    grants.dismiss("b")
    assert first.rate() == 4000


async def test_nothing_is_done_for_a_group_in_which_nobody_waits(grants, member):
    busy, idle = member(), member()
    for group, each in {"gold": idle, "iron": busy}.items():
        grants.limit(group, {IOPS: Rate(4000)})
        grants.admit(group, group, 1, each.page, each.wake)
    await until(lambda: not is_busy(grants))
    before, granted = bytes(idle.memory), busy.grants()
    busy.wait_for_grant()
    await until(lambda: busy.grants() > granted + 5)
    assert bytes(idle.memory) == before


async def test_one_that_signals_without_end_costs_a_division_a_period(grants, member):
    hostile = member()
    divisions = []
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.admit("a", "gold", 1, hostile.page, hostile.wake)
    group = grants._groups["gold"]
    divide = group.divide
    group.divide = lambda now: (divisions.append(now), divide(now))
    began = time.monotonic_ns()
    while time.monotonic_ns() - began < 20 * PERIOD * SECOND:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(hostile.wake, 2**62)
        await asyncio.sleep(0)
    assert 1 <= len(divisions) <= 21


async def test_a_full_eventfd_holds_up_nobody(grants, member):
    hostile, honest = member(), member()
    os.set_blocking(hostile.wake, True)
    os.eventfd_write(hostile.wake, 2**64 - 2)
    grants.limit("gold", {IOPS: Rate(4000)})
    for name, each in {"hostile": hostile, "honest": honest}.items():
        grants.admit(name, "gold", 1, each.page, each.wake)
    honest.wait_for_grant()
    await until(lambda: honest.rate() > 3900)


async def test_garbage_in_a_page_is_harmless(grants, member):
    hostile, honest = member(), member()
    grants.limit("gold", {IOPS: Rate(4000), BPS: Rate(10**6)})
    for name, each in {"hostile": hostile, "honest": honest}.items():
        grants.admit(name, "gold", 1, each.page, each.wake)
    for byte in (0xFF, 0xA5, 0x80, 0x01):
        hostile.memory[:] = bytes([byte]) * PAGE_BYTES
        honest.wait_for_grant()
        await until(lambda: is_busy(grants))
        assert honest.rate() >= 1900


async def test_another_rate_holds_at_once(grants, member):
    one = member()
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.admit("a", "gold", 1, one.page, one.wake)
    grants.limit("gold", {IOPS: Rate(500), BPS: Rate(10**6)})
    assert (one.rate(IOPS), one.rate(BPS)) == (500, 10**6)
    grants.limit("gold", {BPS: Rate(10**6)})
    assert (one.rate(IOPS), one.rate(BPS)) == (0, 10**6)


async def test_who_changes_its_group_has_the_grants_of_the_other(grants, member):
    one, other = member(), member()
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.limit("iron", {BPS: Rate(1000)})
    grants.admit("a", "gold", 1, one.page, one.wake)
    grants.admit("b", "gold", 1, other.page, other.wake)
    grants.admit("a", "iron", 1, one.page, one.wake)
    assert (one.rate(IOPS), one.rate(BPS), other.rate(IOPS)) == (0, 1000, 4000)


async def test_who_leaves_has_no_limits(grants, member):
    one = member()
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.admit("a", "gold", 1, one.page, one.wake)
    grants.dismiss("a")
    lift(one.page)
    assert one.rate() == 0
    grants.drop("gold")
    assert grants.granted("a") == {}


async def test_a_line_goes_on_under_the_next_daemon(grants, member):
    one = member()
    began = time.monotonic_ns() - 10 * SECOND
    one.page.grant(IOPS, Line(77, began, 1000))
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.admit("a", "gold", 1, one.page, one.wake)
    now = time.monotonic_ns()
    assert 10_077 <= one.page.granted(IOPS, now).base <= 10_077 + 1000


async def test_one_that_is_looked_for_keeps_its_share(grants, member):
    one, other = member(), member()
    grants.limit("gold", {IOPS: Rate(4000)})
    grants.admit("sought", "gold", 1, None, None)
    grants.admit("b", "gold", 1, one.page, one.wake)
    one.wait_for_grant()
    await until(lambda: one.grants() > 5)
    assert one.rate() == pytest.approx(2000, rel=0.05)
    grants.admit("sought", "gold", 1, other.page, other.wake)
    assert (one.rate(), other.rate()) == (2000, 2000)


async def test_grants_stay_when_the_daemon_ends(member):
    grants = Grants()
    pair = member(), member()
    grants.limit("gold", {IOPS: Rate(4000)})
    for name, each in zip("ab", pair, strict=True):
        grants.admit(name, "gold", 1, each.page, each.wake)
    grants.close()
    grants.dismiss("a")
    grants.admit("c", "gold", 1, pair[0].page, None)
    assert [each.rate() for each in pair] == [2000, 2000]


def is_busy(grants):
    return any(group.is_busy for group in grants._groups.values())
