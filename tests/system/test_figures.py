# SPDX-License-Identifier: Apache-2.0
"""Figures: what they say of requests that were made, whatever becomes of the process."""

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from blkd.control import client, models
from blkd.statistics.figures import Figures
from harness.daemon import Taker, image
from harness.frontend import DISCARD, FLUSH, GET_ID, IN, OK, OUT, WRITE_ZEROES, FrontEnd
from harness.host import HostDaemon
from tests.system.test_daemon_adoption import SIZE, in_state, wait_for

OPERATIONS = {
    IN: "read",
    OUT: "write",
    FLUSH: "flush",
    DISCARD: "discard",
    WRITE_ZEROES: "write_zeroes",
    GET_ID: "other",
}
SIZES = {512: "4K", 4096: "4K", 4608: "16K", 65536: "64K", 66048: "256K"}


def figures_of(daemon) -> Figures:
    """What the process says."""
    return msgspec.convert(client.call(str(daemon.control), "GET", models.FIGURES), Figures)


def logged(daemon, event):
    """The lines of this event that the process has logged so far."""
    lines = [json.loads(line) for line in daemon.errors().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def make_requests(disk, count, seed=1):
    """Make requests of all kinds, several at a time: how many of each cell, and their bytes."""
    choose = random.Random(seed)
    counts, moved, heads = Counter(), Counter(), []
    for _ in range(count):
        kind = choose.choice([IN, IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES, GET_ID])
        size = choose.choice(list(SIZES)) if kind in {IN, OUT} else 0
        if kind in {DISCARD, WRITE_ZEROES}:
            command = disk.discard if kind == DISCARD else disk.write_zeroes
            assert command([(0, 8), (64, 0), (16, 8)]) == OK
            size = 8192
        elif kind == GET_ID:
            assert disk.get_id()[0] == OK
        elif kind == OUT:
            heads.append(disk.submit(OUT, choose.randrange(64), b"x" * size))
        else:
            heads.append(disk.submit(kind, choose.randrange(64) if size else 0, size=size))
        cell = OPERATIONS[kind], SIZES.get(size, "16K" if size else "4K")
        counts[cell] += 1
        moved[cell] += size
        if len(heads) >= 8:
            assert all(done.status == OK for done in disk.wait(*heads))
            heads = []
    assert all(done.status == OK for done in disk.wait(*heads))
    return counts, moved


def counts_of(figures):
    """How many of each cell, and their bytes."""
    cells = {(cell.operation, cell.size): cell.requests for cell in figures.cells}
    return (
        Counter({kind: requests.count for kind, requests in cells.items()}),
        Counter({kind: requests.bytes for kind, requests in cells.items()}),
    )


@pytest.fixture(params=["file", "memory", "null"])
def behind(request, tmp_path):
    """The name of an image of each engine."""
    if request.param == "null":
        return "null:1M"
    place = request.getfixturevalue("tmpfs") if request.param == "memory" else tmp_path
    return image(place / "a.img", 1 << 20)


def test_each_request_is_counted_once_with_its_bytes_and_its_times(behind, serve):
    daemon, front_end = serve(behind)
    counts, moved = make_requests(front_end.disk(), 300)
    found = figures_of(daemon)
    assert counts_of(found) == (counts, moved)
    for cell in found.cells:
        requests = cell.requests
        assert requests.ring.count == requests.throttle.count == requests.count
        assert requests.disk.count == requests.count
    assert found.throttled_ns == found.errors.total == 0
    assert (found.in_flight, found.oldest_ns, found.connected) == (0, 0, True)
    assert found.size == 1 << 20


def test_requests_that_waited_for_a_limit_are_counted_likewise(behind, serve):
    daemon, front_end = serve(behind, "--limit", "iops=1000,bps=100M")
    counts, moved = make_requests(front_end.disk(), 300)
    found = figures_of(daemon)
    assert counts_of(found) == (counts, moved)
    assert found.throttled_ns > 0
    assert found.throttled == 0


def test_requests_take_their_time_at_the_disk(tmp_path, serve):
    path = image(tmp_path / "a.img", 1 << 20)
    daemon, front_end = serve(f"faulty:delay=500ms@read:{path}")
    disk = front_end.disk()
    head = disk.submit(IN, 0, size=4096)
    wait_for(lambda: figures_of(daemon).oldest_ns > 0)
    assert figures_of(daemon).in_flight == 1
    disk.wait(head)
    found = figures_of(daemon)
    assert 0.5 <= found.of("read").disk.sum_ns / 1e9 < 5
    assert found.busy_ns >= 500_000_000
    assert 0 < found.cpu_ns < found.time_ns - found.began_ns


def test_requests_in_flight_are_listed_until_they_are_answered(tmp_path, serve):
    path = image(tmp_path / "a.img", 1 << 20)
    daemon, front_end = serve(f"faulty:delay=4s@write:{path}")
    disk = front_end.disk()
    head = disk.submit(OUT, 16, b"x" * 8192)
    [found] = wait_for(lambda: daemon.call("inflight")["requests"])
    age = found.pop("age_ns")
    assert 0 < age < daemon.call("show")["oldest_ns"]
    assert found == {
        "ring": 0,
        "worker": 0,
        "request": "write",
        "offset": 8192,
        "bytes": 8192,
        "where": "delay",
    }
    disk.wait(head, timeout=10)
    assert daemon.call("inflight")["requests"] == []
    assert daemon.call("show")["oldest_ns"] == 0


def test_slow_request_is_logged_with_where_its_time_went(tmp_path, serve):
    path = image(tmp_path / "a.img", 1 << 20)
    daemon, front_end = serve(f"faulty:delay=300ms@write:{path}", "--slow-us", 100_000)
    disk = front_end.disk()
    assert disk.read(0, 512)[0] == OK
    assert disk.write(8, b"x" * 4096) == OK
    told = daemon.wait_for_log("slow request")
    assert (told["request"], told["offset"], told["bytes"]) == ("write", 4096, 4096)
    assert (told["ring"], told["worker"], told["reason"]) == (0, 0, None)
    assert told["disk_us"] >= 300_000
    assert told["throttle_us"] == 0
    assert "read" not in [line.get("request") for line in logged(daemon, "slow request")]


def test_stuck_request_is_logged_once_while_it_is_in_flight(tmp_path, serve):
    path = image(tmp_path / "a.img", 1 << 20)
    daemon, front_end = serve(f"faulty:delay=4s@write:{path}", "--slow-us", 50_000)
    disk = front_end.disk()
    head = disk.submit(OUT, 8, b"x" * 4096)
    told = daemon.wait_for_log("request stuck")
    assert (told["request"], told["offset"], told["where"]) == ("write", 4096, "delay")
    assert told["seconds"] >= 0.05
    disk.wait(head, timeout=10)
    daemon.wait_for_log("slow request")
    assert len(logged(daemon, "request stuck")) == 1


def test_many_slow_requests_are_few_lines_that_say_how_many_there_were(tmp_path, serve):
    path = image(tmp_path / "a.img", 1 << 20)
    daemon, front_end = serve(f"faulty:delay=200ms@write:{path}", "--slow-us", 1000)
    disk = front_end.disk()
    heads = [disk.submit(OUT, 8 * n, b"x" * 512) for n in range(40)]
    disk.wait(*heads, timeout=10)

    def told():
        lines = logged(daemon, "slow request")
        left_out = sum(line["count"] for line in logged(daemon, "slow requests not told"))
        return len(lines) + sum(line.get("suppressed", 0) for line in lines) + left_out

    wait_for(lambda: told() == len(heads))
    assert len(logged(daemon, "slow request")) < 20


def test_errors_are_counted_by_their_kind(tmp_path, serve):
    path = image(tmp_path / "a.img", 1 << 20)
    daemon, front_end = serve(f"faulty:fail@read+0-4K:{path}")
    disk = front_end.disk()
    assert disk.read(0, 512)[0] != OK
    assert disk.read(1 << 20, 512)[0] != OK  # beyond the end
    assert disk.request(77).status != OK
    assert disk.read(64, 512)[0] == OK
    found = figures_of(daemon)
    assert (found.errors.io, found.errors.refused, found.errors.unsupported) == (1, 1, 1)
    assert found.errors.total == 3
    assert found.of("read").count == 3
    assert found.of("other").count == 1


def test_figures_go_on_in_a_live_upgrade(behind, serve):
    daemon, front_end = serve(behind)
    disk = front_end.disk()
    before, _ = make_requests(disk, 100)
    began = figures_of(daemon).began_ns
    with Taker(daemon) as new:
        new.ready()
        after, _ = make_requests(disk, 100, seed=2)
        found = figures_of(daemon)
        assert counts_of(found)[0] == before + after
        assert found.began_ns == began
        assert (found.in_flight, found.connected) == (0, True)


# ---- of a daemon ----


@pytest.fixture
def host(tmp_path):
    """A daemon of the test's own."""
    with HostDaemon(tmp_path) as started:
        started.ready()
        yield started


@pytest.fixture
def web(host):
    return host.add("web", host.image("web.img", SIZE))


def read_by(host):
    """What the daemon says of the export."""
    return host.call("GET", "/v1/exports/web/figures")["figures"]


def reads_counted(host):
    """How many reads the daemon knows of."""
    cells = read_by(host)["cells"]
    return sum(cell["requests"]["count"] for cell in cells if cell["operation"] == "read")


def test_figures_go_on_with_the_next_daemon(host, web):
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        disk = front_end.disk()
        assert disk.read(0, 4096)[0] == OK
        before = read_by(host)
        host.kill()
        host.restart()
        in_state(host, "web", "serving")
        assert disk.read(0, 4096)[0] == OK
        after = read_by(host)
        assert after["began_ns"] == before["began_ns"]
        assert reads_counted(host) == 2
        assert after["connected"]


def test_figures_outlive_processes(host, web):
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        disk = front_end.disk()
        for number in range(5):
            assert disk.read(0, 4096)[0] == OK
            pid = in_state(host, "web", "serving")["pid"]
            if number % 2:
                host.call("POST", "/v1/exports/web/upgrade")
                continue
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: host.exports()[0]["pid"] not in {None, pid})
            in_state(host, "web", "serving")
            front_end.resume(web["sockets"][0])
        assert reads_counted(host) == 5
    host.call("POST", "/v1/exports/web/stop")
    stopped = read_by(host)
    assert (reads_counted(host), stopped["in_flight"], stopped["connected"]) == (5, 0, False)
    host.call("POST", "/v1/exports/web/start")
    assert reads_counted(host) == 5


def test_process_that_spoils_its_area_does_not_keep_the_next_from_serving(host, web):
    pid = in_state(host, "web", "serving")["pid"]
    links = Path(f"/proc/{pid}/fd").iterdir()
    area = next(link for link in links if "blkd-statistics" in str(link.readlink()))
    with area.open("r+b") as file:
        file.write(b"\xff" * (2 << 20))
    assert host.call("GET", "/v1/figures")["exports"][0]["name"] == "web"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: host.exports()[0]["pid"] not in {None, pid})
    in_state(host, "web", "serving")
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        assert front_end.disk().read(0, 4096)[0] == OK
