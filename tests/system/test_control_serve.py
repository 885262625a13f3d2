# SPDX-License-Identifier: Apache-2.0
import contextlib
import grp
import json
import os
import signal
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from blkd.control import client
from blkd.errors import ControlError
from harness.daemon import PROGRAMS, Daemon, Process, image, run
from harness.frontend import FrontEnd
from tests.engines import late

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return image(tmp_path / "demo.img")


@pytest.fixture
def daemon(disk, tmp_path):
    with Daemon(disk, tmp_path) as started:
        yield started


def test_one_line_of_json_says_that_it_is_ready(daemon, disk):
    state = daemon.ready()
    assert (state["name"], state["image"]) == ("demo", str(disk))
    assert (state["size"], state["socket"]) == (MIB, str(daemon.socket))
    assert state == daemon.call("show")
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        assert front_end.capacity() == MIB // 512


def test_json_may_be_asked_for_before_the_command(disk, tmp_path):
    command = ["blkd", "--json", "serve", disk, "--socket", tmp_path / "disk.sock"]
    with Process(command, tmp_path / "log", block=True) as process:
        assert json.loads(process.line())["name"] == "demo"
        assert process.end() == 0
        assert [json.loads(line)["event"] for line in process.errors().splitlines()]


def test_people_see_in_a_table_that_it_is_ready(disk, tmp_path):
    command = ["blkd", "serve", disk, "--socket", tmp_path / "disk.sock"]
    with Process(command, tmp_path / "log") as process:
        assert process.line() == "serving\n"
        assert process.end() == 0
        rows = process.process.stdout.read().decode().splitlines()
    shown = {name: value.strip() for name, value in (row.split("  ", 1) for row in rows)}
    assert (shown["name"], shown["image"], shown["size"]) == ("demo", str(disk), "1 MiB")


def test_people_get_a_table(disk, tmp_path):
    with Daemon(disk, tmp_path) as daemon:
        daemon.ready()
        shown = run("show", "--control", daemon.control).stdout
        assert "demo" in shown
        assert "1 MiB" in shown
        assert not shown.startswith("{")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["for people", "for programs"])
def test_no_other_file_is_taken_for_a_standard_error_that_is_closed(disk, tmp_path, options):
    path = tmp_path / "disk.sock"
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", PROGRAMS / "blkd", "serve", disk]
    command += ["--socket", path, *options]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as process:
        try:
            with FrontEnd.connect(path) as front_end:
                assert front_end.disk().flush() == 0
            assert Path(f"/proc/{process.pid}/fd/2").readlink() == Path(os.devnull)
        finally:
            process.terminate()
        assert process.wait(6) == 0


def test_a_call_that_a_process_does_not_have_is_no_riddle(daemon):
    daemon.ready()
    with pytest.raises(ControlError, match="no call POST /v1/export/novelty") as refused:
        client.call(str(daemon.control), "POST", "/v1/export/novelty")
    assert "older version" in refused.value.hint


def test_only_the_owner_may_control(daemon):
    daemon.ready()
    assert stat.S_IMODE(daemon.control.stat().st_mode) == 0o600


def test_who_may_connect_is_as_configured_also_after_a_crash(disk, tmp_path):
    options = ["--socket-group", "12345", "--socket-mode", "0620"]
    options += ["--control-group", "daemon", "--control-mode", "660"]
    for _ in range(2):
        with Daemon(disk, tmp_path, *options) as daemon:
            daemon.ready()
            found = [(path.stat().st_gid, path.stat().st_mode & 0o777) for path in daemon.sockets]
            assert found == [(12345, 0o620), (grp.getgrnam("daemon").gr_gid, 0o660)]
            daemon.end(signal.SIGKILL)


def test_who_may_connect_by_default(daemon):
    daemon.ready()
    modes = [path.stat().st_mode & 0o777 for path in daemon.sockets]
    assert modes == [0o660, 0o600]


@pytest.mark.parametrize("which", ["socket", "control"])
def test_an_unknown_group_is_refused_before_anything_listens(disk, tmp_path, which):
    sockets = tmp_path / "d.sock", tmp_path / "c.sock"
    command = ["serve", disk, "--socket", sockets[0], "--control", sockets[1]]
    refused = run(*command, f"--{which}-group", "no-such-group")
    assert refused.returncode == 1
    assert "no group no-such-group" in refused.stderr
    assert not any(path.exists() for path in sockets)


@pytest.mark.parametrize("mode", ["rw", "0888", "1777", "66", "-660", "0o660", ""])
def test_a_mode_is_three_octal_digits(disk, tmp_path, mode):
    refused = run("serve", disk, "--socket", tmp_path / "d.sock", "--socket-mode", mode)
    assert refused.returncode == 2
    assert "0660" in refused.stderr


def test_the_manager_is_notified_once_it_is_ready(disk, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Daemon(disk, tmp_path, env=environment) as daemon:
            assert manager.recv(4096).startswith(b"READY=1\n")
            FrontEnd.connect(daemon.socket, timeout=0).close()
            daemon.process.send_signal(signal.SIGHUP)
            assert manager.recv(4096).startswith(b"RELOADING=1\n")
            assert manager.recv(4096).startswith(b"READY=1\n")
            assert daemon.end() == 0
            assert manager.recv(4096) == b"STOPPING=1"


def test_the_counters_count(daemon):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        assert disk.write(0, bytes(4096)) == 0
        assert disk.read(0, 512)[0] == 0
        assert disk.flush() == 0
        counters = daemon.call("stats")["rings"][0]
    assert (counters["writes"], counters["reads"], counters["flushes"]) == (1, 1, 1)
    assert (counters["bytes_written"], counters["bytes_read"]) == (4096, 512)


def test_the_front_end_shows_while_it_is_connected(daemon):
    assert daemon.ready()["front_end"] is None
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.disk()
        assert daemon.call("show")["front_end"] is not None
    daemon.wait_for("front_end", None)


def test_growing_with_nobody_connected_says_so(daemon, disk):
    daemon.ready()
    result = daemon.call("resize", "2M")
    assert (result["size"], result["previous"]) == (2 * MIB, MIB)
    assert result["announced"] == "not-connected"
    assert disk.stat().st_size == 2 * MIB
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        assert front_end.capacity() == 2 * MIB // 512


def test_growing_returns_once_the_front_end_has_the_new_size(daemon, background):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.disk()
        front_end.config(0, 60)
        resized = background.submit(daemon.call, "resize", "2M")
        _, config = front_end.answer_backend()
        assert struct.unpack_from("<Q", config)[0] == 2 * MIB // 512
        assert resized.result(10)["announced"] == "fetched"


def test_shrinking_needs_force(daemon, disk):
    daemon.ready()
    refused = run("resize", "512K", "--control", daemon.control)
    assert refused.returncode == 1
    assert "hint: " in refused.stderr
    assert disk.stat().st_size == MIB
    assert daemon.call("resize", "512K", "--force")["size"] == MIB // 2
    assert disk.stat().st_size == MIB // 2


def test_a_size_between_blocks_is_refused(daemon, disk):
    daemon.ready()
    assert run("resize", str(MIB + 100), "--control", daemon.control).returncode == 1
    assert disk.stat().st_size == MIB


def test_sighup_reads_the_size_again(daemon, disk):
    daemon.ready()
    os.truncate(disk, 3 * MIB)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("size", 3 * MIB)


def test_a_pause_makes_requests_wait_and_loses_none(daemon):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        assert daemon.call("pause", "--deadline", "5")["drained"]
        head = disk.submit(1, 0, bytes(512))
        with pytest.raises(TimeoutError):
            disk.wait(head, timeout=0.3)
        assert daemon.call("show")["state"] == "paused"
        daemon.call("resume")
        assert disk.wait(head)[0].status == 0
        assert daemon.call("show")["state"] == "serving"


def test_a_pause_without_a_deadline_knows_at_once_that_nothing_is_in_flight(daemon):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        for _ in range(10):
            assert daemon.pause(0) == 0
            daemon.call("resume")
            assert disk.read(0, 512)[0] == 0


@pytest.mark.usefixtures("late_engine")
@pytest.mark.parametrize("deadline", [0, 0.2])
def test_a_pause_succeeds_only_when_nothing_is_in_flight(disk, tmp_path, deadline):
    with Daemon(disk, tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            guest = front_end.disk()
            (stall := late.stall_of(disk)).touch()
            heads = [guest.submit(1, sector, b"s" * 512) for sector in range(5)]
            daemon.wait_for("in_flight", 5)
            short = run("pause", "--control", daemon.control, "--deadline", deadline)
            assert short.returncode == 1
            assert "5 requests" in short.stderr
            assert daemon.pause(deadline) == 5
            stall.unlink()
            assert daemon.pause(10) == 0
            assert all(done.status == 0 for done in guest.wait(*heads))
            daemon.wait_for_log("pause incomplete")
            daemon.wait_for_log("paused", export="demo")
            daemon.call("resume")
            daemon.wait_for_log("resumed", export="demo")


def test_stop_returns_once_the_disk_has_ended_in_good_order(disk, tmp_path):
    with Daemon(f"faulty:delay=1s@write:{disk}", tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            guest = front_end.disk()
            heads = [guest.submit(1, sector, b"s" * 512) for sector in range(5)]
            assert guest.read(0, 512)[0] == 0  # what came before it has been fetched
            assert daemon.call("stop")["name"] == "demo"
            assert daemon.end(None, timeout=0) == 0
            assert all(done.status == 0 for done in guest.wait(*heads))
    assert not daemon.socket.exists()


def test_stop_where_nobody_serves_says_so(tmp_path):
    refused = run("stop", "--control", tmp_path / "none.sock")
    assert refused.returncode == 1
    assert "nobody answers" in refused.stderr


def test_every_event_names_its_export(daemon):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.disk()
        assert run("resize", "512K", "--control", daemon.control).returncode == 1
    daemon.wait_for("front_end", None)
    assert daemon.end() == 0
    events = [json.loads(line) for line in daemon.errors().splitlines()]
    assert {"ring started", "front end left", "call refused"} <= {e["event"] for e in events}
    assert {event.get("export") for event in events} == {"demo"}


def test_kill_answers_and_ends_at_once(daemon):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.disk()
        assert daemon.call("kill")["name"] == "demo"
        assert daemon.end(None) == 0
        assert front_end.wait_closed()


def test_no_socket_file_stays_behind(daemon):
    daemon.ready()
    assert daemon.end() == 0
    assert not daemon.socket.exists()
    assert not daemon.control.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_before_the_first_line_ends_it_in_order(disk, tmp_path, number):
    with Daemon(disk, tmp_path, block=True) as daemon:
        assert daemon.end(number) == 0
    assert not daemon.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_signals_without_end_end_it_in_order(disk, tmp_path, number):
    with Daemon(disk, tmp_path) as daemon:
        daemon.ready()
        while daemon.process.poll() is None:
            daemon.process.send_signal(number)
        assert daemon.process.returncode == 0


def test_sigterm_lets_the_requests_in_flight_complete(daemon, disk):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        guest = front_end.disk()
        for sector in range(16):
            guest.submit(1, sector, b"\x5a" * 512)
        assert daemon.end() == 0
        served = guest.ring.used_idx
    assert disk.read_bytes().count(0x5A) == served * 512  # what was not fetched stays available


def test_a_peer_that_never_reads_does_not_hold_up_the_end(daemon):
    daemon.ready()
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:  # until nobody takes any more
                front_end.send(1)
        assert daemon.end() == 0


def test_the_socket_of_a_living_blkd_is_refused(daemon, tmp_path):
    daemon.ready()
    other = image(tmp_path / "other.img")
    refused = run("serve", other, "--socket", daemon.socket)
    assert refused.returncode == 1
    assert f"in use by process {daemon.process.pid}" in refused.stderr
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()


def test_what_a_killed_blkd_left_is_replaced(disk, tmp_path):
    with Daemon(disk, tmp_path) as first:
        first.ready()
        first.end(signal.SIGKILL)
    assert first.socket.exists()
    with Daemon(disk, tmp_path) as second:
        second.ready()
        second.call("show")


def test_a_control_socket_in_use_leaves_nothing_behind(daemon, tmp_path):
    daemon.ready()
    other = image(tmp_path / "other.img")
    refused = run("serve", other, "--socket", tmp_path / "other.sock", "--control", daemon.control)
    assert refused.returncode == 1
    assert "in use" in refused.stderr
    assert not (tmp_path / "other.sock").exists()
    daemon.call("show")


@pytest.mark.parametrize("kind", ["missing", "directory", "empty"])
def test_an_unfit_image_is_refused_before_anything_listens(tmp_path, kind):
    path = tmp_path / "a.img"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    sockets = tmp_path / "d.sock", tmp_path / "c.sock"
    refused = run("serve", path, "--socket", sockets[0], "--control", sockets[1])
    assert refused.returncode == 1
    assert str(path) in refused.stderr
    assert refused.stderr.count("\n") <= 2
    assert not any(path.exists() for path in sockets)


def test_a_socket_in_a_missing_directory_is_refused_with_the_directory(disk, tmp_path):
    refused = run("serve", disk, "--socket", tmp_path / "no" / "d.sock", "--json")
    assert refused.returncode == 1
    refusal = json.loads(refused.stderr.splitlines()[-1])
    assert refusal["hint"] == f"make the directory {tmp_path / 'no'} first"


def test_a_socket_path_too_long_is_refused(disk, tmp_path):
    refused = run("serve", disk, "--socket", tmp_path / ("x" * 108))
    assert refused.returncode == 1
    assert "107" in refused.stderr


def test_every_answer_of_the_commands_is_json_if_asked(daemon):
    daemon.ready()
    for verb in ("show", "stats", "resume"):
        done = run(verb, "--control", daemon.control, "--json")
        assert done.stdout.count("\n") == 1
        assert isinstance(json.loads(done.stdout), dict)


@pytest.mark.parametrize("what", ["image", "name", "socket", "control"])
def test_a_name_that_is_no_utf8_is_refused_before_anything_listens(tmp_path, what):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    path = image(Path(odd if what == "image" else tmp_path / "disk.img"))
    socket_path = odd if what == "socket" else tmp_path / "a.sock"
    options = {"name": ("--name", "\udcff"), "control": ("--control", odd)}.get(what, ())
    refused = run("serve", path, "--socket", socket_path, *options)
    assert refused.returncode == 1
    assert f"the {what}" in refused.stderr
    assert "is no UTF-8" in refused.stderr
    assert "hint:" in refused.stderr
    assert not list(tmp_path.glob("*.sock"))


def test_an_image_with_an_odd_name_is_served_through_a_link(tmp_path):
    odd = image(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    link = tmp_path / "plain.img"
    link.symlink_to(odd)
    with Daemon(link, tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            assert front_end.disk().write(0, bytes(512)) == 0
        assert daemon.call("show")["image"] == str(link)
        assert daemon.end() == 0


@pytest.mark.parametrize("command", [["show"], ["stats"], ["resume"], ["upgrade"]], ids=" ".join)
def test_a_process_that_is_stopped_is_not_waited_for_without_end(daemon, command):
    daemon.ready()
    daemon.process.send_signal(signal.SIGSTOP)
    refusal = run(*command, "--control", daemon.control, "--timeout", 0.2, timeout=8)
    daemon.process.send_signal(signal.SIGCONT)
    assert refusal.returncode == 1
    assert "within 0.2 s" in refusal.stderr
    assert "--timeout" in refusal.stderr
    assert daemon.call("show")["state"] == "serving"
