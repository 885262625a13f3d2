# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import json
import os
import re
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blkd import errors
from blkd.control import models
from blkd.control.client import call, switch
from blkd.control.server import control_api
from blkd.export.views import ExportState, ExportStats, PauseResult, ResizeResult, RingStats
from blkd.host import unix_socket
from blkd.vhost_user.front_end_state import FrontEndState, FrontEndVring
from blkd.vhost_user.wire import MemoryRegion

NOBODY = 65534
DOCUMENT = Path(__file__).parents[2] / "docs" / "control-api.md"


@dataclass
class Played:
    """An export that does what it is called for, or fails with `failure`."""

    size: int = 1 << 20
    failure: Exception | None = None
    calls: list = field(default_factory=list)

    def show(self):
        return {"name": "demo", "size": self.size}

    def stats(self):
        return {"reads": 7}

    async def resize(self, size, *, force=False):
        self._note("resize", size, force)
        self.size = size
        return {"size": size}

    async def pause(self, deadline):
        self._note("pause", deadline)
        return {"paused": True, "in_flight": 0}

    async def resume(self):
        self._note("resume")

    def limits(self):
        return {"limit": self.limited}

    async def limit(self, text):
        self.limited = text
        return self.limits()

    async def retry(self):
        self._note("retry")
        return {"retried": 2, "held": 0, "reason": None}

    def stop(self):
        self._note("stop")

    def kill(self):
        self._note("kill")

    def _note(self, *called):
        self.calls.append(called)
        if self.failure is not None:
            raise self.failure


@contextlib.asynccontextmanager
async def served(path, export):
    with unix_socket.listen(path, 0o600) as sock:
        async with control_api(export, sock, converse, export.stop, lend):
            yield


async def lend(sock):
    """Nothing is to be lent here."""


async def converse(sock):
    """Plays the other protocol: one descriptor comes, its number of bytes goes back."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    said = asyncio.Event()
    loop.add_reader(sock, said.set)
    await said.wait()
    loop.remove_reader(sock)
    _, (fd,), _, _ = socket.recv_fds(sock, 1, 1)
    await loop.sock_sendall(sock, str(os.fstat(fd).st_size).encode())
    os.close(fd)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "control.sock")


@pytest.fixture
def export():
    return Played()


@pytest.fixture
async def api(path, export):
    """Sends one request as any HTTP client would: status, content type, body."""

    async def request(method, target, body=None, headers=None):
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path), base_url="http://blkd"
            ) as session,
            session.request(method, target, data=body, headers=headers) as response,
        ):
            return response, await response.json(content_type=None)

    async with served(path, export):
        yield request


def test_the_file_of_a_listener_that_is_lent_stays_when_the_api_ends(path, export):
    async def serve(sock):
        async with control_api(export, sock, converse, export.stop, lend):
            pass

    with unix_socket.listen(path, 0o600) as sock:
        asyncio.run(serve(sock))
        assert Path(path).is_socket()


async def test_the_state_and_the_counters_can_be_read(api):
    response, state = await api("GET", models.EXPORT)
    assert (response.status, response.content_type) == (200, "application/json")
    assert state == {"name": "demo", "size": 1 << 20}
    _, counters = await api("GET", models.STATS)
    assert counters == {"reads": 7}


@pytest.mark.parametrize(
    ("target", "body", "called", "status"),
    [
        (models.RESIZE, b'{"size": 8192}', ("resize", 8192, False), 200),
        (models.RESIZE, b'{"size": 512, "force": true}', ("resize", 512, True), 200),
        (models.PAUSE, b'{"deadline": 2.5}', ("pause", 2.5), 200),
        (models.PAUSE, None, ("pause", models.DEFAULT_DEADLINE), 200),
        (models.PAUSE, b"{}", ("pause", models.DEFAULT_DEADLINE), 200),
        (models.RESUME, None, ("resume",), 200),
        (models.RETRY, None, ("retry",), 200),
        (models.STOP, None, ("stop",), 202),
        (models.KILL, None, ("kill",), 202),
    ],
)
async def test_each_call_reaches_the_export(api, export, target, body, *, called, status):
    response, answer = await api("POST", target, body)
    assert response.status == status
    assert isinstance(answer, dict)
    assert export.calls == [called]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"not json", 400, id="no-json"),
        pytest.param(b"{", 400, id="half"),
        pytest.param(b"\xff\xfe", 400, id="no-text"),
        pytest.param(b"{}", 422, id="no-size"),
        pytest.param(b"[]", 422, id="a-list"),
        pytest.param(b'{"size": "1G"}', 422, id="text"),
        pytest.param(b'{"size": 0}', 422, id="zero"),
        pytest.param(b'{"size": -512}', 422, id="negative"),
        pytest.param(b'{"size": 9223372036854775808}', 422, id="past-63-bits"),
        pytest.param(b'{"size": 512, "volume": 1}', 422, id="unknown-field"),
        pytest.param(b'{"size": 512, "force": 1}', 422, id="force-no-boolean"),
        pytest.param(b" " * 70_000, 413, id="too-long"),
    ],
)
async def test_a_bad_body_is_a_problem_and_changes_nothing(api, export, body, status):
    response, problem = await api("POST", models.RESIZE, body)
    assert (response.status, response.content_type) == (status, models.PROBLEM_JSON)
    assert problem["status"] == status
    assert problem["title"]
    assert export.calls == []


@pytest.mark.parametrize("deadline", ["-1", "1e9", "NaN", "null", '"1"'])
async def test_a_deadline_out_of_reason_is_refused(api, export, deadline):
    response, _ = await api("POST", models.PAUSE, f'{{"deadline": {deadline}}}'.encode())
    assert response.status in (400, 422)
    assert export.calls == []


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/", 404), ("GET", "/v2/export", 404), ("GET", models.RESIZE, 405)],
)
async def test_what_there_is_not_is_a_problem_too(api, method, target, status):
    response, problem = await api(method, target)
    assert (response.status, response.content_type) == (status, models.PROBLEM_JSON)
    assert problem["status"] == status


async def test_the_answer_to_a_wrong_method_names_the_right_ones(api):
    response, _ = await api("DELETE", models.RESIZE)
    assert response.headers["Allow"] == "POST"


async def test_head_tells_of_an_answer_and_does_not_give_it(path, export):
    async with (
        served(path, export),
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path), base_url="http://blkd"
        ) as session,
        session.head(models.EXPORT) as response,
    ):
        assert (response.status, await response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 0


async def test_headers_without_end_are_refused(api):
    response, problem = await api("GET", models.EXPORT, headers={"X": "x" * 100_000})
    assert response.status == problem["status"] == 431


async def test_a_body_in_pieces_is_put_together(api, export):
    async def pieces():
        for piece in (b'{"size"', b": 8192", b"}"):
            yield piece

    response, _ = await api("POST", models.RESIZE, pieces())
    assert response.status == 200
    assert export.calls == [("resize", 8192, False)]


async def test_a_caller_that_asks_before_it_sends_its_body_may_send_it(path, export):
    async with (
        served(path, export),
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path), base_url="http://blkd"
        ) as session,
        session.post(models.RESIZE, data=b'{"size": 8192}', expect100=True) as response,
    ):
        assert response.status == 200
    assert export.calls == [("resize", 8192, False)]


async def test_a_caller_that_leaves_in_mid_request_is_forgotten(path, export):
    async with served(path, export):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /v1/export/resize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        writer.write_eof()
        async with asyncio.timeout(10):
            assert b" 400 " in await reader.read()
        writer.close()
        assert await asyncio.to_thread(call, path, "GET", models.STATS) == {"reads": 7}
    assert export.calls == []


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (errors.ImageBusy("locked"), 409, "image-busy"),
        (errors.ImageError("cannot shrink"), 409, "image-error"),
        (errors.RequestRefused("not now"), 409, "request-refused"),
        (errors.ConfigError("bad size"), 422, "config-error"),
        (errors.DrainTimeout("3 in flight"), 504, "drain-timeout"),
        (errors.DataPlaneError("io_uring"), 500, "data-plane-error"),
    ],
)
async def test_a_refusal_tells_its_kind_and_what_to_do(api, export, failure, status, kind):
    failure.hint = "do this"
    export.failure = failure
    response, problem = await api("POST", models.RESIZE, b'{"size": 512}')
    assert (response.status, response.content_type) == (status, models.PROBLEM_JSON)
    assert problem == {
        "type": f"urn:blkd:problem:{kind}",
        "title": kind.replace("-", " ").capitalize(),
        "status": status,
        "detail": str(failure),
        "hint": "do this",
    }


async def test_an_error_of_ours_tells_nothing_but_that(api, export):
    export.failure = ZeroDivisionError("secret")
    response, problem = await api("POST", models.RESIZE, b'{"size": 512}')
    assert response.status == 500
    assert "secret" not in json.dumps(problem)


async def test_bytes_that_are_no_http_do_not_end_the_server(path, export):
    async with served(path, export):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\0\1\2\3 garbage \r\n\r\n" * 100)
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        assert await asyncio.to_thread(call, path, "GET", models.STATS) == {"reads": 7}


async def test_a_caller_that_never_finishes_does_not_hold_up_the_end(path, export):
    async with asyncio.timeout(10):
        async with served(path, export):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(
                b"POST /v1/export/resize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            )
            assert await asyncio.to_thread(call, path, "GET", models.STATS) == {"reads": 7}
        writer.close()


async def test_a_call_goes_on_with_another_protocol(path, export, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")

    def talk():
        with (
            switch(path, models.UPGRADE, models.UPGRADE_PROTOCOL) as sock,
            (tmp_path / "file").open("rb") as file,
        ):
            socket.send_fds(sock, [b"x"], [file.fileno()])
            return sock.recv(16)

    async with served(path, export):
        assert await asyncio.to_thread(talk) == b"5"


async def test_a_caller_that_does_not_know_the_other_protocol_gets_its_name(api):
    response, problem = await api("POST", models.UPGRADE)
    assert (response.status, problem["status"]) == (426, 426)
    assert response.headers["Upgrade"] == models.UPGRADE_PROTOCOL


async def test_what_is_said_before_the_protocol_has_changed_is_not_taken_for_it(path, export):
    async with served(path, export):
        reader, writer = await asyncio.open_unix_connection(path)
        head = (
            f"POST {models.UPGRADE} HTTP/1.1\r\nHost: x\r\nUpgrade: {models.UPGRADE_PROTOCOL}\r\n"
        )
        writer.write(f"{head}Connection: upgrade\r\n\r\ntoo early".encode())
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_the_client_raises_the_refusal_of_another_protocol(path, export):
    async with served(path, export):
        with pytest.raises(errors.ControlError, match="POST /nowhere"):
            await asyncio.to_thread(switch, path, "/nowhere", models.UPGRADE_PROTOCOL)


async def test_the_client_returns_what_the_export_answers(path, export):
    async with served(path, export):
        wanted = models.ResizeExport(size=4096, force=True)
        answer = await asyncio.to_thread(call, path, "POST", models.RESIZE, wanted)
    assert answer == {"size": 4096}
    assert export.calls == [("resize", 4096, True)]


async def test_the_client_raises_the_refusal_with_its_hint(path, export):
    export.failure = errors.ImageError("cannot shrink", hint="--force")
    async with served(path, export):
        with pytest.raises(errors.ControlError, match="cannot shrink") as refused:
            await asyncio.to_thread(call, path, "POST", models.RESUME)
    assert refused.value.hint == "--force"


def test_the_client_says_that_nobody_is_there(path):
    with pytest.raises(errors.SocketError, match="nobody answers") as refused:
        call(path, "GET", models.EXPORT)
    assert refused.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_the_client_says_that_the_socket_is_another_user_s(path):
    with unix_socket.listen(path, 0o600):
        os.seteuid(NOBODY)
        try:
            with pytest.raises(errors.SocketError, match="not be opened by this user") as refused:
                call(path, "GET", models.EXPORT)
        finally:
            os.seteuid(0)
    assert "--control-group" in refused.value.hint


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"])
async def test_the_client_knows_a_stranger(path, answer):
    async def stranger(_reader, writer):
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(stranger, path)
    async with server:
        with pytest.raises(errors.ControlError):
            await asyncio.to_thread(call, path, "GET", models.EXPORT)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_no_body_fails_the_server(tmp_path_factory, body):
    async def exchange():
        export = Played()
        path = str(tmp_path_factory.mktemp("api") / "s")
        async with (
            served(path, export),
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path), base_url="http://blkd"
            ) as session,
            session.post(models.RESIZE, data=body) as response,
        ):
            return response.status

    assert asyncio.run(exchange()) in (200, 400, 422)


RECORDS = [ExportState, FrontEndState, FrontEndVring, MemoryRegion, ExportStats, RingStats]
RESULTS = [ResizeResult, PauseResult]
CALLS = ["EXPORT", "STATS", "RESIZE", "PAUSE", "RESUME", "STOP", "KILL", "UPGRADE"]
PROBLEMS = ["image-busy", "image-error", "request-refused", "config-error", "drain-timeout"]


@pytest.mark.parametrize(
    "word",
    [
        *(getattr(models, call) for call in CALLS),
        *PROBLEMS,
        *sorted({item.name for record in RECORDS + RESULTS for item in fields(record)}),
    ],
)
def test_the_document_tells_of_everything_that_goes_over_the_api(word):
    quoted = re.findall(r"`([^`\n]+)`", DOCUMENT.read_text())
    assert word in {part for quote in quoted for part in quote.split()}
