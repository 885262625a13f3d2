# SPDX-License-Identifier: Apache-2.0
"""Limits of an export of the daemon: changed live, and kept over its processes."""

import json
import os
import signal

import pytest
from click.testing import CliRunner

from blkd.cli.group import blkd
from harness.frontend import OK, OUT, FrontEnd
from harness.host import HostDaemon, Refused
from tests.system.test_daemon_adoption import SIZE, in_state, wait_for


@pytest.fixture
def host(tmp_path):
    with HostDaemon(tmp_path) as started:
        started.ready()
        yield started


@pytest.fixture
def ask(host, monkeypatch):
    """Runs `blkd limit` with these words: its exit status, and what it prints as JSON."""
    monkeypatch.setenv("BLKD_SOCKET", str(host.socket))

    def ask(*words):
        done = CliRunner().invoke(blkd, ["limit", *words, "--json"])
        assert not isinstance(done.exception, Exception), done.exception
        return done.exit_code, json.loads(done.stdout or "null")

    return ask


def limited(host):
    """What the process of the export keeps to."""
    return host.call("GET", "/v1/exports/web")["served"]["limit"]


def test_a_limit_is_changed_live_and_kept_when_the_process_dies(host):
    web = host.add("web", host.image("web.img", SIZE), limit="iops=1000")
    assert limited(host) == "iops=1000"
    answer = host.call("PATCH", "/v1/exports/web", {"settings": {"limit": "iops=50"}})
    assert answer["export"]["settings"]["limit"] == "iops=50"
    assert limited(host) == "iops=50"
    os.kill(web["pid"], signal.SIGKILL)
    wait_for(lambda: host.call("GET", "/v1/exports/web")["pid"] not in {None, web["pid"]})
    in_state(host, "web", "serving")
    assert limited(host) == "iops=50"


def test_a_limit_is_kept_by_an_upgrade(host):
    web = host.add("web", host.image("web.img", SIZE))
    host.call("PATCH", "/v1/exports/web", {"settings": {"limit": "bps-write=1M"}})
    upgraded = host.call("POST", "/v1/exports/web/upgrade")
    assert upgraded["pid"] != web["pid"]
    assert limited(host) == "bps-write=1048576"


def test_what_is_no_limit_is_refused_and_changes_nothing(host):
    host.add("web", host.image("web.img", SIZE), limit="iops=7")
    with pytest.raises(Refused):
        host.call("PATCH", "/v1/exports/web", {"settings": {"limit": "iops=x"}})
    assert limited(host) == "iops=7"


def test_what_was_used_up_stays_so_when_the_process_dies(host):
    web = host.add("web", host.image("web.img", SIZE), limit="bps-write=64K")
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        front_end.prepare()
        front_end.track_inflight()
        disk = front_end.make_disk(0, 128)
        assert disk.write(0, bytes(1 << 20)) == OK  # 16 seconds' worth
        waiting = disk.submit(OUT, 0, bytes(4096))
        wait_for(lambda: throttled(host) == 1)
        os.kill(web["pid"], signal.SIGKILL)
        wait_for(lambda: host.call("GET", "/v1/exports/web")["pid"] not in {None, web["pid"]})
        in_state(host, "web", "serving")
        assert throttled(host) == 0
        front_end.resume(web["sockets"][0])
        wait_for(lambda: throttled(host) == 1)
        host.call("PATCH", "/v1/exports/web", {"settings": {"limit": ""}})
        assert [done.status for done in disk.wait(waiting)] == [OK]


def throttled(host):
    """How many requests of the export wait for a limit."""
    return host.call("GET", "/v1/exports/web/figures")["figures"]["throttled"]


def test_limits_are_shown_and_changed_by_name(host, ask):
    host.add("web", host.image("web.img", SIZE))
    assert ask("web") == (0, {"limit": "", "limits": {}})
    assert ask("web", "iops=5000", "bps-write=1M")[0] == 0
    assert ask("web", "iops=")[0] == 0
    assert ask("web")[1]["limit"] == limited(host) == "bps-write=1048576"
    assert ask("web", "none", "iops=7")[0] == 0
    assert limited(host) == "iops=7"
    assert ask("web", "none")[0] == 0
    assert limited(host) == ""


def test_a_group_and_a_weight_are_given_beside_limits(host, ask):
    host.call("POST", "/v1/groups", {"name": "gold", "limits": {"iops": 100}})
    host.add("web", host.image("web.img", SIZE))
    assert ask("web", "group=gold", "weight=3", "iops=50")[0] == 0
    settings = host.call("GET", "/v1/exports/web")["settings"]
    assert (settings["group"], settings["weight"], settings["limit"]) == ("gold", 3, "iops=50")
    assert ask("web", "group=")[0] == 0
    assert host.call("GET", "/v1/exports/web")["settings"].get("group") is None


@pytest.mark.parametrize("words", [("weight=x",), ("weight=0",), ("iops=x",), ("group=none-such",)])
def test_what_makes_no_sense_is_refused_by_name(host, ask, words):
    host.add("web", host.image("web.img", SIZE), limit="iops=7")
    assert ask("web", *words)[0] in {1, 2}
    assert limited(host) == "iops=7"
