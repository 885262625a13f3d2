# SPDX-License-Identifier: Apache-2.0
"""Eventfds of a front end that can take no more, or would have whoever writes to them wait."""

import contextlib
import fcntl
import itertools
import os
import resource
import struct
import time
from pathlib import Path

import pytest

from harness.frontend import IN, OK, Feature, FrontEnd, Request
from harness.vring import Vring

MOST = (1 << 64) - 2
"""The highest count that a write may leave: one that would go beyond it waits."""

REQUESTS = 20
LIMIT = 5.0  # seconds of anything
END_LIMIT = 3.0  # seconds of the process's end; the data path is abandoned after 4


def fill(fd, *, blocking=False):
    """Leave no room for one more; with `blocking`, have whoever writes wait for some."""
    while True:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, MOST)
            break
    make_blocking(fd, blocking=blocking)


def make_blocking(fd, *, blocking=True):
    """Set or clear O_NONBLOCK, which all who share the eventfd have in common."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | (0 if blocking else os.O_NONBLOCK))


@pytest.fixture(params=[False, True], ids=["full", "full-and-blocking"])
def fill_up(request):
    """Fills an eventfd up, in each of the ways in which it can be full."""
    return lambda fd: fill(fd, blocking=request.param)


@pytest.fixture
def serve_two(serve):
    """Serves a disk of two queues, both of one worker."""
    return lambda: serve("null:64M", "--workers", 1, "--queues", 2)


def fill_while_served(front_end, fill_up, *, packed=False):
    """Two disks, of which the first's call eventfd was filled up after it had been used."""
    first, second = front_end.disks(2, 64, packed=packed)
    assert first.flush() == second.flush() == OK
    fill_up(first.ring.call_fd)
    for n in range(REQUESTS):
        first.ring.used_event = first.ring.seen
        assert first.poll(first.submit(IN, n, size=512))[0].status == OK
    return first, second


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_full_call_eventfd_holds_up_neither_its_ring_nor_others(serve_two, fill_up, packed):
    _, front_end = serve_two()
    _, second = fill_while_served(front_end, fill_up, packed=packed)
    assert second.read(0, 512)[0] == OK
    for index in range(2):
        front_end.stop_ring(index)


def test_a_call_eventfd_that_was_full_is_called_again(serve_two, fill_up):
    _, front_end = serve_two()
    first, _ = fill_while_served(front_end, fill_up)
    assert os.eventfd_read(first.ring.call_fd) >= MOST
    first.ring.used_event = first.ring.seen
    assert first.poll(first.submit(IN, 0, size=512))[0].status == OK
    assert first.ring.called(LIMIT)


def test_a_full_call_eventfd_can_be_replaced(serve_two, fill_up):
    _, front_end = serve_two()
    first, _ = fill_while_served(front_end, fill_up)
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    front_end.ring_fd(Request.SET_VRING_CALL, 0, fresh)
    os.dup2(fresh, first.ring.call_fd)
    os.close(fresh)
    assert first.ring.called(LIMIT)
    assert first.flush() == OK


def test_a_full_call_eventfd_does_not_lock_the_next_front_end_out(serve_two, fill_up):
    daemon, front_end = serve_two()
    fill_while_served(front_end, fill_up)
    front_end.close()
    with FrontEnd.connect(daemon.socket) as following:
        assert following.disk().flush() == OK


def test_a_full_call_eventfd_does_not_hold_up_the_end(serve_two, fill_up):
    daemon, front_end = serve_two()
    fill_while_served(front_end, fill_up)
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < END_LIMIT


def test_no_call_waits_while_the_flag_comes_and_goes(serve_two):
    """Whatever the flag is when somebody looks at it, and whatever when the call is made."""
    _, front_end = serve_two()
    first, second = front_end.disks(2, 64)
    fill(first.ring.call_fd)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        first.ring.used_event = first.ring.seen
        head = first.submit(IN, 0, size=512)
        for turn in range(32):
            make_blocking(first.ring.call_fd, blocking=turn % 2 == 0)
        assert first.poll(head)[0].status == OK
    assert second.read(0, 512)[0] == OK


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_ring_that_starts_calls_its_driver_once(serve, packed):
    _, front_end = serve("null:64M")
    disk = front_end.disk(packed=packed)
    assert disk.ring.called(LIMIT)
    assert not disk.ring.called(0.1)
    base = front_end.stop_ring(0)
    front_end.start_ring(0, ring=disk.ring, base=base)
    assert disk.ring.called(LIMIT)
    assert disk.flush() == OK


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_ring_is_stopped_only_after_its_last_call(serve, packed):
    _, front_end = serve("null:64M")
    every_answer = front_end.offered() & ~(Feature.LOG_ALL | Feature.EVENT_IDX)
    disk = front_end.disk(packed=packed, features=every_answer)
    for n in range(REQUESTS):
        assert disk.ring.called(LIMIT)  # at the start
        head = disk.submit(IN, n, size=512)
        base = front_end.stop_ring(0)
        done = disk.ring.take_used()
        assert disk.ring.called(0) or not done
        front_end.start_ring(0, ring=disk.ring, base=base)
        assert done or disk.wait(head)[0].status == OK


def leave_one_descriptor(pid):
    """Let a process open one more descriptor than it has: the limits it had."""
    taken = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    spare = (number for number in itertools.count() if number not in taken)
    next(spare)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(spare), before[1]))
    return before


def test_a_call_eventfd_that_there_is_no_room_for_is_refused(serve):
    daemon, front_end = serve("null:64M")
    front_end.prepare()
    with contextlib.closing(Vring(front_end.memory, 64)) as ring:
        front_end.ring_fd(Request.SET_VRING_ERR, 0, ring.err_fd)
        before = leave_one_descriptor(daemon.process.pid)
        assert front_end.ack(Request.SET_VRING_CALL, bytes(8), [ring.call_fd]) != 0
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
    assert front_end.make_disk().flush() == OK


def break_ring(disk):
    """Make a chain available that no device can answer."""
    disk.ring.publish(disk.ring.add([(struct.pack("<IIQ", IN, 0, 0), 16, 0)]))
    disk.ring.kick()


def test_a_full_error_eventfd_holds_up_nobody_and_does_not_keep_the_next_quiet(serve_two, fill_up):
    daemon, front_end = serve_two()
    first, second = front_end.disks(2, 64)
    fill_up(first.ring.err_fd)
    break_ring(first)
    daemon.wait_for("broken_rings", [0])
    assert second.read(0, 512)[0] == OK
    front_end.close()
    with FrontEnd.connect(daemon.socket) as following:
        disk = following.disk()
        break_ring(disk)
        assert disk.ring.broken()
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < END_LIMIT


def test_each_break_of_a_ring_is_reported(serve):
    _, front_end = serve("null:64M")
    disk = front_end.disk()
    for _ in range(3):
        break_ring(disk)
        assert disk.ring.broken()
        base = front_end.stop_ring(0)
        front_end.start_ring(0, ring=disk.ring, base=base)
    assert disk.flush() == OK
