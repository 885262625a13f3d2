# SPDX-License-Identifier: Apache-2.0
"""`blkd bench --reconnect` goes on when its back end is replaced, and only then."""

import json
import signal
import subprocess

import pytest

from harness.backend import BackEnd
from harness.daemon import PROGRAMS, Daemon, image, run

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return image(tmp_path / "disk.img", 4 * MIB)


def started(tmp_path, disk):
    daemon = Daemon(f"faulty:delay=1ms@write/3:{disk}", tmp_path)
    daemon.ready()
    return daemon


def loading(socket, *options):
    command = [PROGRAMS / "blkd", "bench", socket, "--rw", "randwrite", "--iodepth", "16", "--json"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_front_end(daemon):
    while not daemon.call("stats")["total"]["writes"]:
        assert daemon.process.poll() is None


@pytest.mark.parametrize("layout", [[], ["--packed"]], ids=["split", "packed"])
def test_a_load_goes_on_with_the_next_back_end(tmp_path, disk, layout):
    daemon = started(tmp_path, disk)
    load = loading(daemon.socket, "--verify", "--runtime", "4", "--reconnect", *layout)
    for _ in range(2):
        wait_for_front_end(daemon)
        daemon.end(signal.SIGKILL)
        daemon = started(tmp_path, disk)
    out, err = load.communicate(timeout=60)
    daemon.end()
    assert load.returncode == 0, err
    seen = json.loads(out)
    assert seen["reconnections"] == 2
    assert seen["verified_blocks"] > 0
    assert seen["errors"] == seen["wrong_blocks"] == 0


def test_without_it_a_load_ends_with_its_back_end(tmp_path, disk):
    daemon = started(tmp_path, disk)
    load = loading(daemon.socket, "--runtime", "30")
    wait_for_front_end(daemon)
    daemon.end(signal.SIGKILL)
    _, err = load.communicate(timeout=20)
    assert load.returncode == 1
    assert "closed the connection" in err


def test_a_back_end_that_never_comes_is_given_up(tmp_path, disk):
    daemon = started(tmp_path, disk)
    load = loading(daemon.socket, "--runtime", "30", "--reconnect", "--timeout", "1")
    wait_for_front_end(daemon)
    daemon.end(signal.SIGKILL)
    _, err = load.communicate(timeout=20)
    assert load.returncode == 1
    assert "no back end at" in err or "answered nothing" in err


def test_a_back_end_that_records_nothing_is_refused(tmp_path):
    with BackEnd(tmp_path / "disk.sock") as backend:
        done = run("bench", backend.path, "--reconnect", "--runtime", "0.1")
    assert done.returncode == 1
    assert "does not record requests in flight" in done.stderr
