# SPDX-License-Identifier: Apache-2.0
"""`blkd bench` as a program, against `blkd serve` and qemu-storage-daemon."""

import json
import os
import shutil
import signal
import time

import pytest

from harness.daemon import Daemon, Process, image, run

MIB = 1 << 20
EXPORT = "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,writable=on,num-queues=2"
SHORT = ("--runtime", "0.2")
FIELDS = {
    "rw", "bs", "iodepth", "queues", "packed", "event_idx", "indirect", "seconds", "ios", "iops",
    "bytes_per_second", "errors", "latency_ns", "latency_ns_by_op", "client_cpu_seconds",
    "target_cpu_seconds", "target_cpu_us_per_io", "kicks", "verified_blocks",
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path):
    with Daemon(image(tmp_path / "disk.img", 4 * MIB), tmp_path) as daemon:
        daemon.ready()
        yield daemon


@pytest.fixture
def qemu(tmp_path):
    path = tmp_path / "qemu.sock"
    program = shutil.which("qemu-storage-daemon")
    disk = image(tmp_path / "qemu.img", 4 * MIB)
    command = [
        program,
        *("--blockdev", f"driver=file,node-name=disk,filename={disk},discard=unmap"),
        *("--export", f"{EXPORT},addr.path={path}"),
    ]
    with Process(command, tmp_path / "qemu.log") as process:
        deadline = time.monotonic() + 10
        while not path.exists():
            assert process.process.poll() is None, process.errors()
            assert time.monotonic() < deadline
        process.socket, process.image = path, disk
        yield process


def load(target, *options, status=0):
    """Run `blkd bench`: the JSON object that it prints."""
    done = run("bench", target.socket, *options, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def wait_for_requests(daemon, timeout=10):
    """Wait until the load has begun."""
    deadline = time.monotonic() + timeout
    while not any(daemon.call("stats")["total"][kind] for kind in ("reads", "writes")):
        assert time.monotonic() < deadline


loads = pytest.mark.parametrize(
    "rw", ["read", "write", "randread", "randwrite", "randrw", "trim", "flush"]
)


@loads
def test_every_load_is_answered_by_blkd(daemon, rw):
    shown = load(
        daemon, "--rw", rw, *SHORT, "--iodepth", "4", "--queues", "2", "--pid", daemon.process.pid
    )
    assert shown.keys() >= FIELDS
    assert (shown["rw"], shown["errors"]) == (rw, 0)
    assert shown["ios"] > 10
    assert shown["iops"] == pytest.approx(shown["ios"] / shown["seconds"], rel=0.01)
    assert shown["latency_ns"]["min"] <= shown["latency_ns"]["p50"] <= shown["latency_ns"]["max"]
    assert 0 < shown["target_cpu_seconds"] < 10
    per_io = shown["target_cpu_seconds"] * 1e6 / shown["ios"]
    assert shown["target_cpu_us_per_io"] == pytest.approx(per_io, rel=0.01)


def test_both_sides_count_the_same_requests(daemon):
    shown = load(
        daemon, "--rw", "randrw", "--iodepth", "8", "--queues", "3", "--ramp", "0.1", *SHORT
    )
    total = daemon.call("stats")["total"]
    assert total["reads"] + total["writes"] > shown["ios"]  # the ramp's do not count
    shown = load(daemon, "--rw", "flush", *SHORT)
    assert daemon.call("stats")["total"]["flushes"] == shown["ios"]


@loads
def test_every_load_is_answered_by_qemu(qemu, rw):
    shown = load(qemu, "--rw", rw, *SHORT, "--iodepth", "4", "--queues", "2")
    assert (shown["rw"], shown["errors"]) == (rw, 0)
    assert shown["ios"] > 10


def test_qemu_keeps_what_was_written(qemu):
    shown = load(qemu, "--rw", "randwrite", "--verify", "--bs", "64K", "--iodepth", "8")
    assert shown["wrong_blocks"] == 0
    assert load(qemu, "--verify-only", "--bs", "64K")["verified_blocks"] == 64


def test_qemu_has_no_packed_rings_and_the_error_says_so(qemu):
    done = run("bench", qemu.socket, "--packed")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: the back end does not offer RING_PACKED",
        "hint: leave --packed out",
    ]


@pytest.mark.parametrize(
    ("rw", "ring"),
    [
        pytest.param("write", [], id="write"),
        pytest.param("randwrite", [], id="randwrite"),
        pytest.param("randrw", [], id="randrw"),
        pytest.param("randrw", ["--no-event-idx", "--no-indirect"], id="split-plain"),
        pytest.param("randrw", ["--no-indirect"], id="split-direct"),
        pytest.param("randrw", ["--packed"], id="packed"),
        pytest.param("randrw", ["--packed", "--no-event-idx", "--no-indirect"], id="packed-plain"),
    ],
)
def test_what_was_written_is_there_for_another_process(daemon, rw, ring):
    wrote = run(
        "bench", daemon.socket, "--rw", rw, "--verify", "--json", "--seed", "7",
        "--iodepth", "16", "--queues", "2", *ring,
    )  # fmt: skip
    assert wrote.returncode == 0, wrote.stderr
    shown = json.loads(wrote.stdout)
    assert shown["verified_blocks"] >= 1024
    assert ("--packed" in ring, "--no-event-idx" not in ring, "--no-indirect" not in ring) == (
        shown["packed"],
        shown["event_idx"],
        shown["indirect"],
    )
    found = load(daemon, "--verify-only", "--seed", "7", "--iodepth", "4")
    assert (found["verified_blocks"], found["wrong_blocks"]) == (1024, 0)


def test_several_passes_leave_what_can_be_checked(daemon):
    shown = load(
        daemon, "--rw", "randwrite", "--verify", *SHORT, "--size", "256K", "--iodepth", "4"
    )
    assert shown["ios"] > 3 * 64
    assert shown["verified_blocks"] == 64
    assert load(daemon, "--verify-only", "--size", "256K")["verified_blocks"] == 64


def test_a_corrupt_byte_is_found_where_it_is(daemon, tmp_path):
    load(daemon, "--rw", "write", "--verify", "--size", "1M")
    with (tmp_path / "disk.img").open("r+b") as file:
        file.seek(123_456)
        byte = file.read(1)[0]
        file.seek(123_456)
        file.write(bytes([byte ^ 0x10]))
        file.flush()
        os.fsync(file.fileno())
    shown = load(daemon, "--verify-only", "--size", "1M", status=1)
    assert (shown["verified_blocks"], shown["wrong_blocks"]) == (255, 1)
    (wrong,) = shown["wrong"]
    assert (wrong["what"], wrong["offset"], wrong["byte"]) == ("damaged", 122_880, 123_456)
    for_people = run("bench", daemon.socket, "--verify-only", "--size", "1M")
    assert for_people.returncode == 1
    assert "at 122880: byte 123456: found" in for_people.stderr
    assert "damaged" in for_people.stdout


def test_another_runs_blocks_are_distinguished(daemon):
    load(daemon, "--rw", "write", "--verify", "--size", "64K")
    shown = load(daemon, "--verify-only", "--size", "64K", "--seed", "2", status=1)
    assert {wrong["what"] for wrong in shown["wrong"]} == {"other-seed"}
    shown = load(daemon, "--verify-only", "--size", "128K", status=1)
    assert shown["wrong_blocks"] == 16
    assert {wrong["what"] for wrong in shown["wrong"]} == {"foreign"}


def test_people_get_a_table_with_the_same_fields(daemon):
    table = run("bench", daemon.socket, "--runtime", "0.1").stdout
    for field in load(daemon, *SHORT):
        assert f"\n{field.replace('_', ' ')}" in table


def test_a_killed_back_end_is_an_error(daemon, tmp_path):
    command = ["blkd", "bench", daemon.socket, "--runtime", "60", "--iodepth", "8"]
    with Process(command, tmp_path / "bench.log") as bench:
        wait_for_requests(daemon)
        daemon.process.kill()
        assert bench.end(None) == 1
        assert "the back end closed the connection after" in bench.errors()
        assert "Traceback" not in bench.errors()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_and_prints_what_was_measured(daemon, tmp_path, number):
    command = ["blkd", "bench", daemon.socket, "--runtime", "60", "--json"]
    with Process(command, tmp_path / "bench.log") as bench:
        wait_for_requests(daemon)
        bench.process.send_signal(number)
        shown = json.loads(bench.line())
        assert bench.end(None) == 0
    assert shown["interrupted"]
    assert shown["seconds"] < 60
    assert shown["errors"] == 0


def test_a_check_that_was_interrupted_has_failed(daemon, tmp_path):
    command = ["blkd", "bench", daemon.socket, "--rw", "write", "--verify", "--runtime", "60"]
    with Process(command, tmp_path / "bench.log") as bench:
        wait_for_requests(daemon)
        assert bench.end(signal.SIGINT) == 1
        assert "interrupted before everything was checked" in bench.errors()


def test_the_next_front_end_is_served_after_a_run(daemon):
    for _ in range(3):
        assert load(daemon, "--queues", "4", *SHORT)["errors"] == 0
    daemon.wait_for("front_end", None)
