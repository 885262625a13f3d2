# SPDX-License-Identifier: Apache-2.0
"""A device that is no disk, served to a front end by the same data path: its messages come back."""

import json
import signal
import time
from pathlib import Path

import pytest

from harness.daemon import Process, run
from harness.frontend import DESC_WRITE, Feature, FrontEnd
from harness.process import worker_sleeps
from tests.devices.loopback import RECEIVE, TRANSMIT

ROOT = Path(__file__).parents[2]
FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
KEPT = 16  # messages that the device has room for
REST = 0.2  # seconds


class Driver:
    """The driver of the two vrings."""

    def __init__(self, front_end, *, packed=False, recorded=False):
        self.front_end = front_end
        front_end.prepare(FEATURES | (Feature.RING_PACKED if packed else 0))
        if recorded:
            front_end.track_inflight(queues=2)
        self.receive = front_end.start_ring(RECEIVE)
        self.transmit = front_end.start_ring(TRANSMIT)
        self.buffers = {}

    def send(self, *messages):
        """Send messages in one go: their heads."""
        heads = [self.transmit.add([(message, len(message), 0)]) for message in messages]
        self.transmit.publish(*heads)
        self.transmit.notify()
        return heads

    def offer(self, count=1, size=64):
        """Offer buffers to receive into."""
        for _ in range(count):
            at = self.front_end.memory.alloc(size)
            head = self.receive.add([(at, size, DESC_WRITE)])
            self.buffers[head] = at
            self.receive.publish(head)
        self.receive.notify()

    def received(self, count):
        """The next `count` messages."""
        messages = []
        while len(messages) < count:
            used = self.receive.wait_used()
            assert used, f"{len(messages)} messages of {count}"
            messages += [
                self.front_end.memory.read(self.buffers.pop(head), written)
                for head, written in used
            ]
        return messages

    def sent(self, count):
        """Wait until the device has taken `count` messages."""
        while count > 0:
            used = self.transmit.wait_used()
            assert used
            count -= len(used)


@pytest.fixture
def served(tmp_path):
    path = tmp_path / "loopback.sock"
    command = ["python", "-m", "tests.devices.loopback", path]
    with Process(command, tmp_path / "log", cwd=ROOT) as process:
        process.line()
        yield process, path


@pytest.fixture(params=["split", "packed"])
def driver(served, request):
    with FrontEnd.connect(served[1]) as front_end:
        yield Driver(front_end, packed=request.param == "packed")


def test_what_is_sent_comes_back(driver):
    driver.offer(8)
    driver.send(b"one", b"two and more", b"x" * 64)
    assert driver.received(3) == [b"one", b"two and more", b"x" * 64]
    driver.sent(3)


def test_a_message_waits_for_a_buffer(driver):
    driver.send(b"early")
    driver.sent(1)
    assert not driver.receive.wait_used(REST)
    driver.offer()
    assert driver.received(1) == [b"early"]


def test_a_buffer_waits_for_a_message(driver):
    driver.offer(4)
    assert not driver.receive.wait_used(REST)
    driver.send(b"late")
    assert driver.received(1) == [b"late"]
    assert not driver.receive.wait_used(REST)


def test_the_sender_waits_where_nothing_is_received(driver):
    messages = [b"%d" % n for n in range(3 * KEPT)]
    driver.send(*messages)
    driver.sent(KEPT)
    assert not driver.transmit.wait_used(REST)
    driver.offer(3 * KEPT)
    assert driver.received(3 * KEPT) == messages
    driver.sent(2 * KEPT)


def test_buffers_that_are_not_used_are_not_fetched(driver):
    driver.offer(5)
    driver.send(b"a", b"b")
    assert driver.received(2) == [b"a", b"b"]
    base = driver.front_end.stop_ring(RECEIVE)
    assert base & 0x7FFF == 2
    driver.front_end.start_ring(RECEIVE, ring=driver.receive, base=base)
    driver.send(b"c")
    assert driver.received(1) == [b"c"]


def test_messages_outlive_a_stopped_ring(driver):
    driver.send(b"kept")
    driver.sent(1)
    base = driver.front_end.stop_ring(RECEIVE)
    driver.offer()
    driver.front_end.start_ring(RECEIVE, ring=driver.receive, base=base)
    assert driver.received(1) == [b"kept"]


def test_its_configuration_is_its_own(served, driver):
    process, _ = served
    driver.offer(64)
    driver.send(b"\x00\x0f")
    assert driver.received(1) == [b"\x00\x0f"]
    process.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        driver.send(b"\x00\x0f")
        if driver.received(1) == [b"\xff\xf0"]:
            return
    pytest.fail("it was never configured")


def test_a_new_process_goes_on_after_a_kill(served, tmp_path):
    process, path = served
    with FrontEnd.connect(path) as front_end:
        driver = Driver(front_end, recorded=True)
        driver.offer(4)
        driver.send(b"before")
        assert driver.received(1) == [b"before"]
        process.end(signal.SIGKILL)
        command = ["python", "-m", "tests.devices.loopback", path]
        with Process(command, tmp_path / "log.2", cwd=ROOT):
            front_end.resume(path)
            driver.send(b"after")
            assert driver.received(1) == [b"after"]


def test_a_worker_that_waits_for_messages_does_not_wake(served, driver):
    process, _ = served
    driver.offer(64)
    driver.send(b"one")
    assert driver.received(1) == [b"one"]
    before = worker_sleeps(process.process.pid)
    assert not driver.receive.wait_used(5 * REST)
    assert worker_sleeps(process.process.pid) == before


# ---- as an export ----


@pytest.fixture
def controlled(tmp_path):
    socket, control = tmp_path / "loopback.sock", tmp_path / "control.sock"
    command = ["python", "-m", "tests.devices.loopback", socket, control]
    with Process(command, tmp_path / "log", cwd=ROOT) as process:
        process.line()
        yield process, socket, control


def ask(control, *words):
    """The answer of a command of `blkd` to the export, as JSON; its exit status."""
    done = run(words[0], "--control", control, *words[1:], "--json")
    return done.returncode, json.loads((done.stdout or done.stderr).splitlines()[-1])


def test_it_shows_itself_and_its_counters(controlled):
    _, path, control = controlled
    with FrontEnd.connect(path) as front_end:
        driver = Driver(front_end)
        driver.offer()
        driver.send(b"one")
        assert driver.received(1) == [b"one"]
        status, shown = ask(control, "show")
        assert (status, shown["device"], shown["state"]) == (0, "loopback", "serving")
        (device,) = shown["devices"]
        assert device["front_end"] is not None
        assert device["facts"] == {"mask": 0}
        _, stats = ask(control, "stats")
        assert [ring["counts"]["messages"] for ring in stats["rings"]] == [1, 1]


def test_it_pauses_and_resumes(controlled):
    _, path, control = controlled
    with FrontEnd.connect(path) as front_end:
        driver = Driver(front_end)
        driver.offer()
        assert ask(control, "pause")[1]["drained"]
        driver.send(b"late")
        assert not driver.receive.wait_used(REST)
        assert ask(control, "show")[1]["state"] == "paused"
        assert ask(control, "resume")[0] == 0
        assert driver.received(1) == [b"late"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["resize", "1G"], "a loopback device has no size"), (["upgrade"], "only a disk")],
)
def test_what_only_a_disk_can_do_is_refused(controlled, words, reason):
    _, _, control = controlled
    status, answer = ask(control, *words)
    assert status == 1
    assert reason in answer["error"]


def test_it_ends_by_a_call(controlled):
    process, path, control = controlled
    with FrontEnd.connect(path) as front_end:
        Driver(front_end)
        assert ask(control, "stop")[0] == 0
    assert process.process.wait(5) == 0
    assert not path.exists()
