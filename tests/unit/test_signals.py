# SPDX-License-Identifier: Apache-2.0
"""The deadline that a signal sets, in a program that receives it and does nothing."""

import signal
import subprocess
import sys
import time

import pytest

from blkd.host.signals import AGAIN_LIMIT, END_LIMIT

DEAF = """
import sys, time
from blkd.host import signals
signals.hold()
if sys.argv[1] == "forwarded":
    signals.forward(lambda number: print(number, flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)  # an event loop that hangs
"""
SLACK = 3.0  # seconds, on a machine that does much else


@pytest.fixture(params=["forwarded", "early"])
def deaf(request):
    with subprocess.Popen(
        [sys.executable, "-c", DEAF, request.param], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_process_that_hangs_is_gone_in_time(deaf, number):
    began = time.monotonic()
    deaf.send_signal(number)
    assert deaf.wait(END_LIMIT + SLACK) == 0
    assert time.monotonic() - began >= END_LIMIT


def test_a_second_signal_shortens_the_time(deaf):
    began = time.monotonic()
    deaf.send_signal(signal.SIGTERM)
    while deaf.poll() is None and time.monotonic() < began + 0.2:
        pass  # two that come together are one
    deaf.send_signal(signal.SIGTERM)
    assert deaf.wait(END_LIMIT + SLACK) == 0
    assert AGAIN_LIMIT <= time.monotonic() - began < END_LIMIT


def test_a_hangup_sets_no_deadline(deaf):
    deaf.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        deaf.wait(END_LIMIT + 0.5)
