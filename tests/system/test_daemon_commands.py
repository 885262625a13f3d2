# SPDX-License-Identifier: Apache-2.0
"""The commands that take names, against a daemon that serves."""

import json

import pytest
from click.testing import CliRunner

from blkd.cli.group import blkd
from harness.frontend import FrontEnd
from harness.host import HostDaemon

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with HostDaemon(tmp_path_factory.mktemp("host")) as daemon:
        daemon.ready()
        yield daemon


@pytest.fixture
def run(host, monkeypatch):
    """Runs a command in the folder of the daemon: its result."""
    monkeypatch.chdir(host.folder)
    monkeypatch.setenv("BLKD_SOCKET", str(host.socket))
    return lambda *words: CliRunner().invoke(blkd, [*map(str, words), "--json"])


@pytest.fixture
def ask(run):
    """Runs a command: what it prints as JSON, or its error."""

    def ask(*words, status=0):
        done = run(*words)
        assert done.exit_code == status, done.output
        return json.loads(done.stderr if status else done.stdout)

    return ask


@pytest.fixture
def web(ask):
    """A disk of 1 MiB, with two queues."""
    yield ask("add", "images/web.img", "--create", MIB, "--queues", 2)
    ask("rm", "web", "--delete-image")


def capacity(socket):
    """Bytes of the disk that a front end finds at a socket."""
    with FrontEnd.connect(socket) as front_end:
        front_end.negotiate()
        return 512 * front_end.capacity()


def test_an_image_is_made_and_served_under_its_name(web, ask, host):
    assert (web["name"], web["state"], web["image"]) == (
        "web",
        "serving",
        str(host.images / "web.img"),
    )
    (socket,) = web["sockets"]
    assert capacity(socket) == MIB
    assert ask("image", "ls")["images"][0]["used_by"] == ["web"]
    assert f"path={socket}" in ask("connect", "web", "--vmm", "qemu")["text"]


def test_the_same_add_again_changes_nothing_and_another_is_refused(web, ask):
    again = ask("add", "images/web.img", "--queues", 2)
    assert (again["pid"], again["settings"]) == (web["pid"], web["settings"])
    assert ask("add", "images/web.img", "--queues", 3, status=1)["status"] == 409


def test_a_disk_grows_and_is_paused_by_name(web, ask):
    assert ask("resize", "web", "2M")["size"] == 2 * MIB
    assert capacity(web["sockets"][0]) == 2 * MIB
    assert "--force" in ask("resize", "web", "1M", status=1)["hint"]
    assert ask("pause", "web")["drained"] is True
    assert ask("show", "web")["state"] == "paused"
    assert ask("resume", "web")["state"] == "serving"
    assert ask("stats", "web")["total"]["errors"] == 0


def test_settings_change_now_or_at_the_next_start(web, ask):
    changed = ask("set", "web", "socket-mode=0600", "cache=writeback", "features=latest")
    assert changed["applied"] == ["socket_mode"]
    assert sorted(changed["at_next_start"]) == ["cache", "features"]
    assert ask("stop", "web")["state"] == "stopped"
    started = ask("start", "web")
    assert (started["served"]["cache"], started["pending"]) == ("writeback", [])
    assert started["pid"] != web["pid"]


def test_events_and_logs_tell_what_has_happened(web, ask, run):
    ask("stop", "web")
    ask("start", "web")
    events = [json.loads(line) for line in run("events").stdout.splitlines()]
    ids = [event["id"] for event in events]
    assert ids == sorted(ids)
    mine = [event["event"] for event in events if event["export"] == "web"]
    assert mine[-1] == "export serving"
    assert {"export added", "export stopped"} <= set(mine)
    assert "stopping" in [event.get("event") for event in ask("logs", "web")["events"]]
    assert web["pid"] is not None


def test_a_disk_goes_on_in_a_new_process(web, ask):
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        front_end.negotiate()
        assert [each["name"] for each in ask("upgrade", "--all")["upgraded"]] == ["web"]
        assert ask("show", "web")["pid"] != web["pid"]
        assert ask("show", "web")["served"]["front_end"] is not None
        assert 512 * front_end.capacity() == MIB


def test_a_socket_device_is_an_export_like_others(ask):
    added = ask("add-vsock", "talk", "--cid", 3)
    try:
        assert (added["device"], added["state"]) == ("vsock", "serving")
        refused = ask("resize", "talk", "1M", status=1)
        assert refused["status"] in {409, 422}
        assert ask("upgrade", "--all")["left"][0]["name"] == "talk"
    finally:
        assert ask("rm", "talk")["removed"] is True


@pytest.mark.parametrize("image", ["/etc/shadow", "images/../../etc/shadow", "images/none.img"])
def test_what_may_not_be_served_is_refused_and_not_kept(image, ask):
    assert ask("add", image, "--name", "bad", status=1)["hint"]
    assert ask("ls")["exports"] == []


def test_a_removed_export_is_no_more(ask, host):
    ask("add", "images/gone.img", "--create", MIB)
    assert ask("rm", "gone", "--delete-image") == {
        "name": "gone",
        "removed": True,
        "image_deleted": True,
    }
    assert not (host.images / "gone.img").exists()
    assert ask("rm", "gone")["removed"] is False
    assert ask("show", "gone", status=1)["type"] == "urn:blkd:problem:no-such-export"
