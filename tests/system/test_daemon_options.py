# SPDX-License-Identifier: Apache-2.0
"""Every option of the commands that add an export, through a real daemon to what is served.

An option that a command gets and that is not tried here fails the first test.
"""

import grp
import json
import os
import struct
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from blkd.cli.group import blkd
from harness.frontend import FrontEnd
from harness.host import HostDaemon
from harness.network import Namespace

MIB = 1 << 20
MAX_DISCARD_SEG = 40  # where it lies in the configuration space (virtio 1.3, 5.2.4)
GROUP = next(group for group in grp.getgrall() if group.gr_gid != os.getgid())
CPU = min(os.sched_getaffinity(0))
MAC = "52:54:00:aa:bb:cc"
OF_THE_CALL = {"--daemon", "--timeout", "--json"}
"""Options that are not the export's: how the daemon is asked."""


def served(field, value):
    """Looks whether what is served says this of itself."""
    return lambda shown: shown["served"][field] == value


def fact(field, value):
    """Looks whether a device that is no disk says this of itself."""
    return lambda shown: shown["served"]["devices"][0]["facts"][field] == value


def kept(field, value):
    """Looks whether the daemon keeps this setting of an export that is served with it."""
    return lambda shown: shown["served"] and shown["settings"][field] == value


def has_mode(shown):
    return Path(shown["sockets"][0]).stat().st_mode & 0o777 == 0o600


def has_group(shown):
    return Path(shown["sockets"][0]).stat().st_gid == GROUP.gr_gid


def listens_at(name):
    return lambda shown: Path(shown["sockets"][0]).name == name


def is_pinned(shown):
    """Whether a thread of its process, and so its one worker, keeps to one CPU."""
    threads = [int(each.name) for each in Path(f"/proc/{shown['pid']}/task").iterdir()]
    return any(os.sched_getaffinity(thread) == {CPU} for thread in threads)


def is_stopped(shown):
    return shown["state"] == "stopped" and shown["served"] is None


def config(shown, offset, size):
    """Bytes that a front end finds in the configuration space."""
    with FrontEnd.connect(shown["sockets"][0]) as front_end:
        front_end.negotiate()
        return front_end.config(offset, size)


SOCKET = {
    "--socket-group": (["--socket-group", GROUP.gr_name], has_group),
    "--socket-mode": (["--socket-mode", "0600"], has_mode),
    "--stopped": (["--stopped"], is_stopped),
}
DISK = {
    "--name": (["--name", "other"], lambda shown: shown["name"] == "other"),
    "--socket": (["--socket", "run/other.sock"], listens_at("other.sock")),
    "--format": (["--format", "raw"], served("size", MIB)),
    "--read-only": (["--read-only"], served("read_only", True)),
    "--queues": (["--queues", 3], served("queues", 3)),
    "--queue-size": (["--queue-size", 64], served("queue_size", 64)),
    "--serial": (["--serial", "of-mine"], served("serial", "of-mine")),
    "--features-as": (["--features-as", "0.1"], kept("features_as", "0.1")),
    "--cache": (["--cache", "writeback"], served("cache", "writeback")),
    "--logical-block-size": (["--logical-block-size", 4096], served("logical_block_size", 4096)),
    "--engine": (["--engine", "inline"], served("engine", "inline")),
    "--workers": (["--workers", 2], served("workers", 2)),
    "--register-memory": (["--register-memory"], kept("register_memory", True)),
    "--incoming": (["--incoming"], served("image_locked", False)),
    "--no-discard": (["--no-discard"], served("discard", False)),
    "--max-discard-seg": (
        ["--max-discard-seg", 5],
        lambda shown: config(shown, MAX_DISCARD_SEG, 4) == struct.pack("<I", 5),
    ),
    "--create": (["--create", "2M"], served("size", 2 * MIB)),
    "--preallocate": (
        ["--create", "2M", "--preallocate"],
        lambda shown: Path(shown["image"]).stat().st_blocks * 512 >= 2 * MIB,
    ),
    "--cpus": (["--cpus", CPU], is_pinned),
    "--poll-us": (["--poll-us", 7], served("poll_us", 7)),
    "--on-enospc": (["--on-enospc", "hold"], served("on_enospc", "hold")),
    "--on-error": (["--on-error", "hold:5"], served("on_error", "hold:5")),
    "--slow-us": (["--slow-us", 9], kept("slow_us", 9)),
    "--limit": (["--limit", "iops=9"], served("limit", "iops=9")),
    "--group": (["--group", "gold"], kept("group", "gold")),
    "--weight": (["--group", "gold", "--weight", 3], kept("weight", 3)),
    **SOCKET,
}
VSOCK = {
    "--cid": ([], lambda shown: config(shown, 0, 8) == struct.pack("<Q", 9)),
    "--socket": (["--socket", "run/other.sock"], listens_at("other.sock")),
    "--uds": (["--uds", "run/v.uds"], lambda shown: Path(shown["settings"]["uds"][0]).is_socket()),
    "--group": (["--group", "friends"], kept("group", ["friends"])),
    "--forward": (["--forward", "80:127.0.0.1:9"], kept("forward", ["80:127.0.0.1:9"])),
    **SOCKET,
}
NET = {
    "--socket": (["--socket", "run/other.sock"], listens_at("other.sock")),
    "--tap": ([], fact("tap", "tap0")),
    "--queues": (["--queues", 2], fact("pairs", 2)),
    "--mac": (["--mac", MAC], fact("mac", MAC)),
    "--mtu": (["--mtu", 1400], fact("mtu", 1400)),
    "--control-queue": (["--control-queue"], kept("control_queue", True)),
    "--workers": (["--queues", 2, "--workers", 2], kept("workers", 2)),
    "--cpus": (["--cpus", CPU], is_pinned),
    "--poll-us": (["--poll-us", 7], kept("poll_us", 7)),
    **SOCKET,
}
COMMANDS = {
    "add": (["images/a.img"], DISK),
    "add-vsock": (["a", "--cid", 9], VSOCK),
    "add-net": (["a", "--tap", "tap0"], NET),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with (
        Namespace() as namespace,
        HostDaemon(tmp_path_factory.mktemp("host"), namespace, taps=["tap0"]) as daemon,
    ):
        daemon.ready()
        daemon.call("POST", "/v1/groups", {"name": "gold", "limits": {"iops": 1000}})
        yield daemon


@pytest.fixture
def ask(host, monkeypatch):
    """Runs a command in the folder of the daemon: what it prints."""
    monkeypatch.chdir(host.folder)
    monkeypatch.setenv("BLKD_SOCKET", str(host.socket))

    def ask(*words):
        done = CliRunner().invoke(blkd, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return ask


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_tried(command):
    found = blkd.get_command(click.Context(blkd), command)
    options = {
        (each.secondary_opts or each.opts)[0]
        for each in found.params
        if isinstance(each, click.Option)
    }
    assert options - OF_THE_CALL == set(COMMANDS[command][1])


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command, (_, table) in COMMANDS.items() for option in table],
)
def test_an_option_is_in_force_in_what_is_served(command, option, host, ask):
    first, table = COMMANDS[command]
    words, is_in_force = table[option]
    if command == "add" and "--create" not in words:
        host.image("a.img", MIB)
    shown = ask(command, *first, *words)
    try:
        assert is_in_force(shown), shown
    finally:
        ask("rm", shown["name"])
        (host.images / "a.img").unlink(missing_ok=True)
