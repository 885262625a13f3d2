# SPDX-License-Identifier: Apache-2.0
"""The room for images: told of once when there is little, and never waited for."""

import asyncio
import collections
import contextlib
import os
import threading
from dataclasses import dataclass, field

import pytest

from blkd.daemon import space_watch
from blkd.daemon.event_list import EventList
from blkd.daemon.room import Threshold
from blkd.daemon.space_watch import SpaceWatch
from harness.daemon import image

MIB = 1 << 20
FULL, OVER = "image nearly full", "image not nearly full any more"


@dataclass
class PlayedExport:
    """An export whose image may be taken away."""

    written_file: str | None
    name: str = "web"
    written: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_written(self):
        await self.written.wait()


@pytest.fixture
def often(monkeypatch):
    for period in ("PERIOD", "PERIOD_NEAR"):
        monkeypatch.setattr(space_watch, period, 0.01)


@contextlib.asynccontextmanager
async def following(*exports, least="4M"):
    """A watch that looks after these, and what it tells of."""
    events = EventList()
    watch = SpaceWatch(Threshold.read(least), events)
    async with asyncio.timeout(30):
        tasks = [asyncio.create_task(watch.follow(each)) for each in exports]
        try:
            yield watch, events
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def told(events):
    return [event.event async for event in events.after(0, follow=False)]


async def until(condition):
    while not condition():  # noqa: ASYNC110 - of what is under test
        await asyncio.sleep(0.001)


@pytest.mark.usefixtures("often")
async def test_little_room_is_told_once_and_so_is_its_end(tmpfs):
    export = PlayedExport(str(image(tmpfs / "web.img", 64 * MIB)))
    async with following(export) as (watch, events):
        await until(lambda: watch.of("web"))
        assert not watch.of("web").nearly_full
        (tmpfs / "other").write_bytes(bytes(6 * MIB))
        await until(lambda: watch.of("web").nearly_full)
        free = watch.of("web").free
        (tmpfs / "another").write_bytes(bytes(MIB))
        await until(lambda: watch.of("web").free < free)
        (tmpfs / "other").unlink()
        await until(lambda: not watch.of("web").nearly_full)
        assert await told(events) == [FULL, OVER]


@pytest.mark.usefixtures("often")
async def test_what_an_image_takes_is_known(tmpfs):
    path = image(tmpfs / "web.img", 64 * MIB)
    async with following(PlayedExport(str(path))) as (watch, _):
        await until(lambda: watch.of("web"))
        assert watch.of("web").allocated == 0
        path.write_bytes(bytes(MIB))
        await until(lambda: watch.of("web").allocated == MIB)
        assert watch.of("web").total == 8 * MIB


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("path", ["/dev/null", "/nowhere/web.img"])
async def test_what_is_no_file_has_no_room(path, tmpfs):
    other = PlayedExport(str(image(tmpfs / "b.img", MIB)), "other")
    async with following(PlayedExport(path), other) as (watch, _):
        await until(lambda: watch.of("other"))
        assert watch.of("web") is None


@pytest.mark.usefixtures("often")
async def test_an_export_that_is_stopped_is_not_looked_at(tmpfs):
    export = PlayedExport(str(image(tmpfs / "web.img", MIB)))
    async with following(export) as (watch, _):
        await until(lambda: watch.of("web"))
        path, export.written_file = export.written_file, None
        await until(lambda: watch.of("web") is None)
        export.written_file = path
        export.written.set()
        await until(lambda: watch.of("web"))


@pytest.mark.usefixtures("often")
async def test_a_file_system_that_hangs_is_asked_once_and_holds_up_no_other(tmpfs, monkeypatch):
    hung, good = tmpfs / "hung.img", tmpfs / "good.img"
    answer, questions, statvfs = threading.Event(), [], os.statvfs

    def hanging(path):
        questions.append(path)
        if path == str(hung):
            answer.wait()
        return statvfs(path)

    monkeypatch.setattr(os, "statvfs", hanging)
    monkeypatch.setattr(space_watch, "LIMIT", 0.02)
    exports = [PlayedExport(str(image(path, MIB)), path.stem) for path in (hung, good)]
    async with following(*exports) as (watch, _):
        try:
            await until(lambda: questions.count(str(good)) > 10)
            assert (questions.count(str(hung)), watch.of("hung")) == (1, None)
        finally:
            answer.set()
        await until(lambda: watch.of("hung"))


@pytest.mark.usefixtures("often")
async def test_all_images_of_a_file_system_are_looked_at_in_one_thread(tmpfs, monkeypatch):
    names = [f"disk{number}" for number in range(20)]
    exports = [PlayedExport(str(image(tmpfs / name, MIB)), name) for name in names]
    by_thread = collections.defaultdict(set)
    statvfs = os.statvfs

    def noted(path):
        by_thread[threading.get_ident(), threading.current_thread()].add(path)
        return statvfs(path)

    async with following(*exports) as (watch, _):
        await until(lambda: all(map(watch.of, names)))
        monkeypatch.setattr(os, "statvfs", noted)
        await until(lambda: len(by_thread) > 3)
    assert {len(paths) for paths in list(by_thread.values())[:3]} == {20}


@pytest.mark.usefixtures("often")
async def test_what_is_removed_is_forgotten(tmpfs):
    export = PlayedExport(str(image(tmpfs / "web.img", MIB)))
    async with following(export) as (watch, _):
        await until(lambda: watch.of("web"))
    assert watch.of("web") is None
