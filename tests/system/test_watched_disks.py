# SPDX-License-Identifier: Apache-2.0
"""`blkd top`, `blkd iostat` and the dashboard say of real disks what was asked of them."""

import http.cookiejar
import json
import socket
import urllib.request

import pytest

from harness.daemon import Daemon, Process, image, run
from harness.frontend import FrontEnd
from harness.host import HostDaemon

MIB = 1 << 20


def lines(*words):
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def host(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    with HostDaemon(tmp_path, dashboard={"listen": listen}) as daemon:
        daemon.ready()
        yield daemon


def ask_things(disk):
    """Ask for 20 reads of 4 KiB, 10 writes of 16 KiB, five flushes and a discard of a MiB."""
    for at in range(20):
        assert disk.read(8 * at, 4096)[0] == 0
    for at in range(10):
        assert disk.write(32 * at, bytes(16384)) == 0
    for _ in range(5):
        assert disk.flush() == 0
    assert disk.discard([(0, MIB // 512)]) == 0


def test_iostat_has_counted_what_was_asked(host):
    added = host.add("web", host.image("web.img", 4 * MIB))
    with FrontEnd.connect(added["sockets"][0]) as front_end:
        ask_things(front_end.disk())
        figures = host.call("GET", "/v1/exports/web/figures")["figures"]
        (report,) = lines("iostat", "web", "--daemon", host.socket)
    (disk,) = report["disk"]
    # It is of the time since counting began, which goes on between the two questions.
    seconds = (figures["time_ns"] - figures["began_ns"]) / 1e9
    assert disk["disk_device"] == "web"
    for column, count in (("r/s", 20), ("w/s", 10), ("f/s", 5), ("d/s", 1)):
        assert 0 < disk[column] <= count / seconds + 0.005, column
    assert disk["w/s"] == pytest.approx(disk["r/s"] / 2, abs=0.01)
    assert disk["rkB/s"] == pytest.approx(4 * disk["r/s"], abs=0.03)
    assert (disk["rareq-sz"], disk["wareq-sz"], disk["dareq-sz"]) == (4, 16, 1024)
    for column in ("r_await", "w_await", "f_await", "d_await"):
        assert 0 < disk[column] < 1000 * seconds


def test_iostat_of_an_interval_has_what_was_asked_in_it(host):
    added = host.add("web", host.image("web.img", 4 * MIB))
    words = ["iostat", "-y", "web", "0.3", "2", "--daemon", host.socket, "--json"]
    with (
        FrontEnd.connect(added["sockets"][0]) as front_end,
        Process(["blkd", *words], host.folder / "iostat.log") as iostat,
    ):
        disk = front_end.disk()
        while iostat.process.poll() is None:
            ask_things(disk)
        for line in iostat.process.stdout.read().splitlines():
            (said,) = json.loads(line)["disk"]
            assert said["r/s"] > 0
            assert said["rkB/s"] == pytest.approx(4 * said["r/s"], rel=0.01)
            assert said["wkB/s"] == pytest.approx(16 * said["w/s"], rel=0.01)
            waits = ((said[f"{kind}/s"], said[f"{kind}_await"]) for kind in "rwfd")
            depth = sum(rate * wait / 1000 for rate, wait in waits)
            assert said["aqu-sz"] == pytest.approx(depth, rel=0.2, abs=0.02)
            assert 0 < said["%util"] <= 100
    assert lines(*words[:-1])[0]["disk"][0]["r/s"] == 0


def test_top_of_one_process_has_its_disk(tmp_path):
    with Daemon(image(tmp_path / "web.img", MIB), tmp_path, "--name", "web") as served:
        served.ready()
        (look,) = lines("top", "--control", served.control, "-n", 1, "-d", 0.2)
    (row,) = look["exports"]
    assert (row["name"], row["state"], row["iops"]) == ("web", "serving", 0)


def test_top_has_devices_of_all_kinds_and_states(host):
    host.add("web", host.image("web.img", MIB))
    host.add("old", host.image("old.img", MIB))
    host.call("POST", "/v1/exports/old/stop")
    body = {"name": "guests", "device": "vsock", "settings": {"cid": [5]}}
    host.call("POST", "/v1/exports", body)
    (look,) = lines("top", "--daemon", host.socket, "-n", 1, "-d", 0.2, "--sort", "name")
    states = {row["name"]: (row["state"], row["iops"] is None) for row in look["exports"]}
    assert states["web"] == ("serving", False)
    assert states["old"][0] == "stopped"
    assert states["guests"] == ("serving", True)


def test_the_dashboard_sends_the_rows_of_blkd_top(host):
    host.add("web", host.image("web.img", MIB))
    url, _, token = host.call("GET", "/v1/dashboard")["url"].partition("#")
    browser = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )
    login = urllib.request.Request(f"{url}login", json.dumps({"token": token}).encode())
    with browser.open(login, timeout=10) as answer:
        assert answer.status == 204
    with browser.open(f"{url}rows", timeout=10) as stream:
        looks = [json.loads(stream.readline().removeprefix(b"data: ")), stream.readline()]
        looks.append(json.loads(stream.readline().removeprefix(b"data: ")))
    (row,) = looks[-1]["rows"]
    (top,) = lines("top", "--daemon", host.socket, "-n", 1, "-d", 0.2)
    assert row.keys() == top["exports"][0].keys()
    assert (row["name"], row["state"], row["iops"]) == ("web", "serving", 0)
