# SPDX-License-Identifier: Apache-2.0
"""A served disk is looked at through its USDT probes, by the script that comes with blkd."""

import errno
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from blkd.dataplane import traced_files
from harness.frontend import IN, IOERR, OK, OUT

pytestmark = pytest.mark.alone  # the script traces every process of this machine that serves

SCRIPT = Path(__file__).parents[2] / "packaging" / "bpftrace" / "latency.bt"
LINE = re.compile(
    r"^(\d+) +(blkd-io-\d+) +(\w+(?: \w+)?) +(\d+) +(\d+) +(\d+) +(\d+)$", re.MULTILINE
)
BUCKET = re.compile(r"^[\[(].*[)\]] +(\d+) \|.*$", re.MULTILINE)
LIMIT = 20


class Tracer:
    """The script at work, from its first line on."""

    def __init__(self, log, slow):
        self.log = log
        command = ["bpftrace", "-B", "line", SCRIPT, traced_files()[0], slow]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*map(str, command)], stdout=out, stderr=subprocess.STDOUT
            )

    def told(self):
        """Each request that it told, without the time that it took."""
        found = LINE.findall(self.log.read_text())
        return [(int(pid), what, *map(int, (at, n, st))) for pid, _, what, at, n, _, st in found]

    def wait_for_a_line(self, cause):
        """Cause requests until one is seen: all that come later are."""
        deadline = time.monotonic() + LIMIT
        while not self.told():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            cause()

    def end(self):
        """Have it print what it counted: all that it wrote."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(LIMIT)
        return self.log.read_text()


@pytest.fixture(scope="module", autouse=True)
def allowed():
    """Whether the kernel lets this process trace another: containers often forbid it."""
    program = f"usdt:{traced_files()[0]}:blkd:request__submit {{ }} BEGIN {{ exit(); }}"
    tried = subprocess.run(
        ["bpftrace", "-e", program], capture_output=True, text=True, check=False, timeout=60
    )
    if tried.returncode:
        pytest.skip(f"bpftrace cannot attach to a probe here: {tried.stderr.strip()}")


@pytest.fixture
def trace(tmp_path):
    running = []

    def start(slow):
        running.append(Tracer(tmp_path / "traced", slow))
        return running[-1]

    yield start
    for tracer in running:
        tracer.process.kill()
        tracer.process.wait()


@pytest.mark.parametrize("engine", ["inline", "uring"])
def test_each_request_is_told_as_the_guest_sent_it(engine, path, serve, trace):
    daemon, front_end = serve(f"faulty:fail@read+1M-2M:{path}", "--engine", engine)
    disk = front_end.disk()
    tracer = trace(slow=0)
    tracer.wait_for_a_line(disk.flush)
    assert disk.write(16, b"x" * 8192) == OK
    assert disk.read(8, 4096)[0] == OK
    assert disk.read(2048, 4096)[0] == IOERR
    assert disk.discard([(0, 8)]) == OK
    assert disk.write_zeroes([(0, 8)]) == OK
    told = [request for request in tracer.told() if request[1] != "flush"]
    pid = daemon.process.pid
    deadline = time.monotonic() + LIMIT
    while len(told) < 5:
        assert time.monotonic() < deadline, tracer.log.read_text()
        told = [request for request in tracer.told() if request[1] != "flush"]
    assert told[:3] == [
        (pid, "write", 8192, 8192, OK),
        (pid, "read", 4096, 4096, OK),
        (pid, "read", 1 << 20, 0, IOERR),
    ]
    assert [(what, status) for _, what, *_, status in told[3:]] == [
        ("discard", OK),
        ("write zeroes", OK),
    ]


def test_only_slow_requests_are_told_and_all_are_counted(path, serve, trace):
    _, front_end = serve(f"faulty:delay=300ms@any+0-4K:{path}")
    disk = front_end.disk()
    tracer = trace(slow=200_000)
    tracer.wait_for_a_line(lambda: disk.write(0, b"x" * 4096))
    for _ in range(32):
        assert disk.read(8, 4096)[0] == OK
    assert disk.read(0, 4096)[0] == OK
    text = tracer.end()
    assert [what for _, what, *_ in tracer.told()].count("read") == 1
    _, _, reads = text.partition("@microseconds[read]")
    reads, _, _ = reads.partition("\n\n")
    assert sum(map(int, BUCKET.findall(reads))) == 33
    assert "@answers[read, 0]: 33" in text


def test_it_is_counted_how_often_a_request_was_held_and_why(path, serve, trace):
    daemon, front_end = serve(f"faulty:fail=ENOSPC@write*1:{path}", "--on-enospc", "hold")
    disk = front_end.disk()
    tracer = trace(slow=0)
    tracer.wait_for_a_line(disk.flush)
    head = disk.submit(OUT, 16, b"x" * 4096)
    daemon.wait_for("held", 1)
    daemon.call("retry")
    assert disk.wait(head)[0].status == OK
    text = tracer.end()
    assert f"@held[write, {errno.ENOSPC}]: 1" in text
    pid = daemon.process.pid
    assert [each for each in tracer.told() if each[1] == "write"] == [
        (pid, "write", 8192, 4096, OK)
    ]


def test_it_is_counted_how_often_and_how_long_limits_had_requests_wait(path, serve, trace):
    _, front_end = serve(path, "--limit", "iops=20")
    disk = front_end.disk()
    tracer = trace(slow=0)
    tracer.wait_for_a_line(disk.flush)
    heads = [disk.submit(IN, 0, size=4096) for _ in range(10)]
    assert all(done.status == OK for done in disk.wait(*heads))
    text = tracer.end()
    assert len([each for each in tracer.told() if each[1] == "read"]) == 10
    _, _, waits = text.partition("@throttled_microseconds[read]")
    waits, _, _ = waits.partition("\n\n")
    assert 8 <= sum(map(int, BUCKET.findall(waits))) <= 10
