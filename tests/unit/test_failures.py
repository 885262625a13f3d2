# SPDX-License-Identifier: Apache-2.0
"""The log of a failing image: the first request of a kind, then counts, then news again."""

import asyncio

import pytest
from structlog.testing import capture_logs

from blkd.dataplane import failures
from blkd.dataplane.failures import FailureLog

READ, WRITE = 1, 2


class ToyWorker:
    """Plays what the log needs of a worker."""

    def __init__(self):
        self.failures = {READ: ("read", 0, 0, 0), WRITE: ("write", 0, 0, 0)}
        self.rounds = 0

    def fail(self, kind, count, offset=0, error=5):
        self.failures[kind] = (self.failures[kind][0], count, offset, error)

    def report_failures(self):
        self.rounds += 1


@pytest.fixture
async def worker(monkeypatch):
    monkeypatch.setattr(failures, "PERIOD", 0.02)
    return ToyWorker()


@pytest.fixture
async def log(worker):
    log = FailureLog(worker, "disk.img")
    yield log
    log.close()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it is no event that it waits for
            await asyncio.sleep(0)


async def test_the_first_of_a_kind_is_logged_with_its_place_and_reason(worker, log):
    with capture_logs() as lines:
        worker.fail(READ, 1, offset=4096)
        log.report(READ)
        worker.fail(WRITE, 1, error=0)
        log.report(WRITE)
    assert [(line["request"], line["offset"], line["reason"]) for line in lines] == [
        ("read", 4096, "Input/output error"),
        ("write", 0, "the image ends before the disk does"),
    ]


async def test_further_failures_are_counted_each_once(worker, log):
    with capture_logs() as lines:
        worker.fail(READ, 1)
        log.report(READ)
        worker.fail(READ, 1001)
        worker.fail(WRITE, 5)
        await until(lambda: len(lines) == 2)
        worker.fail(READ, 1003)
        await until(lambda: len(lines) == 3)
        await until(lambda: worker.rounds)
    assert [line.get("requests") for line in lines] == [
        None,
        {"read": 1000, "write": 5},
        {"read": 2},
    ]


async def test_after_a_while_without_any_the_next_failure_is_news(worker, log):
    with capture_logs() as lines:
        for count in (1, 2):
            worker.fail(READ, count)
            log.report(READ)
            await until(lambda count=count: worker.rounds == count)
    assert [line["event"] for line in lines] == ["image failed a request"] * 2
