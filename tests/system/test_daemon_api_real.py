# SPDX-License-Identifier: Apache-2.0
"""The API in front of a real daemon and its processes."""

import json
import os
import signal
import socket
import tempfile
import threading
import time
import tomllib
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from blkd.control import client
from blkd.control.daemon_models import EVENTS
from blkd.daemon.api.openapi import openapi_document
from harness.host import HostDaemon, Refused
from tests.unix_adapter import UnixAdapter

MIB = 1 << 20
LIMIT = 30
SCHEMA = schemathesis.openapi.from_dict(openapi_document())


@pytest.fixture(scope="module")
def host():
    with (
        tempfile.TemporaryDirectory(prefix="blkd-") as folder,
        HostDaemon(Path(folder)) as started,
    ):
        started.ready()
        yield started


@pytest.fixture
def web(host):
    """A disk of its own for a test."""
    image = host.image("web.img", MIB)
    yield host.add("web", image)
    host.call("DELETE", "/v1/exports/web?delete-image=true")


def test_an_export_is_added_once(host, web):
    again = host.add("web", host.images / "web.img")
    assert (again["pid"], again["state"]) == (web["pid"], "serving")
    with pytest.raises(Refused) as refused:
        host.add("web", host.images / "web.img", queues=2)
    assert refused.value.problem["status"] == 409


def test_an_image_is_created_and_deleted_with_its_export(host):
    body = {"name": "new", "settings": {"image": f"{host.images}/new.img"}, "create": {"size": MIB}}
    host.call("POST", "/v1/exports", body)
    assert (host.images / "new.img").stat().st_size == MIB
    removed = host.call("DELETE", "/v1/exports/new?delete-image=true")
    assert (removed["removed"], removed["image_deleted"]) == (True, True)
    assert not (host.images / "new.img").exists()


def test_a_disk_in_its_sandbox_may_have_many_workers(host):
    image = host.image("wide.img", MIB)
    wide = host.add("wide", image, queues=64, workers=32)
    assert (wide["state"], wide["served"]["workers"]) == ("serving", 32)
    host.call("DELETE", "/v1/exports/wide?delete-image=true")


def test_an_image_elsewhere_is_not_opened(host, tmp_path):
    (tmp_path / "x.img").write_bytes(bytes(MIB))
    (host.images / "out.img").symlink_to(tmp_path / "x.img")
    for image in (tmp_path / "x.img", host.images / "out.img", host.images / "../blkd.toml"):
        with pytest.raises(Refused):
            host.add("out", image)
    assert [export["name"] for export in host.exports()] == []
    (host.images / "out.img").unlink()


def test_a_disk_is_stopped_and_started(host, web):
    stopped = host.call("POST", "/v1/exports/web/stop")
    assert (stopped["state"], stopped["wanted"], stopped["pid"]) == ("stopped", "stopped", None)
    started = host.call("POST", "/v1/exports/web/start")
    assert (started["state"], started["wanted"]) == ("serving", "serving")
    assert started["pid"] != web["pid"]


@pytest.mark.usefixtures("web")
def test_a_disk_is_paused_resized_and_resumed(host):
    assert host.call("POST", "/v1/exports/web/pause", {"deadline": 1})["drained"]
    assert host.call("GET", "/v1/exports/web")["state"] == "paused"
    assert host.call("POST", "/v1/exports/web/resume")["state"] == "serving"
    assert host.call("POST", "/v1/exports/web/resize", {"size": 2 * MIB})["size"] == 2 * MIB
    assert host.call("GET", "/v1/exports/web")["served"]["size"] == 2 * MIB
    with pytest.raises(Refused) as refused:
        host.call("POST", "/v1/exports/web/resize", {"size": MIB})
    assert refused.value.problem["type"] == "urn:blkd:problem:config-error"


@pytest.mark.usefixtures("web")
def test_what_cannot_change_live_changes_at_the_next_start(host):
    changed = host.call("PATCH", "/v1/exports/web", {"settings": {"cache": "writeback"}})
    assert changed["at_next_start"] == ["cache"]
    assert host.call("GET", "/v1/exports/web")["served"]["cache"] == "none"
    host.call("POST", "/v1/exports/web/stop")
    host.call("POST", "/v1/exports/web/start")
    assert host.call("GET", "/v1/exports/web")["served"]["cache"] == "writeback"


@pytest.mark.usefixtures("web")
def test_counters_and_logs_are_passed_on(host):
    assert host.call("GET", "/v1/exports/web/stats")["total"]["reads"] == 0
    logs = host.call("GET", "/v1/exports/web/logs")
    assert logs["name"] == "web"


@pytest.mark.usefixtures("web")
def test_a_settings_file_is_not_changed_by_what_is_refused(host):
    before = host.call("GET", "/v1/exports/web")["settings"]
    for bad in ({"queue_size": 100}, {"image": "beside.img"}, {"name": "b"}, {"colour": 1}):
        with pytest.raises(Refused):
            host.call("PATCH", "/v1/exports/web", {"settings": bad})
    assert host.call("GET", "/v1/exports/web")["settings"] == before


def test_many_add_and_remove_one_export_at_a_time(host):
    """Whoever comes first adds it, and nothing is left of it in the end."""
    host.image("many.img", MIB)
    failures = []

    def add_and_remove():
        for _ in range(3):
            try:
                host.add("many", host.images / "many.img")
                host.call("DELETE", "/v1/exports/many")
            except Exception as error:  # noqa: BLE001 - told by the test's thread
                failures.append(error)

    threads = [threading.Thread(target=add_and_remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [export["name"] for export in host.exports()] == []
    host.add("many", host.images / "many.img")
    host.call("DELETE", "/v1/exports/many?delete-image=true")


@pytest.mark.usefixtures("web")
def test_a_caller_that_goes_away_has_its_call_carried_out(host):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(host.socket))
        sock.sendall(b"POST /v1/exports/web/stop HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n")
    # Calls on one export are carried out in their order: this one comes after.
    assert host.call("POST", "/v1/exports/web/stop")["state"] == "stopped"
    known = [event["event"] for event in events_of(host, "web")]
    assert known.count("export stopped") == 1


def test_what_goes_on_is_waited_for_by_its_id(host):
    host.image("later.img", MIB)
    body = {"name": "later", "settings": {"image": f"{host.images}/later.img"}}
    operation = host.call("POST", "/v1/exports", body, wait=0)
    if "id" in operation:  # or it took no time
        operation = host.call("GET", f"/v1/operations/{operation['id']}")
        assert (operation["status"], operation["problem"]) == ("done", None)
        operation = operation["result"]
    assert (operation["name"], operation["state"]) == ("later", "serving")
    host.call("DELETE", "/v1/exports/later?delete-image=true")


@pytest.mark.usefixtures("web")
def test_what_has_happened_is_told_in_its_order(host):
    host.call("POST", "/v1/exports/web/stop")
    events = events_of(host, "web")
    ids = [event["id"] for event in events]
    assert ids == sorted(set(ids))
    names = [event["event"] for event in events]
    wanted = ["export added", "export serving", "export stopped"]
    assert [name for name in names if name in wanted] == wanted
    later = events_of(host, "web", since=ids[-1])
    assert later == []


def test_a_disk_goes_on_in_a_new_process(host, web):
    upgraded = host.call("POST", "/v1/exports/web/upgrade")
    assert (upgraded["state"], upgraded["restarts"]) == ("serving", 0)
    assert upgraded["pid"] != web["pid"]
    assert host.call("GET", "/v1/exports/web")["served"]["state"] == "serving"


@pytest.mark.usefixtures("web")
def test_an_upgraded_disk_is_resized(host):
    """It has nothing left to import: the sandbox has no files."""
    host.call("POST", "/v1/exports/web/upgrade")
    assert host.call("POST", "/v1/exports/web/resize", {"size": 2 * MIB})["size"] == 2 * MIB


def test_an_upgrade_from_a_process_that_dies_ends_soon(host, web):
    """The new process waits for an answer on a socket that listens on, whoever is dead."""
    os.kill(web["pid"], signal.SIGSTOP)
    upgrade = host.call("POST", "/v1/exports/web/upgrade", wait=0)
    while upgrade["doing"] != "handing the disk over":
        upgrade = host.call("GET", f"/v1/operations/{upgrade['id']}", wait=0)
    began = time.monotonic()
    os.kill(web["pid"], signal.SIGKILL)
    ended = host.call("GET", f"/v1/operations/{upgrade['id']}")
    assert time.monotonic() - began < client.ANSWER_LIMIT - 1
    assert ended["status"] == "failed"
    assert "not upgraded" in ended["problem"]["detail"]
    assert host.call("POST", "/v1/exports/web/start")["state"] == "serving"


def test_a_killed_disk_is_started_again(host, web):
    last = events_of(host, "web")[-1]["id"]
    host.call("POST", "/v1/exports/web/kill")
    told = []
    with requests.Session() as session:
        session.mount("http://", UnixAdapter(str(host.socket)))
        target = f"http://blkd/v1/events?since={last}"
        with session.get(target, stream=True, timeout=LIMIT) as stream:
            for line in stream.iter_lines():
                if line.startswith(b"data: "):
                    told.append(json.loads(line.removeprefix(b"data: "))["event"])
                if told and told[-1] == "export serving":
                    break
    again = host.call("GET", "/v1/exports/web")
    assert (again["state"], again["restarts"]) == ("serving", 1)
    assert again["pid"] != web["pid"]


def events_of(host, name, since=None):
    """The events of an export, since it was added last if nothing else is said."""
    with requests.Session() as session:
        session.mount("http://", UnixAdapter(str(host.socket)))
        target = f"http://blkd/v1/events?since={since or 0}&follow=false"
        lines = session.get(target, timeout=LIMIT).text.splitlines()
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    found = [event for event in told if event["export"] == name]
    if since is None:
        added = [at for at, event in enumerate(found) if event["event"] == "export added"]
        found = found[added[-1] :]
    return found


@pytest.fixture(scope="module")
def session(host):
    with requests.Session() as opened:
        opened.mount("http://", UnixAdapter(str(host.socket)))
        yield opened


@SCHEMA.parametrize()
@settings(
    max_examples=8,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_call_keeps_to_its_document(session, case):
    if case.path == EVENTS:
        case.query = {**(case.query or {}), "follow": "false"}
    case.call_and_validate(
        base_url="http://blkd",
        session=session,
        timeout=LIMIT,
        excluded_checks=[positive_data_acceptance],
    )


def test_exports_added_at_the_same_time_have_a_user_each(host):
    names = [f"user{number}" for number in range(8)]
    adding = [
        threading.Thread(target=host.add, args=(name, host.image(f"{name}.img", MIB)))
        for name in names
    ]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join(LIMIT)
    records = [tomllib.loads((host.records / f"{name}.toml").read_text()) for name in names]
    for name in names:
        host.call("DELETE", f"/v1/exports/{name}?delete-image=true")
    assert len({record["user"] for record in records}) == len(names)
