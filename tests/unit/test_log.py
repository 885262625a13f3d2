# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from blkd import log
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


def test_a_reader_that_went_away_does_not_end_the_program():
    reader, writer = os.pipe()
    os.close(reader)
    run(stderr=writer)
    os.close(writer)
