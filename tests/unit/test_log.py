# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
import structlog

from blkd.host.log import MOST, Limiter

PROGRAM = """
import structlog
from blkd.host import log
log.configure()
events = structlog.get_logger()
events.debug("message", id=1)
events.info("ring started", ring=0, data=b"x", why=OSError("odd"))
try:
    1 / 0
except ZeroDivisionError:
    events.exception("call failed")
"""


def run(**kwargs):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, check=True, timeout=30, **kwargs
    )


@pytest.mark.parametrize(
    ("level", "expected"),
    [("", ["ring started", "call failed"]), ("debug", ["message", "ring started", "call failed"])],
    ids=["info", "debug"],
)
def test_events_go_to_standard_error_as_json_when_nobody_watches(level, expected):
    done = run(stderr=subprocess.PIPE, env=os.environ | {"BLKD_LOG": level})
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == expected
    assert events[-2]["ring"] == 0
    assert "ZeroDivisionError" in events[-1]["exception"]
    assert done.stdout == b""


def test_people_get_lines_on_a_terminal():
    ours, theirs = os.openpty()
    run(stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "ring started" in shown
    assert not shown.startswith("{")


KEPT = """
import threading
import structlog
from blkd.host import log
log.configure()
log.hold()
structlog.get_logger().info("image opened")
assert threading.active_count() == 1, threading.enumerate()
log.release()
structlog.get_logger().info("serving")
"""


def test_what_is_logged_while_no_thread_may_start_is_written_later():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, check=True, timeout=30)
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["image opened", "serving"]


def test_a_reader_that_went_away_does_not_end_the_program():
    reader, writer = os.pipe()
    os.close(reader)
    run(stderr=writer)
    os.close(writer)


def held_back(limiter, event, times):
    """How many of `times` such events get through."""
    passed = 0
    for n in range(times):
        with contextlib.suppress(structlog.DropEvent):
            limiter(None, "warning", {"event": event, "n": n})
            passed += 1
    return passed


def test_what_comes_too_often_is_held_back_but_for_the_last():
    woken = []
    limiter = Limiter(lambda: woken.append(True))
    assert held_back(limiter, "front end dropped", 264) == MOST
    assert held_back(limiter, "stopping", 1) == 1
    assert len(woken) == 1
    assert limiter.take() == []
    assert limiter.next_end() > time.monotonic()
    (last,) = limiter.take(end=True)
    assert last == {"event": "front end dropped", "n": 263, "suppressed": 264 - MOST - 1}
    assert limiter.next_end() is None


def test_every_ring_is_logged():
    limiter = Limiter(lambda: None)
    for ring in range(64):
        assert limiter(None, "info", {"event": "ring started", "ring": ring})["ring"] == ring


FLOOD = """
import structlog
from blkd.host import log
log.configure()
for n in range(300):
    structlog.get_logger().warning("front end dropped", n=n, path="\\udcff")
structlog.get_logger().info("stopping")
"""


def test_a_flood_ends_with_its_last_event_and_the_number_of_the_others():
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], stderr=subprocess.PIPE, check=True, timeout=30
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    dropped = [event for event in events if event["event"] == "front end dropped"]
    assert [event["n"] for event in dropped] == [*range(MOST), 299]
    assert dropped[-1]["suppressed"] == 300 - MOST - 1
    assert dropped[-1]["path"] == "\\udcff"
    assert "stopping" in [event["event"] for event in events]


def test_nothing_is_held_back_from_who_looks_for_a_fault():
    environment = os.environ | {"BLKD_LOG": "debug"}
    done = subprocess.run(
        [sys.executable, "-c", FLOOD],
        stderr=subprocess.PIPE,
        check=True,
        timeout=30,
        env=environment,
    )
    assert done.stderr.count(b"front end dropped") == 300
