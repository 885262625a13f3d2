# SPDX-License-Identifier: Apache-2.0
"""Calls to a driver, where the kernel takes only a part of what is submitted at once."""

import os
import subprocess
import sys

import pytest
from blkd.probes import Calls


@pytest.fixture
def eventfd():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_calls_before_a_submission_are_one(eventfd):
    calls = Calls(eventfd)
    calls.call()
    calls.call()
    assert calls.submit() == 1
    assert os.eventfd_read(eventfd) == 1


def test_a_call_is_not_taken_for_queued_once_the_kernel_has_it(eventfd):
    calls = Calls(eventfd)
    calls.call()
    calls.queue_refused()
    calls.queue_refused()
    assert calls.submit() == 2  # the call and the first one refused; the second waits
    assert os.eventfd_read(eventfd) == 1
    calls.call()
    while calls.submit():
        pass
    assert os.eventfd_read(eventfd) == 1


def test_a_call_is_not_repeated_while_it_waits_behind_what_is_refused(eventfd):
    calls = Calls(eventfd)
    calls.queue_refused()
    calls.call()
    assert calls.submit() == 1
    calls.call()
    assert calls.submit() == 1
    assert calls.submit() == 0
    assert os.eventfd_read(eventfd) == 1


def test_a_call_behind_what_is_refused_still_reaches_an_eventfd_that_is_left(eventfd):
    calls = Calls(eventfd)
    calls.queue_refused()
    calls.call()
    calls.leave()
    assert os.eventfd_read(eventfd) == 1


LEAVE = """
import os
from blkd.probes import Calls
calls = Calls(os.eventfd(0))
calls.call()
calls.leave()
"""


def test_an_eventfd_is_left_where_the_kernel_has_no_memory_for_the_call():
    strace = ["strace", "--output=/dev/null", "--inject=io_uring_enter:error=EAGAIN"]
    subprocess.run([*strace, sys.executable, "-c", LEAVE], check=True, timeout=30)
