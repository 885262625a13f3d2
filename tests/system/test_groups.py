# SPDX-License-Identifier: Apache-2.0
"""Groups of exports in a daemon, with real processes."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from blkd.control.daemon_models import entity_tag
from harness.daemon import run
from harness.host import HostDaemon, Refused
from tests.system.test_daemon_adoption import in_state, wait_for

GOLD = "/v1/groups/gold"


@pytest.fixture
def host(tmp_path):
    with HostDaemon(tmp_path) as started:
        started.ready()
        started.call("POST", "/v1/groups", {"name": "gold", "limits": {"iops": 2000}})
        yield started


def members(host):
    found = host.call("GET", GOLD)["members"]
    return {each["export"]: (each["weight"], each["state"]) for each in found}


def test_an_export_joins_at_its_start_or_live(host):
    host.add("web", "null:1M", group="gold", weight=3)
    host.add("db", "null:1M")
    assert set(members(host)) == {"web"}
    changed = host.call("PATCH", "/v1/exports/db", {"settings": {"group": "gold"}})
    assert (changed["applied"], changed["at_next_start"]) == (["group"], [])
    assert {name: weight for name, (weight, _) in members(host).items()} == {"web": 3, "db": 1}
    changed = host.call("PATCH", "/v1/exports/db", {"settings": {"group": None}})
    assert changed["applied"] == ["group"]
    assert set(members(host)) == {"web"}


def test_an_export_of_a_group_that_is_none_is_refused(host):
    for call in (
        ("POST", "/v1/exports", {"name": "a", "settings": {"image": "null:1M", "group": "iron"}}),
        ("POST", "/v1/exports", {"name": "a", "settings": {"image": "null:1M", "weight": 0}}),
    ):
        with pytest.raises(Refused) as refused:
            host.call(*call)
        assert refused.value.problem["type"] == "urn:blkd:problem:config-error"
    assert host.exports() == []


def test_a_group_is_removed_once_nobody_is_in_it(host):
    host.add("web", "null:1M", group="gold")
    host.call("POST", "/v1/exports/web/stop")
    assert members(host) == {"web": (1, "stopped")}
    with pytest.raises(Refused, match="web is in gold"):
        host.call("DELETE", GOLD)
    host.call("DELETE", "/v1/exports/web")
    assert host.call("DELETE", GOLD)["removed"] is True


def test_groups_and_members_are_there_under_the_next_daemon(host):
    host.add("web", "null:1M", group="gold", weight=3)
    before = host.call("GET", GOLD)
    tag = entity_tag("blk", host.call("GET", "/v1/exports/web")["settings"])
    host.kill()
    host.restart()
    assert entity_tag("blk", host.call("GET", "/v1/exports/web")["settings"]) == tag
    assert members(host) == {each["export"]: (3, each["state"]) for each in before["members"]}


def test_members_share_over_kills_and_upgrades(host):
    host.add("web", "null:1M", group="gold", weight=3)
    host.add("db", "null:1M", group="gold")
    shared = {"web": (3, "sharing"), "db": (1, "sharing")}
    assert members(host) == shared
    host.call("POST", "/v1/exports/web/upgrade")
    assert members(host) == shared
    pid = host.call("GET", "/v1/exports/db")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: host.call("GET", "/v1/exports/db")["pid"] not in {pid, None})
    in_state(host, "db", "serving")
    assert members(host) == shared
    host.kill()
    host.restart()
    assert members(host) == shared
    granted = {each["export"]: each["granted"] for each in host.call("GET", GOLD)["members"]}
    assert granted == {"web": {"iops": 1500}, "db": {"iops": 500}}


def test_a_group_is_made_and_changed_by_commands(host):
    def blkd(*words):
        done = run(*words, "--daemon", host.socket)
        assert done.returncode == 0, done.stderr
        return done.stdout

    blkd("add", "null:1M", "--name", "web", "--group", "gold", "--weight", 2)
    assert "iops=2000" in blkd("group", "ls")
    blkd("group", "set", "gold", "iops=3k", "bps=1G")
    assert "web" in blkd("group", "show", "gold")
    assert host.call("GET", GOLD)["limits"] == {"iops": 3000, "bps": 1 << 30}
    blkd("set", "web", "group=")
    blkd("group", "rm", "gold")
    assert "gold" not in blkd("group", "ls")


# ---- what is granted is what is done ----

IOPS = 2000


def load(host, name, depth, runtime):
    """The requests a second that an export carries."""
    words = ("--rw", "randread", "--iodepth", depth, "--runtime", runtime, "--ramp", 0.5)
    done = run("bench", host.run / f"{name}.sock", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["iops"]


def granted(host, name):
    return next(
        each["granted"]["iops"]
        for each in host.call("GET", GOLD)["members"]
        if each["export"] == name
    )


@pytest.mark.alone
@pytest.mark.parametrize("weights", [(1, 1), (3, 1)], ids=str)
@pytest.mark.parametrize("depths", [(32, 1), (4, 4)], ids=str)
def test_members_that_need_all_are_granted_their_shares_at_any_depth(host, weights, depths):
    names = ("web", "db")
    for name, weight in zip(names, weights, strict=True):
        host.add(name, "null:1M", group="gold", weight=weight)
    with ThreadPoolExecutor(2) as executor:
        loads = [
            executor.submit(load, host, name, depth, 2)
            for name, depth in zip(names, depths, strict=True)
        ]
        ratio = pytest.approx(weights[0] / weights[1], rel=0.1)
        wait_for(lambda: granted(host, "web") / granted(host, "db") == ratio)
        web, db = (each.result() for each in loads)
    assert 0 < web + db <= IOPS * 1.05


@pytest.mark.alone
def test_the_share_of_one_that_has_died_is_used(host):
    for name in ("web", "db"):
        host.add(name, "null:1M", group="gold")
    with ThreadPoolExecutor(2) as executor:
        loads = [executor.submit(load, host, name, 8, 3) for name in ("web", "db")]
        wait_for(lambda: granted(host, "web") == pytest.approx(IOPS / 2, rel=0.1))
        host.call("POST", "/v1/exports/db/stop")
        wait_for(lambda: granted(host, "web") >= IOPS)
        assert loads[0].result() > 0
        with pytest.raises(AssertionError):  # its back end is gone
            loads[1].result()
