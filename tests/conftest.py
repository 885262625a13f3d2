# SPDX-License-Identifier: Apache-2.0
import asyncio
from pathlib import Path

import pytest
from hypothesis import settings

from harness.guest import Machine

# Machines that run many tests at once are slow at times: that is no failure.
settings.register_profile("blkd", deadline=None)
settings.load_profile("blkd")


TESTS = Path(__file__).parent
ALONE = {
    *("guest", "drills"),  # they keep all processors busy
    *("test_bench", "test_bench_hostile", "test_bench_reconnect", "test_comparison"),  # a load
    "test_dashboard_page",  # a browser is one, too
    "test_wheel",  # a compiler keeps a processor busy
    *("test_cost", "test_idle", "test_polling"),  # what they count or time, others would disturb
    "test_inflight_every_store",  # forks: a process that runs two at a time has threads
}
"""Folders and files of tests that run with no other beside them: see the Makefile."""


GUEST_LIMIT = 300.0
"""Seconds for a test beside a guest: enough for the limits within it to tell what went wrong."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run alone, and give those beside a guest their time."""
    for item in items:
        parts = item.path.relative_to(TESTS).with_suffix("").parts
        if not ALONE.isdisjoint(parts):
            item.add_marker("alone")
        if parts[0] == "guest" and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(GUEST_LIMIT))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Take it for success that a part of the tests has none of one kind."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def machine() -> Machine:
    """What guests are made of; to try KVM takes a while, so once."""
    return asyncio.run(Machine.prepare())
