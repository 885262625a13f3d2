# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from blkd.image import kernel, watch
from harness.daemon import image
from harness.open_fds import open_fds

PERIOD = 0.1
REST = 5 * PERIOD  # seconds in which nothing is to happen
LIMIT = 5  # seconds in which something is
MIB = 1 << 20


class Looker:
    """Measures an image whenever a watch says so; keeps what it saw."""

    def __init__(self, file):
        self.file = file
        self.times, self.size = [], None
        self._looked = asyncio.Event()

    async def run(self, period):
        async with contextlib.aclosing(watch.looks(self.file, period)) as looks:
            async for _ in looks:
                self.times.append(time.monotonic())
                self.size = os.fstat(self.file.fd).st_size
                self._looked.set()

    async def until(self, true):
        """Wait until a look makes `true()` true."""
        async with asyncio.timeout(LIMIT):
            while not true():
                await self._looked.wait()
                self._looked.clear()

    async def see(self, size):
        await self.until(lambda: self.size == size)

    async def again(self, times=1):
        goal = len(self.times) + times
        await self.until(lambda: len(self.times) >= goal)


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR):
    """An image as far as a watch looks at it."""
    fd = os.open(path, flags)
    try:
        limits = SimpleNamespace(is_block_device=False)
        file = SimpleNamespace(path=str(path), fd=fd, limits=limits)
        found = watch.Announcements(fd, is_block_device=False, opener=None)
        file.watch = lambda period: found.watch(file, fd, period)
        yield file
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def looking(file, period=PERIOD):
    looker = Looker(file)
    running = asyncio.create_task(looker.run(period))
    try:
        await looker.until(lambda: looker.times)  # the first look is due at once
        yield looker
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@contextlib.contextmanager
def writing(fd):
    """A thread that writes to `fd` without a pause."""
    ended = threading.Event()

    def write_on():
        while not ended.is_set():
            os.pwrite(fd, b"x", 0)

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def disk(tmp_path):
    with opened(image(tmp_path / "a.img")) as file:
        yield file


def write(path):
    with path.open("r+b") as file:
        file.seek(2 * MIB - 1)
        file.write(b"x")


def allocate(path):
    with path.open("r+b") as file:
        kernel.fallocate(file.fileno(), kernel.Fallocate.ALLOCATE, 0, 2 * MIB)


def truncate(path):
    os.truncate(path, 2 * MIB)


async def test_nothing_is_looked_at_while_nothing_changes(disk):
    async with looking(disk) as looker:
        await asyncio.sleep(REST)
        assert len(looker.times) == 1


@pytest.mark.parametrize("grow", [write, allocate, truncate])
async def test_growth_is_seen(disk, tmp_path, grow):
    async with looking(disk) as looker:
        grow(tmp_path / "a.img")
        await looker.see(2 * MIB)


async def test_it_is_the_file_that_counts_and_not_its_path(disk, tmp_path):
    path = tmp_path / "a.img"
    path.rename(tmp_path / "b.img")
    image(path)
    async with looking(disk) as looker:
        truncate(tmp_path / "b.img")
        await looker.see(2 * MIB)
        (tmp_path / "b.img").unlink()
        os.ftruncate(disk.fd, 3 * MIB)
        await looker.see(3 * MIB)
        before = len(looker.times)
        truncate(path)
        await asyncio.sleep(REST)
        assert len(looker.times) == before


async def test_growth_after_a_rest_is_seen_without_delay(disk):
    async with looking(disk, period := 1.0) as looker:
        await asyncio.sleep(period)
        os.ftruncate(disk.fd, 2 * MIB)
        grown = time.monotonic()
        await looker.see(2 * MIB)
        assert looker.times[-1] - grown < period / 2


async def test_a_change_right_after_a_look_brings_the_next(disk):
    async with contextlib.aclosing(watch.looks(disk, 0)) as looks, asyncio.timeout(LIMIT):
        for size in range(MIB, MIB + 100):
            await anext(looks)
            os.ftruncate(disk.fd, size)


async def test_writes_without_end_bring_one_look_a_period(disk):
    async with looking(disk) as looker:
        with writing(disk.fd):
            await looker.again(10)
        assert looker.times[10] - looker.times[0] > 9 * PERIOD


async def test_growth_between_writes_is_seen(disk):
    async with looking(disk) as looker:
        with writing(disk.fd):
            for size in range(2, 7):
                os.ftruncate(disk.fd, size * MIB)
                await looker.see(size * MIB)


@pytest.mark.parametrize("period", [0.0, 0.0001, 0.003])
async def test_the_last_size_is_seen_however_it_meets_the_looks(disk, period):
    async with looking(disk, period) as looker:
        for size in range(MIB, MIB + 300):
            with writing(disk.fd):
                await looker.again(size % 3)
                os.ftruncate(disk.fd, size)
            await looker.see(size)


async def test_what_the_kernel_cannot_tell_is_looked_at_by_the_clock():
    with opened("/proc/version", os.O_RDONLY) as file:
        async with looking(file) as looker:
            await looker.again(3)


async def test_nothing_stays_open(disk):
    before = open_fds()
    async with looking(disk):
        assert open_fds() == before + 1
    assert open_fds() == before


LIMITED = """
import asyncio, os, sys
from pathlib import Path
from tests.unit.test_watch import looking, opened

path, limit, when = sys.argv[1:]

def limit_now():
    Path("/proc/sys/user", limit).write_text("0")

async def main():
    with opened(path) as file:
        if when == "before":
            limit_now()
        async with looking(file) as looker:
            limit_now()
            os.ftruncate(file.fd, 2 << 20)
            await looker.see(2 << 20)
            await looker.again(3)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("limit", "when"),
    [
        ("max_inotify_instances", "before"),
        ("max_inotify_watches", "before"),
        ("max_inotify_watches", "later"),
    ],
)
def test_the_clock_takes_over_where_the_user_has_no_watch_left(tmp_path, pytestconfig, limit, when):
    # A user namespace of its own has limits of its own.
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", LIMITED]
    arguments = [image(tmp_path / "a.img"), limit, when]
    subprocess.run([*command, *arguments], check=True, timeout=30, cwd=pytestconfig.rootpath)


async def test_a_kernel_that_stops_telling_is_replaced_by_the_clock(tmp_path):
    with opened(image(tmp_path / "a.img"), os.O_RDONLY) as file:
        async with contextlib.aclosing(watch.looks(file, PERIOD)) as looks:
            await anext(looks)
            broken = os.open(tmp_path, os.O_RDONLY)  # cannot be waited for, nor read
            os.dup2(broken, inotify_fd())
            os.close(broken)
            for _ in range(2):
                await asyncio.wait_for(anext(looks), LIMIT)


def inotify_fd():
    """The descriptor that this process has of inotify."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # of the listing itself
            if "inotify" in str(entry.readlink()):
                return int(entry.name)
    raise AssertionError("there is none")
