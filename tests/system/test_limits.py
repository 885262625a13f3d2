# SPDX-License-Identifier: Apache-2.0
"""Limits of a disk that is served: at its start, and changed while requests wait."""

import json
import subprocess
import time

import pytest

from harness.daemon import PROGRAMS, Daemon, run

SECOND = 1.0


def bench(served, *options):
    """What `blkd bench` says of a disk."""
    done = run("bench", served.socket, "--json", "--quiet", *options, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def asked(served, *limits):
    """What `blkd limit` answers."""
    done = run("limit", "--control", served.control, *limits, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["limit"]


@pytest.mark.parametrize(
    ("limit", "options", "most"),
    [
        pytest.param("iops=100", ("--iodepth", 8), 100, id="iops"),
        pytest.param("bps=400K", ("--iodepth", 8), 100, id="bps"),
        pytest.param("iops-write=100", ("--rw", "randwrite", "--iodepth", 8), 100, id="write"),
        pytest.param("iops=400,iops-size=4K", ("--bs", "16K", "--iodepth", 8), 100, id="size"),
        pytest.param("iops=100", ("--packed", "--iodepth", 8), 100, id="packed"),
    ],
)
def test_no_more_is_done_than_the_limit_allows(tmp_path, limit, options, most):
    with Daemon("null:64M", tmp_path, "--limit", limit) as served:
        served.ready()
        found = bench(served, "--runtime", 1, *options)
    # And the tolerance, and one that is begun at once.
    assert 0 < found["ios"] <= most * (found["seconds"] + 0.02) + 2
    assert found["errors"] == 0


def test_a_direction_without_a_limit_is_not_throttled(tmp_path):
    with Daemon("null:64M", tmp_path, "--limit", "iops-write=1") as served:
        served.ready()
        assert bench(served, "--runtime", 1, "--iodepth", 8)["ios"] > 100


def test_what_waits_goes_on_when_the_limit_is_lifted(tmp_path):
    with Daemon("null:64M", tmp_path, "--limit", "iops=1") as served:
        served.ready()
        load = [PROGRAMS / "blkd", "bench", served.socket, "--iodepth", "8", "--runtime", "3"]
        with subprocess.Popen([*load, "--json"], stdout=subprocess.PIPE, text=True) as bench:
            until = time.monotonic() + 20 * SECOND
            while served.call("show")["in_flight"] < 7:
                assert time.monotonic() < until
            assert asked(served, "none") == ""
            found = json.loads(bench.communicate(timeout=30)[0])
    assert found["ios"] > 100
    assert found["errors"] == 0


def test_a_pause_does_not_wait_for_a_rate(tmp_path):
    with Daemon("null:64M", tmp_path, "--limit", "bps=1K") as served:
        served.ready()
        load = [PROGRAMS / "blkd", "bench", served.socket, "--iodepth", "8", "--runtime", "2"]
        with subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
            until = time.monotonic() + 20 * SECOND
            while served.call("show")["in_flight"] < 7:
                assert time.monotonic() < until
            assert served.pause(5) == 0
            bench.kill()


def test_limits_are_shown_and_changed_one_by_one(tmp_path):
    with Daemon("null:64M", tmp_path, "--limit", "iops=100,burst-iops=200") as served:
        served.ready()
        assert asked(served) == "iops=100,burst-iops=200,burst-iops-length=1s"
        assert asked(served, "bps-read=1M") == (
            "iops=100,burst-iops=200,burst-iops-length=1s,bps-read=1048576"
        )
        assert served.call("show")["limit"] == asked(served)
        assert asked(served, "iops=") == "bps-read=1048576"
        refused = run("limit", "--control", served.control, "iops=x")
        assert refused.returncode == 2
        assert "no number of requests" in refused.stderr
