# SPDX-License-Identifier: Apache-2.0
"""The commands that ask a daemon, against one that is played."""

import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import time

import pytest
from click.testing import CliRunner

from blkd.cli.add import read_settings
from blkd.cli.group import blkd
from blkd.control import addresses
from blkd.daemon.plain_settings import MODELS, NOT_SET, kept_settings
from blkd.export.option import settings_of
from harness.daemon import PROGRAMS
from tests.scripted_daemon import Answer, Call, ScriptedDaemon, problem

VIEW = {
    "name": "web",
    "device": "blk",
    "wanted": "serving",
    "state": "serving",
    "reason": None,
    "pid": 17,
    "image": "/images/web.img",
    "sockets": ["/run/blkd/web.sock"],
    "settings": {"image": "/images/web.img", "queues": 2},
    "pending": [],
    "restarts": 0,
    "since": 1.5,
    "served": {"name": "web", "size": 1 << 30, "features": 48, "front_end": None},
}
SUMMARY = {name: VIEW[name] for name in list(VIEW)[:8]}
EVENT = {"id": 8, "time": 1.5, "event": "serving", "export": "web", "level": "info", "fields": {}}
RESIZED = {"size": 2 << 30, "previous": 1 << 30, "announced": "fetched"}
PAUSED = {"paused": True, "drained": True, "in_flight": 0}
WEB = "/v1/exports/web"
GOLD = "/v1/groups/gold"
GROUP = {
    "name": "gold",
    "limits": {"iops": 2000},
    "members": [
        {"export": "web", "weight": 3, "state": "sharing", "granted": {"iops": 1500.0}},
        {"export": "db", "weight": 1, "state": "stopped", "granted": {}},
    ],
    "reason": None,
}
OPERATION = {"id": "7", "call": f"POST {WEB}/start", "status": "running", "began": 1.0}


@pytest.fixture
def daemon(tmp_path):
    with ScriptedDaemon(tmp_path / "blkd.sock") as played:
        played.on("GET", "/v1/exports", {"exports": [SUMMARY]})
        played.on("GET", WEB, VIEW)
        yield played


@pytest.fixture
def ask(daemon):
    """Runs a command that asks the daemon: its result."""
    return lambda *words: CliRunner().invoke(blkd, [*words, "--daemon", str(daemon.path)])


@pytest.mark.parametrize(
    ("words", "call", "answer"),
    [
        ("ls", Call("GET", "/v1/exports"), {"exports": [SUMMARY]}),
        ("show web", Call("GET", WEB), VIEW),
        ("stats web", Call("GET", f"{WEB}/stats"), {"name": "web", "rings": []}),
        (
            "resize web 2G",
            Call("POST", f"{WEB}/resize", {"size": 2 << 30, "force": False}),
            RESIZED,
        ),
        (
            "resize web 1 --force",
            Call("POST", f"{WEB}/resize", {"size": 1, "force": True}),
            RESIZED,
        ),
        ("pause web", Call("POST", f"{WEB}/pause", {"deadline": 10.0}), PAUSED),
        ("pause web --deadline 1", Call("POST", f"{WEB}/pause", {"deadline": 1.0}), PAUSED),
        ("resume web", Call("POST", f"{WEB}/resume"), VIEW),
        ("retry web", Call("POST", f"{WEB}/retry"), {"retried": 2, "held": 0, "reason": None}),
        ("start web", Call("POST", f"{WEB}/start"), VIEW),
        ("stop web", Call("POST", f"{WEB}/stop"), VIEW),
        ("kill web", Call("POST", f"{WEB}/kill"), VIEW),
        ("upgrade web", Call("POST", f"{WEB}/upgrade"), VIEW),
        ("rm web", Call("DELETE", WEB), {"name": "web", "removed": True, "image_deleted": False}),
        ("rm web --delete-image", Call("DELETE", f"{WEB}?delete-image=true"), {"removed": True}),
        ("logs web", Call("GET", f"{WEB}/logs?lines=100"), {"name": "web", "events": []}),
        ("logs web -n 5", Call("GET", f"{WEB}/logs?lines=5"), {"name": "web", "events": []}),
        ("group ls", Call("GET", "/v1/groups"), {"groups": [GROUP]}),
        ("group show gold", Call("GET", GOLD), GROUP),
        (
            "group add gold iops=2k burst-iops=5000",
            Call(
                "POST",
                "/v1/groups",
                {"name": "gold", "limits": {"iops": "2k", "burst-iops": "5000"}},
            ),
            GROUP,
        ),
        (
            "group set gold bps= iops=3",
            Call("PATCH", GOLD, {"limits": {"bps": None, "iops": "3"}}),
            GROUP,
        ),
        ("group rm gold", Call("DELETE", GOLD), {"name": "gold", "removed": True}),
        ("image ls", Call("GET", "/v1/images"), {"images": []}),
    ],
)
def test_a_command_is_one_call_whose_answer_it_prints(words, call, answer, daemon, ask):
    daemon.on(call.method, call.target.partition("?")[0], answer)
    done = ask(*words.split(), "--json")
    assert done.exit_code == 0, done.output
    assert daemon.calls == [call]
    assert json.loads(done.stdout) == answer
    assert done.stderr == ""


def test_people_get_tables(ask):
    assert "web" in ask("ls").stdout
    shown = ask("show", "web").stdout.splitlines()
    assert shown[0] == "export"
    assert "served: size       1 GiB" in shown
    assert "served: features   0x30" in shown


def test_people_get_a_line_for_each_group(daemon, ask):
    daemon.on("GET", "/v1/groups", {"groups": [GROUP]})
    assert "gold  iops=2000  web, db" in ask("group", "ls").stdout
    daemon.on("GET", GOLD, GROUP)
    assert "web          3  sharing  iops=1500.0" in ask("group", "show", "gold").stdout


def test_names_are_no_part_of_a_path(daemon, ask):
    assert ask("show", "a/b?c").exit_code == 1
    assert daemon.calls == [Call("GET", "/v1/exports/a%2Fb%3Fc")]


@pytest.mark.parametrize(
    "words",
    [
        "show",
        "show web --control c",
        "resize",
        "resize 2G",
        "resize web ten",
        "resize web 2G --control c",
        "pause",
        "stop web again",
        "upgrade",
        "upgrade web --all",
        "upgrade --all --control c",
        "rm",
        "group",
        "group add gold",
        "group add gold iops",
        "group add gold speed=1",
        "group set gold",
        "group rm",
        "set web",
        "set web queues",
        "set web queues=none",
        "set web queues=65",
        "set web queue-size=100",
        "set web cache=unsafe",
        "set web read-only=perhaps",
        "set web colour=red",
        "set web control=c",
        "set web no-discard=yes",
        "add",
        "add a.img --preallocate",
        "add a.img --create 0",
        "add a.img --control c",
        "add-net lan",
        "add-vsock talk",
        "connect --vmm qemu",
        "connect web --vmm qemu --device blk",
        "events --since x",
        "logs web -n 0",
        "completion csh",
    ],
)
def test_wrong_usage_ends_with_2(words, daemon):
    asked = {"BLKD_SOCKET": str(daemon.path)}
    assert CliRunner().invoke(blkd, words.split(), env=asked).exit_code == 2
    assert all(call.method == "GET" for call in daemon.calls)


# ---- refusals


def test_a_refusal_has_the_problem_s_fields(daemon, ask):
    daemon.on("POST", f"{WEB}/start", problem(409, "image-busy", "in use by qemu", "end it"))
    done = ask("start", "web", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert json.loads(done.stderr) == {
        "error": "in use by qemu",
        "hint": "end it",
        "type": "urn:blkd:problem:image-busy",
        "title": "Image busy",
        "status": 409,
        "detail": "in use by qemu",
    }
    assert ask("start", "web").stderr == "Error: in use by qemu\nhint: end it\n"


def test_that_no_daemon_is_there_is_said_with_what_to_do(tmp_path):
    done = CliRunner().invoke(blkd, ["ls", "--daemon", str(tmp_path / "none")])
    error, hint = done.stderr.splitlines()
    assert (done.exit_code, error.startswith("Error: nobody answers at")) == (1, True)
    assert "blkd daemon" in hint


def test_a_daemon_that_does_not_answer_is_given_up_with_a_clear_word(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        done = CliRunner().invoke(blkd, ["ls", "--daemon", str(tmp_path / "s"), "--timeout", "0.1"])
    assert done.exit_code == 1
    assert f"no answer from {tmp_path / 's'} within 0.1 s" in done.stderr


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(b"hello"), id="no-json"),
        pytest.param(Answer(b"hello", 500), id="no-problem"),
        pytest.param(Answer({}, 202), id="no-operation"),
        pytest.param(Answer([], 409), id="no-object"),
    ],
)
def test_an_answer_of_another_program_is_no_riddle(answer, daemon, ask):
    daemon.on("POST", f"{WEB}/start", answer)
    done = ask("start", "web")
    assert done.exit_code == 1
    assert "is not of the control API" in done.stderr


def test_a_call_that_a_daemon_does_not_have_is_no_riddle(ask):
    done = ask("image", "ls")
    assert done.exit_code == 1
    assert "the daemon has no such call" in done.stderr


# ---- what takes long


def running(**fields):
    return {**OPERATION, **fields}


def test_an_operation_is_waited_for_and_says_how_far_it_is(daemon, ask):
    daemon.on("POST", f"{WEB}/start", Answer(OPERATION, 202, {"Location": "/v1/operations/7"}))
    daemon.on(
        "GET",
        "/v1/operations/7",
        running(progress=0.25, doing="filling web.img"),
        running(progress=0.29, doing="filling web.img"),
        running(progress=0.5, doing="filling web.img"),
        running(status="done", ended=3.0, result=VIEW),
    )
    done = ask("start", "web")
    assert done.exit_code == 0
    assert done.stdout.startswith("export\n")
    assert done.stderr.splitlines() == [
        "filling web.img: 25%",
        "filling web.img: 50%",
    ]


def test_a_program_sees_only_the_result_of_an_operation(daemon, ask):
    daemon.on("POST", f"{WEB}/start", Answer(OPERATION, 202))
    daemon.on("GET", "/v1/operations/7", running(status="done", result=VIEW))
    done = ask("start", "web", "--json")
    assert (json.loads(done.stdout), done.stderr) == (VIEW, "")


def test_an_operation_that_fails_is_a_refusal(daemon, ask):
    refused = problem(409, "image-error", "no space").body
    daemon.on("POST", f"{WEB}/start", Answer(OPERATION, 202))
    daemon.on("GET", "/v1/operations/7", running(status="failed", problem=refused))
    done = ask("start", "web", "--json")
    assert (done.exit_code, json.loads(done.stderr)["error"]) == (1, "no space")


def test_an_operation_that_another_has_cancelled_says_so(daemon, ask):
    daemon.on("POST", f"{WEB}/start", Answer(running(status="cancelled"), 202))
    assert "was cancelled" in ask("start", "web").stderr


def test_interrupted_a_command_cancels_its_operation(daemon, ask):
    def interrupt(_call):
        os.kill(os.getpid(), signal.SIGINT)
        return Answer(OPERATION)

    daemon.on("POST", f"{WEB}/start", Answer(OPERATION, 202))
    daemon.on("GET", "/v1/operations/7", interrupt)
    daemon.on("DELETE", "/v1/operations/7", running(status="cancelled"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = ask("start", "web", "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.exit_code, json.loads(done.stderr)["error"]) == (1, "interrupted")
    assert daemon.calls[-1] == Call("DELETE", "/v1/operations/7")


def test_a_terminal_has_a_bar(daemon):
    daemon.on("POST", f"{WEB}/start", Answer(running(progress=0.5, doing="filling"), 202))
    daemon.on("GET", "/v1/operations/7", running(status="done", result=VIEW))
    ours, theirs = pty.openpty()
    command = [PROGRAMS / "blkd", "start", "web", "--daemon", daemon.path]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment) as child:
        os.close(theirs)
        drawn = read_all(ours)
        assert child.wait(10) == 0
    os.close(ours)
    assert b"filling" in drawn
    assert b"50%" in drawn


def read_all(terminal, limit=10.0):
    drawn = b""
    deadline = time.monotonic() + limit
    while select.select([terminal], [], [], deadline - time.monotonic())[0]:
        try:
            drawn += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            return drawn
    raise TimeoutError


# ---- add and set

WRITTEN = {
    "image_format": "raw",
    "read_only": None,
    "queues": "2",
    "queue_size": "128",
    "serial": "17",
    "features_as": "0.1",
    "cache": "writeback",
    "logical_block_size": "4096",
    "engine": "uring",
    "workers": "3",
    "cpus": "2-3,0",
    "limit": "iops=5,bps=1024",
    "poll_us": "0",
    "slow_us": "5000",
    "on_enospc": "hold",
    "on_error": "hold:5",
    "register_memory": None,
    "incoming": None,
    "discard": None,
    "max_discard_segments": "1",
    "socket": "/run/s",
    "socket_group": "kvm",
    "socket_mode": "0666",
    "tap": "tap7",
    "mac": "52:54:00:12:34:56",
    "mtu": "9000",
    "control_queue": None,
    "cid": "5",
    "uds": "/run/u",
    "group": "gold",
    "weight": "3",
    "forward": "80:127.0.0.1:8080",
}
"""Something else than the default of each setting, as it is written; None for a switch."""
NEEDED = {
    "blk": (["add", "/a/web.img"], {"image": "/a/web.img"}),
    "net": (["add-net", "web", "--tap", "tap0"], {"tap": "tap0"}),
    "vsock": (["add-vsock", "web", "--cid", "3"], {"cid": [3]}),
}
MANAGED = [
    pytest.param(device, setting, id=f"{device}-{setting.field}")
    for device, model in MODELS.items()
    for setting in settings_of(model)
    if setting.field not in NOT_SET
]


@pytest.mark.parametrize(("device", "setting"), MANAGED)
def test_an_option_of_add_is_a_setting_of_the_export(device, setting, daemon, ask):
    daemon.on("POST", "/v1/exports", Answer(VIEW, 201))
    words, settings = NEEDED[device]
    text = WRITTEN[setting.field]
    needed = [] if setting.field in settings else words[2:]
    done = ask(*words[:2], *needed, setting.flag, *([] if text is None else [text]))
    assert done.exit_code == 0, done.output
    (call,) = daemon.calls
    sent = call.body["settings"]
    assert sent.keys() == {*settings, setting.field}
    assert sent == kept_settings(device, "web", sent)
    left = {"name": "web", "device": device, "create": None, "start": True}
    assert call.body == {**left, "settings": sent}


def test_an_image_may_be_made_and_named_and_left_alone(daemon, ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    daemon.on("POST", "/v1/exports", Answer(VIEW, 201))
    words = [
        "add",
        "a/db.img",
        "--name",
        "web",
        "--create",
        "1.5G",
        "--preallocate",
        "--stopped",
        "--json",
    ]
    assert json.loads(ask(*words).stdout) == VIEW
    assert daemon.calls[0].body == {
        "name": "web",
        "device": "blk",
        "settings": {"image": str(tmp_path / "a" / "db.img")},
        "create": {"size": 3 << 29, "preallocate": True},
        "start": False,
    }


@pytest.mark.parametrize("image", ["null:1G", "faulty:eio@7:/a/b.img"])
def test_an_image_that_is_no_file_keeps_its_name(image, daemon, ask):
    daemon.on("POST", "/v1/exports", VIEW)
    assert ask("add", image, "--name", "x").exit_code == 0
    assert daemon.calls[0].body["settings"] == {"image": image}


@pytest.mark.parametrize(
    ("device", "words", "settings"),
    [
        ("blk", ["read-only=yes", "discard=off"], {"read_only": True, "discard": False}),
        ("blk", ["queues=8", "cpus=2-3", "cpus=1"], {"queues": 8, "cpus": [1]}),
        (
            "blk",
            ["format=raw", "max-discard-seg=4"],
            {"image_format": "raw", "max_discard_segments": 4},
        ),
        ("blk", ["logical-block-size=512"], {"logical_block_size": 512}),
        ("blk", ["socket-mode=666"], {"socket_mode": "0666"}),
        ("blk", ["serial=", "cache="], {"serial": None, "cache": None}),
        ("blk", ["features=latest"], {"features": "latest"}),
        ("blk", ["features-as=0.1"], {"features_as": "0.1"}),
        ("blk", ["image=/a/b.img"], {"image": "/a/b.img"}),
        ("net", ["mtu=1500", "control-queue=no"], {"mtu": 1500, "control_queue": False}),
        (
            "vsock",
            ["forward=1:unix:/a", "forward=2:unix:/b"],
            {"forward": ["1:unix:/a", "2:unix:/b"]},
        ),
        ("vsock", ["cid=3", "cid=4"], {"cid": [3, 4]}),
    ],
)
def test_settings_are_read_as_the_options_are(device, words, settings):
    assert read_settings(device, tuple(words)) == settings


def test_set_changes_settings(daemon, ask):
    result = {"applied": ["poll_us"], "at_next_start": ["queues"], "export": VIEW}
    daemon.on("PATCH", WEB, result)
    done = ask("set", "web", "queues=8", "poll-us=0", "--json")
    assert json.loads(done.stdout) == result
    assert daemon.calls[-1] == Call("PATCH", WEB, {"settings": {"queues": 8, "poll_us": 0}})


def test_a_setting_that_is_wrong_is_named(ask):
    assert "queue-size: 100 is no power of two" in ask("set", "web", "queue-size=100").stderr
    assert "no setting 'colour'; there are cache, cpus" in ask("set", "web", "colour=1").stderr


# ---- upgrade, events, logs


def test_all_are_upgraded_one_after_the_other_until_one_fails(daemon, ask):
    states = {"a": "serving", "b": "stopped", "c": "paused", "d": "serving"}
    exports = [{**SUMMARY, "name": name, "state": state} for name, state in states.items()]
    exports.append({**SUMMARY, "name": "lan", "device": "net"})
    daemon.on("GET", "/v1/exports", {"exports": exports})
    daemon.on("POST", "/v1/exports/a/upgrade", {**VIEW, "pid": 21})
    daemon.on("POST", "/v1/exports/c/upgrade", problem(500, "upgrade-error", "no", "look"))
    done = ask("upgrade", "--all", "--json")
    assert [call.target for call in daemon.calls[1:]] == [
        "/v1/exports/a/upgrade",
        "/v1/exports/c/upgrade",
    ]
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        "upgraded": [{"name": "a", "pid": 21}],
        "left": [
            {"name": "b", "reason": "it is stopped"},
            {"name": "c", "reason": "no"},
            {"name": "d", "reason": "an earlier one failed"},
            {"name": "lan", "reason": "only a disk goes on in another process"},
        ],
    }
    assert json.loads(done.stderr)["error"] == "c: no"


def stream(*events):
    lines = [
        f"id: {each['id']}\nevent: {each['event']}\ndata: {json.dumps(each)}\n\n" for each in events
    ]
    return Answer(
        (": hello\n\n" + "".join(lines)).encode(), headers={"Content-Type": "text/event-stream"}
    )


def test_events_are_printed_a_line_each(daemon, ask):
    daemon.on("GET", "/v1/events", stream(EVENT, {**EVENT, "id": 9, "fields": {"pid": 3}}))
    done = ask("events")
    assert daemon.calls == [Call("GET", "/v1/events?since=0&follow=false")]
    assert [line.split("  ")[1:] for line in done.stdout.splitlines()] == [
        ["web", "serving"],
        ["web", "serving", "pid=3"],
    ]
    assert [json.loads(line)["id"] for line in ask("events", "--json").stdout.splitlines()] == [
        8,
        9,
    ]


def test_events_are_followed_over_a_restart_of_the_daemon(daemon, ask):
    second = {**EVENT, "id": 9}
    daemon.on("GET", "/v1/events", stream(EVENT), stream(second), problem(403, "forbidden", "no"))
    done = ask("events", "--follow", "--since", "7", "--json")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [8, 9]
    assert [call.target for call in daemon.calls] == [
        "/v1/events?since=7",
        "/v1/events?since=8",
        "/v1/events?since=9",
    ]
    assert done.exit_code == 1


def test_a_log_is_printed_a_line_for_each_event(daemon, ask):
    started = {
        "event": "ring started",
        "level": "info",
        "timestamp": "T",
        "export": "web",
        "ring": 0,
    }
    daemon.on("GET", f"{WEB}/logs", {"name": "web", "events": [started, {"text": "Traceback"}]})
    assert ask("logs", "web").stdout.splitlines() == ["T  info  ring started  ring=0", "Traceback"]


# ---- connect


def test_connect_takes_socket_and_queues_of_an_export(ask):
    done = ask("connect", "web", "--vmm", "libvirt")
    assert "path='/run/blkd/web.sock'" in done.stdout
    assert "queues='2' queue_size='256'" in done.stdout
    assert "queues='3'" in ask("connect", "web", "--vmm", "libvirt", "--queues", "3").stdout
    assert "id=web,path=/run/blkd/web.sock" in ask("connect", "web", "--vmm", "qemu").stdout


@pytest.mark.parametrize(
    ("name", "vmm", "identity"),
    [("web", "qemu", "id=web,"), ("7", "qemu", "id=blkd-7,"), ("a-b", "firecracker", "drives/a_b")],
)
def test_a_vmm_gets_a_name_that_it_allows(name, vmm, identity, daemon, ask):
    daemon.on("GET", f"/v1/exports/{name}", {**VIEW, "name": name})
    assert identity in ask("connect", name, "--vmm", vmm).stdout


def test_a_network_device_is_attached_as_one(daemon, ask):
    daemon.on("GET", WEB, {**VIEW, "device": "net", "settings": {"tap": "tap0"}})
    assert "queues='1'" in ask("connect", "web", "--vmm", "libvirt").stdout


def test_of_several_sockets_one_must_be_meant(daemon, ask):
    both = ["/run/blkd/web-3.sock", "/run/blkd/web-4.sock"]
    daemon.on("GET", WEB, {**VIEW, "device": "vsock", "settings": {"cid": [3, 4]}, "sockets": both})
    refused = ask("connect", "web", "--vmm", "qemu")
    assert (refused.exit_code, both[1] in refused.stderr) == (1, True)
    assert both[1] in ask("connect", "web", "--vmm", "qemu", "--socket", both[1]).stdout


# ---- completion


def complete(daemon_path, *words, shell="bash"):
    environment = {
        **os.environ,
        "_BLKD_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["blkd", *words]),
        "COMP_CWORD": str(len(words)) if shell != "fish" else words[-1],
        "BLKD_SOCKET": str(daemon_path),
    }
    done = subprocess.run(
        [PROGRAMS / "blkd"], env=environment, capture_output=True, text=True, timeout=10, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show", "w"], ["plain,web"]),
        (["rm", ""], ["plain,web"]),
        (["set", "w"], ["plain,web"]),
        (["connect", "w"], ["plain,web"]),
        (["show", "x"], []),
        (["add", "--cache", "write"], ["plain,writeback", "plain,writethrough"]),
        (["upg"], ["plain,upgrade"]),
        (["image", "l"], ["plain,ls"]),
        (["logs", "--li"], ["plain,--lines"]),
    ],
)
def test_a_shell_completes_names_words_and_options(words, expected, daemon):
    assert complete(daemon.path, *words) == expected


def test_every_shell_has_the_name(daemon):
    assert complete(daemon.path, "show", "w", shell="zsh") == ["plain", "web", "serving"]
    assert complete(daemon.path, "show", "w", shell="fish") == ["plain,web", "serving"]


def test_a_name_is_completed_from_the_daemon_that_is_named(daemon, tmp_path):
    words = ("show", "--daemon", str(daemon.path), "w")
    assert complete(tmp_path / "none", *words) == ["plain,web"]


def test_without_a_daemon_nothing_is_completed_and_nothing_said(tmp_path):
    assert complete(tmp_path / "none", "show", "w") == []


def test_a_daemon_that_hangs_holds_up_no_shell(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        assert complete(tmp_path / "s", "show", "w") == []


def test_bash_takes_the_script(daemon):
    script = 'eval "$(blkd completion bash)"; COMP_WORDS=(blkd show w) COMP_CWORD=2;'
    script += ' _blkd_completion blkd; printf "%s\\n" "${COMPREPLY[@]}"'
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "BLKD_SOCKET": str(daemon.path)}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("web\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_printed_for_each_shell(shell):
    done = CliRunner().invoke(blkd, ["completion", shell])
    assert f"_BLKD_COMPLETE={shell}_complete" in done.stdout
    assert json.loads(CliRunner().invoke(blkd, ["completion", shell, "--json"]).stdout) == {
        "shell": shell,
        "script": done.stdout,
    }


# ---- where the daemon is


def test_the_daemon_s_socket_is_the_user_s_own_if_there_is_one(tmp_path):
    run = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert addresses.daemon_socket(run, 1000) == "/run/blkd/blkd.sock"
    (tmp_path / "blkd").mkdir()
    os.mknod(tmp_path / "blkd" / "blkd.sock", stat.S_IFSOCK | 0o600)
    assert addresses.daemon_socket(run, 1000) == str(tmp_path / "blkd" / "blkd.sock")
    assert addresses.daemon_socket(run, 0) == "/run/blkd/blkd.sock"
    assert addresses.daemon_socket({}, 4000000000) == "/run/blkd/blkd.sock"
    assert addresses.daemon_socket({**run, "BLKD_SOCKET": "/b"}, 1000) == "/b"
