# SPDX-License-Identifier: Apache-2.0
"""The commands against the daemon's own API, behind which exports are played."""

import asyncio
import json
import signal
import subprocess

import pytest
from click.testing import CliRunner

from blkd.cli.group import blkd
from harness.daemon import PROGRAMS
from tests.played_exports import served_in_thread

LAUNCH = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
LAUNCH += "os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def exports(tmp_path):
    with served_in_thread(tmp_path / "blkd.sock") as played:
        yield played


@pytest.fixture
def ask(exports, tmp_path):
    """Runs a command that asks the daemon: what it prints as JSON."""
    assert exports.views == {}

    def ask(*words, status=0):
        asked = {"BLKD_SOCKET": str(tmp_path / "blkd.sock")}
        done = CliRunner().invoke(blkd, [*words, "--json"], env=asked)
        assert done.exit_code == status, done.output
        # The daemon, in this process, may have logged before.
        return json.loads((done.stderr if status else done.stdout).splitlines()[-1])

    return ask


def test_the_life_of_an_export(ask):
    added = ask("add", "/images/web.img", "--cache", "writeback", "--queues", "2")
    assert (added["name"], added["state"]) == ("web", "serving")
    assert added["settings"] == {"image": "/images/web.img", "queues": 2, "cache": "writeback"}
    assert [each["name"] for each in ask("ls")["exports"]] == ["web"]
    assert ask("show", "web") == added
    assert ask("set", "web", "queues=4", "cache=")["at_next_start"] == ["cache", "queues"]
    assert ask("show", "web")["settings"] == {"image": "/images/web.img"}
    assert ask("resize", "web", "1G")["size"] == 1 << 30
    assert ask("pause", "web")["drained"] is True
    assert ask("resume", "web")["state"] == "serving"
    assert ask("retry", "web")["retried"] == 2
    assert ask("stats", "web")["rings"] == []
    assert ask("stop", "web")["state"] == "stopped"
    assert ask("start", "web")["state"] == "serving"
    assert ask("kill", "web")["name"] == "web"
    assert ask("upgrade", "web")["name"] == "web"
    assert ask("upgrade", "--all")["upgraded"] == [{"name": "web", "pid": 1234}]
    assert len(ask("logs", "web", "-n", "1")["events"]) == 1
    assert ask("image", "ls")["images"][0]["path"] == "/images/a.img"
    assert ask("events")["event"] == "export added"
    assert "/run/blkd/web.sock" in ask("connect", "web", "--vmm", "crosvm")["text"]
    assert ask("rm", "web", "--delete-image")["image_deleted"] is True
    assert ask("rm", "web")["removed"] is False


def test_devices_of_other_kinds_are_added(ask):
    assert ask("add-net", "lan", "--tap", "tap0", "--socket-mode", "0666")["settings"] == {
        "tap": "tap0",
        "socket_mode": "0666",
    }
    added = ask("add-vsock", "talk", "--cid", "3", "--forward", "1:unix:/a", "--stopped")
    assert (added["settings"], added["state"]) == (
        {"cid": [3], "forward": ["1:unix:/a"]},
        "stopped",
    )
    assert ask("resize", "lan", "1G", status=1)["error"] == "only a disk has a size"


def test_what_is_refused_is_refused_with_the_problem(ask):
    ask("add", "/images/web.img")
    refused = ask("add", "/images/other.img", "--name", "web", status=1)
    assert (refused["status"], refused["hint"]) == (409, "take another name")
    assert ask("show", "none", status=1)["type"] == "urn:blkd:problem:no-such-export"
    assert ask("show", "../export", status=1)["status"] in {404, 422}


def test_an_interrupted_command_cancels_what_it_has_begun(exports, tmp_path):
    exports.gate = asyncio.Event()
    command = [PROGRAMS / "blkd", "add", "/images/web.img", "--create", "1G"]
    command += ["--daemon", tmp_path / "blkd.sock"]
    with subprocess.Popen(
        [PROGRAMS / "python", "-c", LAUNCH, *command], stderr=subprocess.PIPE, text=True
    ) as adding:
        assert adding.stderr.readline() == "creating the image: 50%\n"  # it goes on as an operation
        adding.send_signal(signal.SIGINT)
        assert adding.wait(10) == 1
    listed = CliRunner().invoke(blkd, ["ls", "--json", "--daemon", str(tmp_path / "blkd.sock")])
    assert json.loads(listed.stdout) == {"exports": []}
    assert exports.calls == [("add", "web")]
    assert exports.ended == []
