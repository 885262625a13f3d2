# SPDX-License-Identifier: Apache-2.0
"""What hangs around blkd, a file system or a reader of its output, stops neither it nor its end."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import time

import pytest

from harness.daemon import PROGRAMS, Daemon, image, run
from harness.frontend import FrontEnd, Request
from harness.fuse import FLUSH, GETATTR, READ, FileSystem

MIB = 1 << 20
END_LIMIT = 6.0  # seconds: docs/commands.md says 5
LIMIT = 10.0  # seconds for what takes milliseconds


@pytest.fixture
def disk(tmp_path):
    return image(tmp_path / "disk.img", MIB)


@pytest.fixture
def fuse(tmp_path):
    """A file system whose files may be closed without being asked: so a process can be killed."""
    with FileSystem(tmp_path / "fuse", MIB, writeback=True) as mounted:
        mounted.answers[FLUSH] = lambda: errno.ENOSYS
        with mounted.path.open("rb+"):
            pass
        mounted.wait_for(FLUSH)
        yield mounted


def full_pipe():
    """A pipe that takes no byte more: its ends for reading and writing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    return reader, writer


@contextlib.contextmanager
def serving(disk, tmp_path, **streams):
    """`blkd serve` with these streams, once its sockets are there."""
    socket, control = tmp_path / "disk.sock", tmp_path / "control.sock"
    command = [PROGRAMS / "blkd", "serve", disk, "--socket", socket, "--control", control]
    environment = os.environ | {"BLKD_LOG": "debug"}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            deadline = time.monotonic() + LIMIT
            while not socket.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process, socket, control
        finally:
            process.kill()


def ends_in_time(process):
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(END_LIMIT) == 0
    return time.monotonic() - began < END_LIMIT


def test_a_log_that_nobody_reads_stops_nothing(disk, tmp_path):
    reader, writer = full_pipe()
    with serving(disk, tmp_path, stderr=writer, stdout=subprocess.DEVNULL) as (
        process,
        socket,
        control,
    ):
        for _ in range(50):
            with FrontEnd.connect(socket) as front_end:
                front_end.send(99)
                assert front_end.wait_closed()
        with FrontEnd.connect(socket) as front_end:
            assert front_end.disk().write(0, bytes(512)) == 0
        assert run("show", "--control", control).returncode == 0
        assert ends_in_time(process)
    os.close(reader)
    os.close(writer)


def test_lines_that_a_full_log_lost_are_counted_and_the_last_ones_kept(disk, tmp_path):
    reader, writer = full_pipe()
    with serving(disk, tmp_path, stderr=writer, stdout=subprocess.DEVNULL) as (process, socket, _):
        os.close(writer)
        with FrontEnd.connect(socket) as front_end:
            for _ in range(4000):  # at debug level, 100 bytes each and more
                front_end.call(Request.GET_FEATURES)
        process.send_signal(signal.SIGTERM)
        said = b""
        while piece := os.read(reader, 1 << 16):
            said += piece
        assert process.wait(END_LIMIT) == 0
    os.close(reader)
    events = [json.loads(line) for line in said.decode().lstrip("x").splitlines()]
    assert sum(event.get("count", 0) for event in events) > 1000
    assert "log lines dropped" in [event["event"] for event in events]
    assert "stopping" in [event["event"] for event in events[-5:]]


def test_an_announcement_that_nobody_reads_stops_nothing(disk, tmp_path):
    reader, writer = full_pipe()
    with serving(disk, tmp_path, stdout=writer, stderr=subprocess.DEVNULL) as (process, socket, _):
        with FrontEnd.connect(socket) as front_end:
            assert front_end.disk().write(0, bytes(512)) == 0
        assert ends_in_time(process)
    os.close(reader)
    os.close(writer)


def test_an_image_whose_file_system_hangs_stops_neither_the_control_api_nor_the_end(fuse, tmp_path):
    with Daemon(fuse.path, tmp_path, "--cache", "writeback") as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            assert front_end.disk().read(0, 512)[0] == 0
            fuse.silent |= {GETATTR, READ}
            fuse.victim = daemon.process.pid
            daemon.wait_for_log("image cannot be measured", timeout=2 * LIMIT)
            assert daemon.call("show")["size"] == MIB
            assert front_end.capacity() == MIB // 512
            daemon.process.send_signal(signal.SIGTERM)
            assert front_end.wait_closed(END_LIMIT)
            # A request that the server has read keeps the process; its sockets are gone.
            deadline = time.monotonic() + END_LIMIT
            while not refused(daemon.socket):
                assert time.monotonic() < deadline
        fuse.abort()
        assert daemon.process.wait(LIMIT) == 0


def refused(path):
    try:
        FrontEnd.connect(path).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    time.sleep(0.01)
    return False


def test_an_image_on_a_stopped_server_does_not_hold_up_the_end(fuse, tmp_path):
    with Daemon(fuse.path, tmp_path, "--cache", "writeback") as daemon:
        daemon.ready()
        fuse.stop_reading()
        daemon.wait_for_log("image cannot be measured", timeout=2 * LIMIT)
        assert ends_in_time(daemon.process)


def test_a_process_that_hangs_before_it_serves_ends_in_time(fuse, tmp_path):
    fuse.stop_reading()
    with Daemon(fuse.path, tmp_path) as daemon:
        deadline = time.monotonic() + LIMIT
        while not waits_for_a_server(daemon.process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ends_in_time(daemon.process)


def waits_for_a_server(pid):
    for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with open(f"/proc/{pid}/task/{task}/wchan") as file:  # noqa: PTH123
            if "request_wait_answer" in file.read():
                return True
    return False
