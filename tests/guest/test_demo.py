# SPDX-License-Identifier: Apache-2.0
"""`make demo` says what it saw, and leaves nothing behind."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness.process import kill, send

PROJECT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def started(**environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo.run"),
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield demo
    finally:
        await kill(demo)


def children(pid: int) -> dict[int, str]:
    """The programs that a process runs at the moment, by their pids."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that has just ended
            child, _, rest = status.read_text().partition(" (")
            name, _, rest = rest.rpartition(") ")
            if int(rest.split()[1]) == pid:
                found[int(child)] = name
    return found


def wait_for_children(pid: int, names: set[str]) -> None:
    for _ in range(600):
        if names <= set(children(pid).values()):
            return
        time.sleep(0.1)
    pytest.fail(f"never saw {names}")


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.timeout(330)
async def test_the_demo_succeeds_and_reports_figures(machine):
    async with started() as demo:
        out = (await demo.communicate())[0].decode()
    assert demo.returncode == 0, out
    assert "FAILED" not in out
    assert f"accelerator {machine.accelerator}" in out
    assert "0 errors in the guest's kernel log" in out
    assert "ring 0 stands still" in " ".join(out.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
async def test_an_interrupted_demo_cleans_up(number):
    async with started() as demo:
        await asyncio.to_thread(wait_for_children, demo.pid, {"blkd", "qemu-system-x86"})
        running = children(demo.pid)
        send(demo, number)
        out = (await demo.communicate())[0].decode()
    assert demo.returncode == 1
    assert "interrupted" in out
    assert not any(map(is_there, running))


async def test_a_demo_that_sees_something_wrong_fails(tmp_path):
    (tmp_path / "setpriv").symlink_to(shutil.which("setpriv"))
    async with started(PATH=str(tmp_path)) as demo:
        out = (await demo.communicate())[0].decode()
    assert demo.returncode == 1
    assert "no qemu-system-x86_64 on this host" in out
