# SPDX-License-Identifier: Apache-2.0
"""The dashboard over HTTP, without a browser."""

import asyncio
import contextlib
import json
import re
import socket

import aiohttp
import pytest

from blkd.daemon.dashboard import dashboard_server, live_rows
from blkd.daemon.dashboard.dashboard_server import page_files, serve_dashboard
from harness.daemon import run
from harness.host import HostDaemon
from tests.doing_exports import Doing, DoingExports
from tests.played_dashboard import KEY

LOGIN = {"token": KEY.token}


@pytest.fixture
def exports():
    return DoingExports({"web": Doing(reads=50), "old": Doing("stopped")})


@pytest.fixture
async def http(exports, monkeypatch):
    monkeypatch.setattr(live_rows, "INTERVAL", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        jar = aiohttp.CookieJar(unsafe=True)  # of an address, not a name
        async with (
            asyncio.timeout(30),
            serve_dashboard(exports, listener, KEY),
            aiohttp.ClientSession(url, cookie_jar=jar) as session,
        ):
            yield session


async def looks(answer):
    """The looks that a stream has, one after the other."""
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


async def test_the_page_is_whole_and_loads_nothing_from_elsewhere(http):
    files = page_files()
    for path in files:
        async with http.get(path) as answer:
            assert answer.status == 200
            text = await answer.text()
        for found in re.findall(r"""(?:src|href|from|import)\s*=?\s*"([^"]*)\"""", text):
            if not found.startswith("http://www.w3.org/"):
                assert f"/{found.removeprefix('./')}" in files


async def test_every_answer_forbids_what_the_page_does_not_need(http):
    for path in ("/", "/main.js", "/rows", "/nothing"):
        async with http.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/rows", "/session"])
async def test_figures_are_for_those_alone_who_have_shown_the_token(http, path):
    assert (await http.get(path)).status == 401
    assert (await http.get(path, cookies={KEY.cookie_name: "guess"})).status == 401
    assert (await http.get(path, params=LOGIN)).status == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"token": "guess"}', 403, id="another-token"),
        pytest.param(b'{"token": 5}', 400, id="no-text"),
        pytest.param(b"{", 400, id="no-json"),
        pytest.param(b" " * 2000, 413, id="too-long"),
    ],
)
async def test_what_is_not_the_token_opens_nothing(http, body, status):
    async with http.post("/login", data=body) as answer:
        assert answer.status == status
        assert "Set-Cookie" not in answer.headers


async def test_the_token_opens_and_a_logout_closes(http):
    async with http.post("/login", json=LOGIN) as answer:
        assert answer.status == 204
        said = answer.headers["Set-Cookie"]
        assert "HttpOnly" in said
        assert "SameSite=Strict" in said
        assert KEY.token not in said
    assert (await http.get("/session")).status == 204
    assert (await http.post("/logout")).status == 204
    assert (await http.get("/session")).status == 401


async def test_a_page_of_another_site_gets_nothing(http):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        async with http.post("/login", json=LOGIN, headers=headers) as answer:
            assert answer.status == 403
            assert "Set-Cookie" not in answer.headers


async def test_rows_come_again_and_again_with_what_was_done(http):
    await http.post("/login", json=LOGIN)
    async with http.get("/rows") as answer:
        assert answer.content_type == "text/event-stream"
        found = looks(answer)
        first, second = await anext(found), await anext(found)
    assert [row["name"] for row in first["rows"]] == ["old", "web"]
    assert first["rows"][1]["iops"] is None
    assert second["rows"][1]["iops"] == 50
    assert second["rows"][0]["state"] == "stopped"
    assert second["summary"]["iops"] == 50


async def test_all_who_watch_share_the_looks(http, exports):
    await http.post("/login", json=LOGIN)
    async with contextlib.AsyncExitStack() as stack:
        answers = [await stack.enter_async_context(http.get("/rows")) for _ in range(5)]
        streams = [looks(answer) for answer in answers]
        for _ in range(4):
            await asyncio.gather(*(anext(stream) for stream in streams))
        assert exports.looks <= 6


async def test_nothing_goes_on_once_nobody_watches(exports, monkeypatch):
    monkeypatch.setattr(live_rows, "INTERVAL", 0.01)
    before = asyncio.all_tasks()
    stream = live_rows.LiveRows(exports).follow()
    async with asyncio.timeout(10):
        for _ in range(3):
            await anext(stream)
        await stream.aclose()
    assert asyncio.all_tasks() == before
    assert exports.looks == 3


async def test_so_many_may_watch_and_no_more(http, monkeypatch):
    monkeypatch.setattr(dashboard_server, "MOST_WATCHERS", 2)
    await http.post("/login", json=LOGIN)
    async with http.get("/rows"), http.get("/rows"):
        assert (await http.get("/rows")).status == 503


def test_a_daemon_shows_its_dashboard_where_it_is_asked_to(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with HostDaemon(tmp_path, dashboard={"listen": f"127.0.0.1:{port}"}) as host:
        host.ready()
        shown = host.call("GET", "/v1/dashboard")
        token = (tmp_path / "state" / "dashboard-token").read_text().strip()
        assert shown == {"url": f"http://127.0.0.1:{port}/#{token}", "forward": None}
        host.add("web", host.image("web.img", 1 << 20))
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert browser.recv(12) == b"HTTP/1.1 200"
        host.process.end()
        assert host.restart()
        assert host.call("GET", "/v1/dashboard") == shown


def test_a_dashboard_on_a_unix_socket_says_how_it_is_forwarded(tmp_path):
    with HostDaemon(tmp_path, dashboard={"listen": "unix"}) as host:
        host.ready()
        path = host.run / "blkd-dashboard.sock"
        shown = json.loads(run("dashboard", "--daemon", host.socket, "--json").stdout)
        assert f"9751:{path}" in shown["forward"]
        assert shown["url"].startswith("http://127.0.0.1:9751/#")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as browser:
            browser.connect(str(path))
            browser.sendall(b"GET /rows HTTP/1.1\r\nHost: localhost:9751\r\n\r\n")
            assert browser.recv(12) == b"HTTP/1.1 401"
        host.process.end()
        assert not path.exists()


def test_there_is_no_dashboard_unless_it_is_asked_for(tmp_path):
    with HostDaemon(tmp_path) as host:
        host.ready()
        done = run("dashboard", "--daemon", host.socket)
        assert done.returncode == 1
        assert "the dashboard is off" in done.stderr
        assert "[dashboard]" in done.stderr
        assert not (tmp_path / "state" / "dashboard-token").exists()


async def test_a_look_that_fails_ends_the_stream_and_not_the_dashboard(http, exports, monkeypatch):
    await http.post("/login", json=LOGIN)

    async def fail():
        raise RuntimeError("what is observed is broken")

    monkeypatch.setattr(exports, "observe", fail)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.get("/rows") as answer:
            await answer.read()
    monkeypatch.undo()
    async with http.get("/rows") as answer:
        assert (await anext(looks(answer)))["rows"]


def test_a_port_that_is_taken_is_told_with_what_names_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with HostDaemon(tmp_path, dashboard={"listen": listen}) as host:
            assert host.process.end(None, timeout=20) == 1
            said = json.loads(host.process.errors().splitlines()[-1])
    assert said["error"] == f"{listen}: Address already in use"
    assert "[dashboard]" in said["hint"]
