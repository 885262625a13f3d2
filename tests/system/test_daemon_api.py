# SPDX-License-Identifier: Apache-2.0
"""The API of the daemon over a real socket, in front of exports that exist in memory only."""

import asyncio
import contextlib
import json
import os
import re
import socket
import tempfile
from pathlib import Path

import aiohttp
import msgspec
import openapi_spec_validator
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blkd.control.daemon_models import FiguresList, entity_tag, group_tag
from blkd.daemon.api import application, call_and_reply, connections, event_stream, operations
from blkd.daemon.api.application import daemon_api
from blkd.daemon.api.authorisation import Authorisation
from blkd.daemon.api.openapi import openapi_document
from blkd.daemon.api.routes import ROUTES
from blkd.errors import ImageBusy
from blkd.host import unix_socket
from blkd.statistics.figures import Figures, NamedFigures
from tests.played_exports import PlayedExports

NOBODY = 65534
READERS, CHANGERS = 4001, 4002
WEB = {"name": "web", "settings": {"image": "/x.img"}}
PROBLEM = "application/problem+json"
GET = b"GET /v1/exports HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"


@pytest.fixture
def path():
    """A socket's path that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="blkd-api-") as folder:
        Path(folder).chmod(0o755)
        yield f"{folder}/blkd.sock"


@contextlib.asynccontextmanager
async def serving(path, authorisation=None):
    exports = PlayedExports()
    with unix_socket.listen(path, 0o666) as listener:
        async with daemon_api(exports, listener, authorisation or Authorisation()):
            yield exports


@pytest.fixture
async def exports(path):
    async with serving(path) as played, asyncio.timeout(30):
        yield played


@pytest.fixture
async def http(path, exports):  # noqa: ARG001 - it is served
    connector = aiohttp.UnixConnector(path)
    async with aiohttp.ClientSession("http://blkd", connector=connector) as session:
        yield session


@pytest.fixture
async def web(http):
    """An export that has been added."""
    async with http.post("/v1/exports", json=WEB) as answer:
        assert answer.status == 201


async def ask(http, method, target, status=200, **request):
    """The JSON of an answer with that status."""
    async with http.request(method, target, **request) as answer:
        body = await answer.read()
        assert answer.status == status, body
        if status >= 400:
            assert answer.content_type == PROBLEM
        return json.loads(body)


async def say(path, sent, *, end=False):
    """All that is answered to these bytes until the connection is closed."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    if end:
        writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of what is under test
            await asyncio.sleep(0)


# What is asked and answered


async def test_it_says_who_it_is(http):
    about = await ask(http, "GET", "/v1")
    assert (about["api"], about["pid"]) == ("v1", os.getpid())
    assert "operations" in about["extensions"]


async def test_an_export_is_added_once(http):
    async with http.post("/v1/exports", json=WEB) as answer:
        assert (answer.status, answer.headers["Location"]) == (201, "/v1/exports/web")
        added = await answer.json()
    assert await ask(http, "POST", "/v1/exports", json=WEB) == added
    assert await ask(http, "GET", "/v1/exports/web") == added
    listed = await ask(http, "GET", "/v1/exports")
    assert [each["name"] for each in listed["exports"]] == ["web"]


@pytest.mark.usefixtures("web")
async def test_another_of_the_same_name_is_refused(http):
    other = {**WEB, "settings": {"image": "/other.img"}}
    problem = await ask(http, "POST", "/v1/exports", 409, json=other)
    assert problem["type"] == "urn:blkd:problem:export-exists"
    assert problem["hint"]


@pytest.mark.usefixtures("web")
async def test_an_export_is_removed_once(http):
    removed = await ask(http, "DELETE", "/v1/exports/web?delete-image=true")
    assert removed == {"name": "web", "removed": True, "image_deleted": True}
    again = await ask(http, "DELETE", "/v1/exports/web")
    assert again["removed"] is False


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e%2fetc", "a%00b", "%ff", "a" * 65])
async def test_what_is_not_there_is_not_found(http, exports, name):
    for verb in ("stats", "logs"):
        async with http.get(f"/v1/exports/{name}/{verb}") as answer:
            assert answer.status == 404
    assert exports.calls == []


@pytest.mark.parametrize(
    ("verb", "body", "called"),
    [
        pytest.param("start", None, ("start", "web"), id="start"),
        pytest.param("stop", None, ("stop", "web"), id="stop"),
        pytest.param("pause", None, ("pause", "web", 10.0), id="pause"),
        pytest.param("pause", {"deadline": 2}, ("pause", "web", 2.0), id="pause with a deadline"),
        pytest.param("resume", None, ("resume", "web"), id="resume"),
        pytest.param("resize", {"size": 512}, ("resize", "web", 512, False), id="resize"),
        pytest.param("upgrade", None, ("upgrade", "web"), id="upgrade"),
    ],
)
@pytest.mark.usefixtures("web")
async def test_a_verb_does_what_it_says(http, exports, verb, body, called):
    await ask(http, "POST", f"/v1/exports/web/{verb}", json=body)
    assert exports.ended[-1] == called


async def test_images_are_listed_and_created(http):
    listed = await ask(http, "GET", "/v1/images")
    assert listed["images"][0]["path"] == "/images/a.img"
    wanted = {"path": "/images/b.img", "size": 1024, "preallocate": True}
    assert (await ask(http, "POST", "/v1/images", 201, json=wanted))["size"] == 1024


@pytest.mark.parametrize(
    ("method", "target", "body", "found"),
    [
        ("POST", "/v1/exports", {**WEB, "colour": "red"}, "colour"),
        ("POST", "/v1/exports", {"name": "web", "settings": {"image": "/x", "speed": 1}}, "speed"),
        ("POST", "/v1/exports", {"name": "../x", "settings": {"image": "/x"}}, "name"),
        ("POST", "/v1/exports", {"name": "blkd", "settings": {"image": "/x"}}, "blkd"),
        ("POST", "/v1/exports", {"name": "w"}, "settings"),
        ("POST", "/v1/exports", {**WEB, "create": {"size": 0}}, "size"),
        ("POST", "/v1/exports", {**WEB, "device": "net", "create": {"size": 512}}, "disk"),
        ("POST", "/v1/exports/web/pause", {"deadline": -1}, "deadline"),
        ("POST", "/v1/exports/web/stop", {"now": True}, "now"),
        ("PATCH", "/v1/exports/web", {"settings": {"queues": 0}}, "queues"),
        ("GET", "/v1/exports?all=1", None, "all"),
        ("GET", "/v1/exports/web/logs?lines=0", None, "lines"),
        ("GET", "/v1/exports/web/logs?lines=2&lines=3", None, "twice"),
        ("DELETE", "/v1/exports/web?delete_image=true", None, "delete_image"),
        ("POST", "/v1/exports/web/stop?force=1", None, "force"),
    ],
)
@pytest.mark.usefixtures("web")
async def test_what_is_not_known_is_refused(http, method, target, body, found):
    problem = await ask(http, method, target, 422, json=body)
    assert found in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="cut off"),
        pytest.param(b'{"name": "w", "settings": {"a": ' + b"[" * 60_000, id="deep"),
        pytest.param(b'{"name": "\xff"}', id="no UTF-8"),
        pytest.param(b'{"name": NaN}', id="no JSON"),
    ],
)
async def test_a_body_that_is_no_json_is_refused(http, body):
    assert (await ask(http, "POST", "/v1/exports", 400, data=body))["status"] == 400


@pytest.mark.usefixtures("web")
async def test_a_failure_is_told_as_it_is(http, exports):
    exports.failure = ImageBusy("/x.img is in use", hint="stop the other")
    problem = await ask(http, "POST", "/v1/exports/web/start", 409)
    assert problem == {
        "type": "urn:blkd:problem:image-busy",
        "title": "Image busy",
        "status": 409,
        "detail": "/x.img is in use",
        "hint": "stop the other",
    }


@pytest.mark.usefixtures("web")
async def test_an_error_of_ours_is_a_500_and_others_go_on(http, exports):
    exports.failure = ZeroDivisionError()
    assert "log" in (await ask(http, "POST", "/v1/exports/web/start", 500))["detail"]
    exports.failure = None
    await ask(http, "POST", "/v1/exports/web/start")


async def test_a_method_that_is_not_there_is_told_with_those_that_are(http):
    async with http.put("/v1/exports/web") as answer:
        assert (answer.status, answer.content_type) == (405, PROBLEM)
        assert answer.headers["Allow"] == "DELETE,GET,HEAD,PATCH"


# ETag and If-Match


@pytest.mark.usefixtures("web")
async def test_settings_change_only_if_they_are_those_of_the_tag(http):
    async with http.get("/v1/exports/web") as answer:
        tag = answer.headers["ETag"]
    assert tag == entity_tag("blk", {"image": "/x.img"})
    change = {"settings": {"queues": 2}}
    headers = {"If-Match": f'"other", {tag}'}
    async with http.patch("/v1/exports/web", json=change, headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["ETag"] not in {tag, ""}
        assert (await answer.json())["at_next_start"] == ["queues"]
    problem = await ask(http, "PATCH", "/v1/exports/web", 412, json=change, headers=headers)
    assert problem["type"] == "urn:blkd:problem:export-changed"


@pytest.mark.usefixtures("web")
async def test_null_gives_a_setting_its_default(http):
    await ask(http, "PATCH", "/v1/exports/web", json={"settings": {"queues": 2}})
    await ask(http, "PATCH", "/v1/exports/web", json={"settings": {"queues": None}})
    assert (await ask(http, "GET", "/v1/exports/web"))["settings"] == {"image": "/x.img"}


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        pytest.param([], (), id="none"),
        pytest.param(["*"], (), id="any"),
        pytest.param(['"a"', '"b" , W/"c"'], ('"a"', '"b"', 'W/"c"'), id="several"),
    ],
)
def test_tags_are_read(values, tags):
    assert call_and_reply.tags_of(values) == tags


@pytest.mark.usefixtures("web")
async def test_a_condition_that_is_not_heeded_is_refused(http):
    headers = {"If-Match": '"a"'}
    await ask(http, "DELETE", "/v1/exports/web", 422, headers=headers)
    await ask(http, "PATCH", "/v1/exports/web", 422, headers={"If-Match": "a"}, json={})


# Groups


async def test_a_group_is_added_once(http):
    wanted = {"name": "gold", "limits": {"iops": "2k", "bps-write": 1 << 20}}
    async with http.post("/v1/groups", json=wanted) as answer:
        assert (answer.status, answer.headers["Location"]) == (201, "/v1/groups/gold")
        assert answer.headers["ETag"] == group_tag({"iops": 2000, "bps-write": 1 << 20})
    again = {"name": "gold", "limits": {"iops-total": 2000, "bps-write": "1M"}}
    await ask(http, "POST", "/v1/groups", json=again)
    shown = await ask(http, "GET", "/v1/groups/gold")
    assert shown["limits"] == {"iops": 2000, "bps-write": 1 << 20}
    assert (await ask(http, "GET", "/v1/groups"))["groups"] == [shown]
    other = {"name": "gold", "limits": {"iops": 1}}
    problem = await ask(http, "POST", "/v1/groups", 409, json=other)
    assert problem["type"] == "urn:blkd:problem:group-exists"


async def test_limits_of_a_group_change_only_if_they_are_those_of_the_tag(http):
    await ask(http, "POST", "/v1/groups", 201, json={"name": "gold", "limits": {"iops": 2}})
    headers = {"If-Match": group_tag({"iops": 2})}
    change = {"limits": {"iops": None, "bps": "1M"}}
    changed = await ask(http, "PATCH", "/v1/groups/gold", json=change, headers=headers)
    assert changed["limits"] == {"bps": 1 << 20}
    problem = await ask(http, "PATCH", "/v1/groups/gold", 412, json=change, headers=headers)
    assert problem["type"] == "urn:blkd:problem:group-changed"


@pytest.mark.parametrize(
    "limits", [{}, {"speed": 1}, {"iops": 0}, {"iops": True}, {"iops-size": 4096, "iops": 1}]
)
async def test_what_limits_no_group_is_refused(limits, http):
    wanted = {"name": "gold", "limits": limits}
    problem = await ask(http, "POST", "/v1/groups", 422, json=wanted)
    assert problem["type"] == "urn:blkd:problem:config-error"


async def test_a_group_is_removed(http):
    await ask(http, "POST", "/v1/groups", 201, json={"name": "gold", "limits": {"iops": 2}})
    assert (await ask(http, "DELETE", "/v1/groups/gold"))["removed"] is True
    assert (await ask(http, "DELETE", "/v1/groups/gold"))["removed"] is False
    problem = await ask(http, "GET", "/v1/groups/gold", 404)
    assert problem["type"] == "urn:blkd:problem:no-such-group"


# What takes long


@pytest.fixture
def gate(exports):
    """What every call waits for."""
    exports.gate = asyncio.Event()
    return exports.gate


async def begin(http, target, body=None, method="POST"):
    """Begin something that goes on: where."""
    headers = {"Prefer": "respond-async"}
    async with http.request(method, target, json=body, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        operation = await answer.json()
        assert answer.headers["Location"] == f"/v1/operations/{operation['id']}"
        return answer.headers["Location"]


async def test_what_takes_long_goes_on_and_can_be_waited_for(http, gate):
    place = await begin(http, "/v1/exports", WEB)
    under_way = await ask(http, "GET", place, headers={"Prefer": "wait=0.01"})
    assert under_way["status"] == "running"
    assert (under_way["progress"], under_way["doing"]) == (0.5, "creating the image")
    gate.set()
    done = await ask(http, "GET", place, headers={"Prefer": "wait=30"})
    assert (done["status"], done["result"]["name"]) == ("done", "web")
    assert done["ended"] >= done["began"]
    assert [each["id"] for each in (await ask(http, "GET", "/v1/operations"))["operations"]] == [
        done["id"]
    ]


async def test_a_failure_in_the_end_is_a_problem(http, exports, gate):
    place = await begin(http, "/v1/exports", WEB)
    exports.failure = ImageBusy("/x.img is in use")
    gate.set()
    failed = await ask(http, "GET", place, headers={"Prefer": "wait=30"})
    assert (failed["status"], failed["problem"]["status"]) == ("failed", 409)


@pytest.mark.usefixtures("gate")
async def test_what_leaves_nothing_half_done_can_be_cancelled(http, exports):
    place = await begin(http, "/v1/exports", WEB)
    await until(lambda: exports.calls)
    await ask(http, "DELETE", place, 202)
    cancelled = await ask(http, "GET", place, headers={"Prefer": "wait=30"})
    assert (cancelled["status"], exports.ended) == ("cancelled", [])
    await ask(http, "DELETE", place, 409)


@pytest.mark.usefixtures("web")
async def test_what_would_be_left_half_done_cannot_be_cancelled(http, exports, gate):
    place = await begin(http, "/v1/exports/web/stop")
    await until(lambda: ("stop", "web") in exports.calls)
    assert (await ask(http, "GET", place))["may_cancel"] is False
    await ask(http, "DELETE", place, 409)
    gate.set()
    assert (await ask(http, "GET", place, headers={"Prefer": "wait=30"}))["status"] == "done"


async def test_an_operation_that_is_not_known_is_not_found(http):
    problem = await ask(http, "GET", "/v1/operations/7", 404)
    assert problem["type"] == "urn:blkd:problem:no-such-operation"


@pytest.mark.usefixtures("web")
async def test_only_the_latest_that_have_ended_are_remembered(http, gate, monkeypatch):
    monkeypatch.setattr(operations, "MOST_ENDED", 2)
    places = [await begin(http, "/v1/exports/web/start") for _ in range(4)]
    gate.set()
    await ask(http, "GET", places[-1], headers={"Prefer": "wait=30"})
    await ask(http, "POST", "/v1/exports/web/start")
    known = (await ask(http, "GET", "/v1/operations"))["operations"]
    assert [f"/v1/operations/{each['id']}" for each in known] == places[-2:]


@pytest.mark.usefixtures("exports", "web")
async def test_too_many_at_a_time_are_refused(http, gate, monkeypatch):
    monkeypatch.setattr(operations, "MOST_RUNNING", 3)
    for _ in range(3):
        await begin(http, "/v1/exports/web/start")
    await ask(http, "POST", "/v1/exports/web/start", 409)
    gate.set()


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        pytest.param([], 1.0, id="nothing"),
        pytest.param(["wait=2.5"], 2.5, id="wait"),
        pytest.param(["respond-async"], 0.0, id="at once"),
        pytest.param(["respond-async, wait=3"], 3.0, id="both"),
        pytest.param(["return=minimal", 'Wait="4"'], 4.0, id="others"),
        pytest.param(["wait=soon"], 1.0, id="wrong"),
        pytest.param(["wait=999999"], 3600.0, id="for ever"),
    ],
)
def test_preferences_are_read(values, seconds):
    assert call_and_reply.preferred_wait(values, 1.0) == seconds


@pytest.mark.usefixtures("web")
async def test_calls_on_one_export_are_carried_out_in_their_order(http, exports, gate):
    wanted = ["stop", "start", "pause", "resume", "stop"]
    places = [await begin(http, f"/v1/exports/web/{verb}") for verb in wanted]
    gate.set()
    await ask(http, "GET", places[-1], headers={"Prefer": "wait=30"})
    assert [call[0] for call in exports.ended[1:]] == wanted


# Callers that come, stay and go


@pytest.mark.usefixtures("web")
async def test_a_caller_that_goes_away_leaves_nothing_half_done(path, http, exports, gate):
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b"POST /v1/exports/web/stop HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n")
    await until(lambda: ("stop", "web") in exports.calls)
    writer.close()
    await writer.wait_closed()
    gate.set()
    await ask(http, "GET", "/v1/exports")
    await until(lambda: exports.views["web"].state == "stopped")
    assert exports.ended.count(("stop", "web")) == 1


@pytest.mark.usefixtures("exports")
async def test_several_calls_go_over_one_connection(path):
    get = b"GET /v1/exports HTTP/1.1\r\nHost: b\r\n"
    answer = await say(path, (get + b"\r\n") * 3 + get + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [200] * 4


@pytest.mark.usefixtures("exports")
async def test_a_caller_that_sends_no_more_is_answered(path):
    get = b"GET /v1/exports HTTP/1.1\r\nHost: b\r\n\r\n"
    assert statuses(await say(path, get * 3, end=True)) == [200] * 3


@pytest.mark.usefixtures("http", "web")
async def test_a_caller_that_sends_no_more_waits_for_its_answer(path, exports, gate):
    post = b"POST /v1/exports/web/stop HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n"
    asking = asyncio.create_task(say(path, post, end=True))
    await until(lambda: ("stop", "web") in exports.calls)
    gate.set()
    assert statuses(await asking) == [200]


async def test_events_of_a_caller_that_sends_no_more_end_at_the_present(path, exports):
    exports.happen("one")
    answer = await say(path, b"GET /v1/events?since=0 HTTP/1.1\r\nHost: b\r\n\r\n", end=True)
    assert b'"event":"one"' in answer


@pytest.mark.usefixtures("exports", "web")
async def test_head_is_a_get_without_its_body(path, http):
    async with http.get("/v1/exports/web") as got, http.head("/v1/exports/web") as head:
        assert (head.status, await head.read()) == (200, b"")
        assert head.headers["Content-Length"] == got.headers["Content-Length"]
        assert head.headers["ETag"] == got.headers["ETag"]
    answer = await say(path, b"HEAD /v1/events HTTP/1.1\r\nHost: b\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: 70000\r\n\r\n" + bytes(70_000), id="at once"),
        pytest.param(
            b"Transfer-Encoding: chunked\r\n\r\n" + (b"ffff\r\n" + bytes(0xFFFF) + b"\r\n") * 2,
            id="in pieces",
        ),
    ],
)
@pytest.mark.usefixtures("exports")
async def test_a_body_over_the_limit_is_refused(path, body):
    head = b"POST /v1/exports HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"
    assert statuses(await say(path, head + body)) == [413]


@pytest.mark.usefixtures("exports")
async def test_a_body_that_does_not_come_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(application, "TRANSFER_LIMIT", 0.05)
    answer = await say(path, b"POST /v1/exports HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\n{")
    assert statuses(answer) == [408]


@pytest.mark.parametrize("begun", [b"", b"GET /v1 HTTP/1.1\r\nHost:"], ids=["nothing", "a part"])
@pytest.mark.usefixtures("exports")
async def test_a_request_that_does_not_come_is_not_waited_for(path, monkeypatch, begun):
    monkeypatch.setattr(connections, "IDLE_LIMIT", 0.05)
    assert await say(path, begun) == b""


@pytest.mark.usefixtures("exports")
async def test_expect_is_answered_before_the_body(path):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(
        b"POST /v1/exports HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"
        b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert statuses(await reader.read()) == [422]
    writer.close()


@pytest.mark.usefixtures("exports")
async def test_another_expectation_is_refused(path):
    get = b"GET /v1 HTTP/1.1\r\nHost: b\r\nConnection: close\r\nExpect: tea\r\n\r\n"
    assert statuses(await say(path, get)) == [417]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"SSH-2.0-x\r\n\r\n", id="another protocol"),
        pytest.param(b"GET /v1 HTTP/1.1\r\nno header\r\n\r\n", id="no header"),
        pytest.param(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", id="long line"),
        pytest.param(b"GET /v1 HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", id="many headers"),
        pytest.param(
            b"POST /v1 HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="two lengths",
        ),
    ],
)
@pytest.mark.usefixtures("exports")
async def test_what_is_no_http_is_refused_as_a_problem(path, sent):
    answer = await say(path, sent)
    assert statuses(answer) == [400]
    assert PROBLEM.encode() in answer


@pytest.mark.usefixtures("exports")
async def test_a_user_cannot_take_all_connections(path, http, monkeypatch):
    monkeypatch.setattr(connections, "MOST_OF_A_USER", 3)
    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(6):
            reader, writer = await asyncio.open_unix_connection(path)
            stack.callback(writer.close)
            readers.append(reader)
        async with asyncio.timeout(10):
            assert await readers[0].read() == b""
        assert await ask(http, "GET", "/v1")


async def test_a_call_under_way_is_not_closed_for_others(path, exports, monkeypatch):
    monkeypatch.setattr(connections, "MOST_OF_A_USER", 2)
    exports.gate = asyncio.Event()
    post = b"POST /v1/images HTTP/1.1\r\nHost: b\r\nConnection: close\r\nContent-Length: 25\r\n\r\n"
    asking = asyncio.create_task(say(path, post + b'{"path":"/a","size":1024}'))
    await until(lambda: exports.calls)
    for _ in range(4):
        assert statuses(await say(path, GET)) == [200]
    exports.gate.set()
    assert statuses(await asking) == [201]


@pytest.mark.usefixtures("exports")
async def test_an_answer_that_is_not_read_is_not_kept(path, monkeypatch):
    monkeypatch.setattr(application, "TRANSFER_LIMIT", 0.05)
    async with contextlib.AsyncExitStack() as stack:
        _, writer = await asyncio.open_unix_connection(path, limit=1)
        stack.callback(writer.close)
        writer.transport.pause_reading()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while True:  # until it is closed: what is asked is not read any more
                    writer.write(b"GET /v1/openapi.json HTTP/1.1\r\nHost: b\r\n\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)


# Events


async def test_events_are_sent_as_they_happen(http, exports):
    exports.happen("one")
    exports.happen("two", "web")
    async with http.get("/v1/events?since=1") as stream:
        assert stream.content_type == "text/event-stream"
        assert await stream.content.readline() == b"id: 2\n"
        data = await stream.content.readline()
        assert json.loads(data.removeprefix(b"data: "))["export"] == "web"
        assert await stream.content.readline() == b"\n"
        exports.happen("three")
        assert await stream.content.readline() == b"id: 3\n"


async def test_events_end_at_the_present_where_nobody_follows(http, exports):
    exports.happen("one")
    async with http.get("/v1/events?since=0&follow=false") as stream:
        assert (await stream.read()).count(b"data:") == 1
    async with http.get("/v1/events?follow=false") as stream:
        assert await stream.read() == b""


async def test_a_follower_that_comes_again_says_what_it_knows_in_a_header(http, exports):
    for event in ("one", "two", "three"):
        exports.happen(event)
    headers = {"Last-Event-ID": "1"}
    async with http.get("/v1/events?follow=false", headers=headers) as stream:
        assert re.findall(rb"id: (\d+)", await stream.read()) == [b"2", b"3"]


@pytest.mark.usefixtures("exports")
async def test_a_follower_that_leaves_is_forgotten(path):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: b\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    followers = [task for task in asyncio.all_tasks() if "_handle_request()" in repr(task)]
    assert followers
    writer.close()
    await until(lambda: all(task.done() for task in followers))


async def test_a_follower_that_does_not_read_is_left_behind(path, exports, monkeypatch):
    monkeypatch.setattr(event_stream, "TRANSFER_LIMIT", 0.05)
    _, writer = await asyncio.open_unix_connection(path, limit=1)
    writer.transport.pause_reading()
    writer.write(b"GET /v1/events?since=0 HTTP/1.1\r\nHost: b\r\n\r\n")
    for _ in range(200):
        exports.happen("much " * 2000)
    await until(lambda: any("_handle_request()" in repr(task) for task in asyncio.all_tasks()))
    await until(lambda: not any("_handle_request()" in repr(t) for t in asyncio.all_tasks()))
    writer.close()


# Who may call


@contextlib.contextmanager
def user(uid, *groups):
    """Be another user, in these groups and no others."""
    mine = os.getgroups()
    os.setgroups(groups[1:])
    os.setegid(groups[0])
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(mine)


STOP = b"POST /v1/exports/web/stop HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
UNKNOWN = b"GET /nothing HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
@pytest.mark.parametrize(
    ("groups", "sent", "status"),
    [
        pytest.param((NOBODY,), GET, 403, id="others may not read"),
        pytest.param((NOBODY,), METRICS, 403, id="others may not read metrics"),
        pytest.param((NOBODY,), STOP, 403, id="others may not change"),
        pytest.param((NOBODY,), UNKNOWN, 403, id="others learn nothing"),
        pytest.param((READERS,), GET, 200, id="readers may read"),
        pytest.param((READERS,), METRICS, 200, id="readers may read metrics"),
        pytest.param((NOBODY, READERS), GET, 200, id="by any of their groups"),
        pytest.param((NOBODY, READERS), STOP, 403, id="readers may not change"),
        pytest.param((NOBODY, 7, CHANGERS), GET, 200, id="changers may read"),
        pytest.param((CHANGERS,), STOP, 404, id="changers may change"),
        pytest.param((NOBODY, *range(5000, 5300), READERS), GET, 403, id="too many groups"),
    ],
)
async def test_a_caller_may_what_its_groups_may(path, groups, sent, status, capsys):
    async with serving(path, Authorisation(READERS, CHANGERS)):
        with socket.socket(socket.AF_UNIX) as sock:
            with user(NOBODY, *groups):
                sock.connect(path)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, sent)
            async with asyncio.timeout(10):
                answer = await loop.sock_recv(sock, 65536)
    assert statuses(answer) == [status]
    assert ("caller not allowed" in "".join(capsys.readouterr())) == (status == 403)


def test_the_socket_file_lets_those_connect_who_may_call():
    assert Authorisation().socket_file() == (0o600, None)
    assert Authorisation(change_group=7).socket_file() == (0o660, 7)
    assert Authorisation(7, 7).socket_file() == (0o660, 7)
    assert Authorisation(7, 8).socket_file() == (0o666, None)


# The end of the daemon


async def test_the_end_cancels_what_goes_on_and_closes_what_has_no_end(path):
    async with serving(path) as exports:
        exports.gate = asyncio.Event()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: b\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        post = b"POST /v1/exports HTTP/1.1\r\nHost: b\r\nContent-Length: 42\r\n\r\n"
        asking = asyncio.create_task(
            say(path, post + b'{"name":"web","settings":{"image":"/a/b"}}')
        )
        await until(lambda: exports.calls)
    async with asyncio.timeout(5):
        await reader.read()
        assert statuses(await asking) == [503]
    assert exports.ended == []
    writer.close()


# The document


async def test_the_document_is_served_and_valid(http):
    document = await ask(http, "GET", "/v1/openapi.json")
    openapi_spec_validator.validate(document)
    calls = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert calls == {(route.method, route.path) for route in ROUTES}


def test_the_document_describes_what_settings_may_be():
    schemas = openapi_document()["components"]["schemas"]
    disk = schemas["BlkSettings"]["properties"]
    assert disk["queues"]["maximum"] == 64
    assert disk["socket_mode"]["type"] == "string"
    assert not {"name", "control", "control_mode"} & disk.keys()
    assert schemas["VsockSettings"]["properties"]["forward"]["items"] == {"type": "string"}


# Anything at all


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.binary(max_size=400))
def test_no_bytes_fail_the_server(tmp_path_factory, sent):
    async def exchange():
        path = str(tmp_path_factory.mktemp("any") / "s")
        async with asyncio.timeout(30), serving(path):
            await say(path, sent, end=True)
            assert statuses(await say(path, GET)) == [200]

    asyncio.run(exchange())


# Metrics


@contextlib.asynccontextmanager
async def serving_metrics(path):
    """The API, with the metrics on TCP as well: the exports, and the port."""
    exports = PlayedExports()
    with (
        unix_socket.listen(path, 0o600) as listener,
        socket.create_server(("127.0.0.1", 0)) as metrics,
    ):
        metrics.setblocking(False)
        async with daemon_api(exports, listener, Authorisation(), metrics), asyncio.timeout(30):
            yield exports, metrics.getsockname()[1]


def tcp(port):
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}")


@pytest.mark.usefixtures("web")
async def test_metrics_are_a_text(http):
    async with http.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'blkd_export_up{name="web"} 1.0\n' in await answer.text()


async def test_metrics_are_read_over_tcp_by_anybody(path):
    async with serving_metrics(path) as (_, port), tcp(port) as session:
        answer = await session.get("/metrics")
        assert (answer.status, "blkd_build_info" in await answer.text()) == (200, True)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        pytest.param("GET", "/v1/exports", 404, id="nothing-but-metrics"),
        pytest.param("POST", "/metrics", 403, id="nothing-is-changed"),
        pytest.param("DELETE", "/v1/exports/web", 403, id="nothing-is-removed"),
    ],
)
async def test_nothing_else_is_answered_over_tcp(path, method, target, status):
    async with serving_metrics(path) as (_, port), tcp(port) as session:
        problem = await ask(session, method, target, status)
        assert "user" not in problem["detail"]


async def test_a_browser_that_takes_this_host_for_another_gets_no_metrics(path):
    async with serving_metrics(path) as (_, port), tcp(port) as session:
        await ask(session, "GET", "/metrics", 403, headers={"Host": f"evil.example:{port}"})


@pytest.mark.usefixtures("web")
async def test_figures_are_those_of_all_exports(http, exports):
    exports.figures["web"] = Figures(time_ns=5, in_flight=3)
    answer = msgspec.convert(await ask(http, "GET", "/v1/figures"), FiguresList)
    assert answer.exports == (NamedFigures("web", exports.figures["web"]),)


@pytest.mark.usefixtures("web")
async def test_figures_of_one_export_are_null_where_it_has_none(http, exports):
    assert await ask(http, "GET", "/v1/exports/web/figures") == {"name": "web", "figures": None}
    exports.figures["web"] = Figures(time_ns=5, in_flight=3)
    answer = await ask(http, "GET", "/v1/exports/web/figures")
    assert answer["figures"]["in_flight"] == 3


async def test_there_are_no_figures_of_an_unknown_export(http):
    assert (await ask(http, "GET", "/v1/exports/web/figures", 404))["detail"]
