# SPDX-License-Identifier: Apache-2.0
"""`blkd top` and `blkd iostat` as people run them, in front of a daemon that a test plays."""

import json
import re
import signal
import subprocess

import pytest

from harness.daemon import PROGRAMS, run
from harness.terminal import Terminal
from tests.doing_exports import Doing
from tests.played_figures import daemon_with_figures

BLKD = PROGRAMS / "blkd"


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    path = tmp_path / "blkd.sock"
    monkeypatch.setenv("BLKD_SOCKET", str(path))
    doing = {
        "busy": Doing(reads=2000, writes=500, in_flight=8),
        "slow": Doing(reads=30, latency=50e-3, oldest=2.5, errors=4, in_flight=1),
        "idle": Doing(),
        "old": Doing("failed", reason="no image"),
    }
    with daemon_with_figures(path, doing) as exports:
        yield exports


@pytest.fixture
def top(daemon):  # noqa: ARG001 - it answers
    with Terminal([BLKD, "top", "-d", "0.1"]) as terminal:
        terminal.wait_for(lambda text: "2500" in text)
        yield terminal


def names(text):
    """The exports on a screen, from top to bottom."""
    return re.findall(r"^(busy|slow|idle|old|new)\b", text, re.MULTILINE)


def reads(terminal):
    """What it reads a second; None while the screen is drawn anew."""
    found = re.search(r"^busy +serving +(\d+)", terminal.text, re.MULTILINE)
    return found and found[1]


def test_a_terminal_shows_all_exports_and_their_sum(top):
    top.wait_for(lambda text: names(text) == ["busy", "slow", "idle", "old"])
    top.wait_for(lambda text: re.search(r"IOPS 2530 .*in flight 9 ", text))
    assert re.search(r"exports: 4 +3 serving +1 failed", top.text)
    assert re.search(r"^old +failed  no image *$", top.text, re.MULTILINE)


def test_the_table_changes_with_what_is_done(top, daemon):
    daemon.doing["busy"] = Doing(reads=7000)
    top.wait_for(lambda _: reads(top) == "7000")
    daemon.doing["new"] = Doing(reads=9000)
    top.wait_for(lambda text: names(text)[:1] == ["new"])
    del daemon.doing["busy"]
    top.wait_for(lambda text: "busy" not in names(text))


def test_keys_order_and_filter(top):
    top.press("L")
    top.wait_for(lambda text: names(text)[:2] == ["slow", "busy"])
    top.press("R")
    top.wait_for(lambda text: names(text)[:2] == ["busy", "slow"])
    top.press("N")
    top.wait_for(lambda text: names(text) == ["busy", "idle", "old", "slow"])
    top.press("/sl")
    top.wait_for(lambda text: names(text) == ["slow"])
    top.press("\r=")
    top.wait_for(lambda text: len(names(text)) == 4)
    top.press("\x1b[C\x1b[C")  # to the right, twice: IOPS
    top.wait_for(lambda text: names(text)[:1] == ["busy"])


def test_help_comes_and_goes(top):
    top.press("h")
    top.wait_for(lambda text: "Keys of blkd top" in text)
    top.press(" ")
    top.wait_for(names)


def test_it_fits_itself_to_the_window(top):
    top.resize(60, 12)
    top.wait_for(lambda text: "IOPS" in text and "THROT" not in text)
    top.wait_for(lambda text: names(text) == ["busy", "slow", "idle", "old"])
    top.resize(140, 30)
    top.wait_for(lambda text: "ERR/s" in text)


@pytest.mark.parametrize("key", ["q", "\x03"], ids=["q", "ctrl-c"])
def test_it_leaves_the_terminal_as_it_was(top, key):
    top.press(key)
    assert top.wait_for_end() == 0
    assert top.modes == top.modes_before


def test_sigterm_leaves_the_terminal_as_it_was(top):
    top.process.send_signal(signal.SIGTERM)
    assert top.wait_for_end() == 0
    assert top.modes == top.modes_before


def test_a_daemon_that_is_gone_is_told_and_found_again(tmp_path, monkeypatch):
    path = tmp_path / "blkd.sock"
    monkeypatch.setenv("BLKD_SOCKET", str(path))
    with (
        daemon_with_figures(path, {"busy": Doing(reads=1)}),
        Terminal([BLKD, "top", "-d", "0.1"]) as top,
    ):
        top.wait_for(lambda text: "busy" in names(text))
        path.rename(tmp_path / "away")
        top.wait_for(lambda text: "nobody answers" in text)
        assert "busy" in names(top.text)
        (tmp_path / "away").rename(path)
        top.wait_for(lambda text: "nobody answers" not in text)


@pytest.mark.usefixtures("daemon")
def test_a_pipe_gets_plain_lines():
    done = run("top", "-d", "0.1", "-n", 2)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for table in done.stdout.strip().split("\n\n"):
        clock, head, *rows = table.splitlines()
        assert re.fullmatch(r"\d\d:\d\d:\d\d", clock)
        assert head.split()[:3] == ["NAME", "STATE", "IOPS"]
        assert [row.split()[0] for row in rows] == ["busy", "slow", "idle", "old"]
        assert rows[0].split()[2] == "2500"


@pytest.mark.usefixtures("daemon")
def test_a_reader_that_leaves_ends_it():
    shell = f"set -o pipefail; {BLKD} top -d 0.1 | head -2"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.usefixtures("daemon")
def test_json_is_an_object_a_line():
    done = run("top", "-d", "0.1", "-n", 2, "--json", "--sort", "p99")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    slow, busy, *_ = lines[0]["exports"]
    assert (slow["name"], slow["iops"], slow["oldest"], slow["errors"]) == ("slow", 30, 2.5, 4)
    assert (busy["read_iops"], busy["write_iops"], busy["write_bytes"]) == (2000, 500, 2048000)
    assert busy["cpu_us"] == pytest.approx(4)


@pytest.mark.usefixtures("daemon")
def test_iostat_first_tells_all_that_was_done_and_then_each_interval(daemon):
    daemon.look()
    daemon.doing["busy"] = Doing(reads=4000)
    done = run("iostat", "busy", 0.1, 2, "--json")
    first, second = (json.loads(line)["disk"] for line in done.stdout.splitlines())
    # 2000 reads in the first second, 4000 in the next, since counting began at 0.
    assert [disk["disk_device"] for disk in first] == ["busy"]
    assert (first[0]["r/s"], first[0]["w/s"]) == (3000, 250)
    assert (second[0]["r/s"], second[0]["w/s"]) == (4000, 0)
    assert (second[0]["rkB/s"], second[0]["rareq-sz"]) == (16000, 4)


@pytest.mark.usefixtures("daemon")
def test_iostat_prints_columns_for_people():
    done = run("iostat")
    head, *rows = done.stdout.splitlines()
    assert head.split() == [
        *("Device", "r/s", "rkB/s", "r_await", "rareq-sz", "w/s", "wkB/s", "w_await", "wareq-sz"),
        *("d/s", "dkB/s", "d_await", "dareq-sz", "f/s", "f_await", "aqu-sz", "%util"),
    ]
    assert {len(row) for row in rows if row} == {len(head)}
    assert [row.split()[0] for row in rows if row] == ["busy", "idle", "old", "slow"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nobody"], 1, "there is no export nobody"),
        (["busy", "0"], 2, "an interval is between"),
        (["1", "0"], 2, "no number of reports"),
        (["1", "1.5"], 2, "no number of reports"),
        (["-y"], 2, "without an INTERVAL"),
        (["web", "--control", "x"], 2, "has no exports with names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("daemon")
def test_iostat_says_what_is_wrong(words, status, message):
    done = run("iostat", *words)
    assert done.returncode == status
    assert message in done.stderr
