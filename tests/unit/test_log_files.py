# SPDX-License-Identifier: Apache-2.0
"""Logs of exports that are followed, cut and read; and the events that come of them."""

import asyncio
import contextlib
import json
import os

import pytest

from blkd.daemon import log_files
from blkd.daemon.event_list import MOST_EVENTS, MOST_LOGGED, MOST_LOGS, EventList
from blkd.daemon.log_files import LogFiles

LIMIT = 10.0


class Followed:
    """Logs in a directory, and the lines that were passed on."""

    def __init__(self, directory):
        self.lines = asyncio.Queue()
        self.logs = LogFiles(directory, self.lines.put_nowait)

    async def next(self):
        async with asyncio.timeout(LIMIT):
            return await self.lines.get()

    async def write(self, name, *lines):
        fd = await self.logs.open(name)
        os.write(fd, b"".join(line + b"\n" for line in lines))
        os.close(fd)


@pytest.fixture
async def followed(tmp_path):
    followed = Followed(tmp_path)
    await followed.write("old", b"{}")
    following = asyncio.ensure_future(followed.logs.follow())
    while not followed.logs._ends:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    yield followed
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


def event(name, **fields):
    return json.dumps({"event": name, **fields}).encode()


async def test_each_line_is_passed_on_once(followed):
    for number in range(3):
        await followed.write("web", event("a", n=number), event("b", n=number))
        for name in "ab":
            logged = await followed.next()
            assert (logged.export, logged.event) == ("web", {"event": name, "n": number})
    assert followed.lines.empty()


async def test_only_what_is_written_from_now_on_is_passed_on(followed):
    await followed.write("old", event("new"))
    assert (await followed.next()).event == {"event": "new"}


async def test_of_an_export_that_logs_too_much_lines_are_left_out(followed):
    await followed.write("web", *(b"{}" for _ in range(log_files.MOST_LINES + 100)))
    for _ in range(log_files.MOST_LINES):
        assert (await followed.next()).event == {}
    await followed.write("db", event("a"))
    assert (await followed.next()).export == "db"


async def test_a_long_line_is_text_and_cut(followed):
    await followed.write("web", event("a", text="x" * log_files.MAX_LINE))
    logged = await followed.next()
    assert (logged.event, len(logged.line)) == (None, log_files.MAX_LINE)


async def test_a_line_comes_once_it_is_whole(followed):
    fd = await followed.logs.open("web")
    line = event("a", time=1)
    os.write(fd, line[:5])
    await followed.write("db", event("b"))
    assert (await followed.next()).export == "db"
    os.write(fd, line[5:] + b"\n")
    assert (await followed.next()).event == {"event": "a", "time": 1}
    os.close(fd)


@pytest.mark.parametrize("line", [b"Fatal error", b"[1]", b"\xff\xfe", b'{"event":', b"[" * 5000])
async def test_a_line_that_is_no_event_is_one_all_the_same(followed, line):
    await followed.write("web", line)
    logged = await followed.next()
    assert logged.event is None
    assert logged.line == line.decode(errors="backslashreplace")


async def test_a_long_log_is_cut_and_goes_on(followed, monkeypatch):
    monkeypatch.setattr(log_files, "MOST_BYTES", 10_000)
    monkeypatch.setattr(log_files, "MOST_LINES", 2_000)
    lines = [event("a", n=number) for number in range(1000)]
    await followed.write("web", *lines)
    for _ in lines:
        await followed.next()
    await followed.write("web", event("last"))
    assert (await followed.next()).event == {"event": "last"}
    path = followed.logs.path("web")
    assert 4_000 < path.stat().st_size < 6_000
    kept = path.read_bytes().splitlines()
    assert kept == [*lines[len(lines) + 1 - len(kept) :], event("last")]


async def test_of_a_flood_the_middle_is_left_out(followed, monkeypatch):
    monkeypatch.setattr(log_files, "READ_BYTES", 1_000)
    monkeypatch.setattr(log_files, "MOST_LINES", 2_000)
    await followed.write("web", *(event("a", n=number) for number in range(1000)))
    while (logged := await followed.next()).event != {"event": "a", "n": 999}:
        assert logged.export == "web"
    assert followed.lines.empty()


async def test_the_end_of_a_log_can_be_read(followed):
    await followed.write("web", *(event("a", n=number) for number in range(10)))
    found = await followed.logs.tail("web", 3)
    assert [logged.event["n"] for logged in found] == [7, 8, 9]
    assert await followed.logs.tail("none", 3) == []


async def test_a_removed_log_begins_anew(followed):
    await followed.write("web", event("a"))
    await followed.next()
    await followed.logs.remove("web")
    assert not followed.logs.path("web").exists()
    await followed.write("web", event("b"))
    assert (await followed.next()).event == {"event": "b"}


async def test_a_log_may_be_no_link(followed, tmp_path):
    followed.logs.path("web").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(log_files.StateError):
        await followed.logs.open("web")


# ---- events ----


async def collect(events):
    return [event.event async for event in events]


async def test_events_after_one_are_given_in_order():
    events = EventList()
    for name in "abc":
        events.add(name, export="web", fields={})
    all_of_them = [event async for event in events.after(0, follow=False)]
    assert [event.event for event in all_of_them] == ["a", "b", "c"]
    assert await collect(events.after(all_of_them[0].id, follow=False)) == ["b", "c"]
    assert await collect(events.after(all_of_them[-1].id, follow=False)) == []
    assert await collect(events.after(None, follow=False)) == []


async def test_events_to_come_are_waited_for():
    events = EventList()
    events.add("before", export="web", fields={})
    following = events.after(None, follow=True)
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    for name in "abc":
        events.add(name, export="web", fields={})
    async with asyncio.timeout(LIMIT):
        found = [await waiting, await anext(following), await anext(following)]
    assert [event.event for event in found] == ["a", "b", "c"]


async def test_only_the_latest_events_are_kept():
    events = EventList()
    for number in range(MOST_EVENTS + 5):
        events.add(str(number), export="web", fields={})
    kept = await collect(events.after(0, follow=False))
    assert (len(kept), kept[0]) == (MOST_EVENTS, "5")


async def test_ids_grow_whatever_the_clock_does(monkeypatch):
    events = EventList()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    for name in "ab":
        events.add(name, export="web", fields={})
    first, second = [event async for event in events.after(0, follow=False)]
    assert 0 < first.id < second.id


async def test_what_one_export_logs_leaves_the_events_of_others():
    events = EventList()
    events.add("mine", export="web", fields={})
    events.add("theirs", export="db", fields={}, of="db")
    for _ in range(MOST_LOGGED + 5):
        events.add("noise", export="web", fields={}, of="web")
    found = await collect(events.after(0, follow=False))
    assert found == ["mine", "theirs", *["noise"] * MOST_LOGGED]


async def test_of_exports_that_log_only_so_many_are_kept():
    events = EventList()
    for number in range(MOST_LOGS + 3):
        events.add("noise", export=f"e{number}", fields={}, of=f"e{number}")
    found = [event.export async for event in events.after(0, follow=False)]
    assert (len(found), found[0]) == (MOST_LOGS, "e3")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", id="deep"),
        pytest.param(b'{"x":[' + b"[]," * 5000 + b"0]}", id="many-parts"),
        pytest.param(b'{"x":"' + b"x" * 20000 + b'"}', id="long"),
    ],
)
async def test_a_line_that_would_take_much_memory_is_text(tmp_path, line):
    (tmp_path / "web.jsonl").write_bytes(line + b"\n")
    logs = LogFiles(tmp_path, lambda _: None)
    (logged,) = await logs.tail("web", 1)
    assert (logged.event, logged.line) == (None, line[: log_files.MAX_LINE].decode())


async def test_a_line_does_not_command_a_terminal(tmp_path):
    (tmp_path / "web.jsonl").write_text('a\x1b[2Jb\n{"x":"\x9b"}\n')
    logs = LogFiles(tmp_path, lambda _: None)
    first, second = await logs.tail("web", 2)
    assert first.line == r"a\u001b[2Jb"
    assert json.loads(second.line) == second.event
