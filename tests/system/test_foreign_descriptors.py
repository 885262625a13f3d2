# SPDX-License-Identifier: Apache-2.0
"""Descriptors of a front end that fail or never answer: the front ends to come must not notice."""

import contextlib
import errno
import os
import struct
import time
from pathlib import Path

import pytest

from harness.daemon import Daemon, image
from harness.frontend import FrontEnd, Request
from harness.fuse import FLUSH, STATFS, FileSystem
from harness.vring import Region

MIB = 1 << 20
OK = 0
ANSWERED_WITHIN = 3.0  # seconds; what hangs would take for ever


@pytest.fixture
def daemon(tmp_path):
    with Daemon(image(tmp_path / "disk.img", MIB), tmp_path) as started:
        started.ready()
        yield started


@pytest.fixture
def fuse(daemon, tmp_path):
    """Strikes the daemon only; unmounted before the daemon ends, which would wait for it."""
    with FileSystem(tmp_path / "fuse", MIB, writeback=True) as mounted:
        mounted.victim = daemon.process.pid
        yield mounted


def serves(daemon, times=3):
    """Whether good front ends are served, one after the other."""
    for n in range(times):
        with FrontEnd.connect(daemon.socket) as front_end:
            disk = front_end.disk()
            assert disk.write(n, bytes([n]) * 512) == OK
            assert disk.read(n, 512) == (OK, bytes([n]) * 512)
    return daemon.process.poll() is None


def file_region(fd):
    return Region(gpa=1 << 40, size=MIB, uva=1 << 41, offset=0, fd=fd, memory=None)


def add_memory(front_end, fd):
    return front_end.ack(Request.ADD_MEM_REG, bytes(8) + file_region(fd).pack(), [fd])


def set_memory(front_end, fd):
    table = struct.pack("=II", 1, 0) + file_region(fd).pack()
    return front_end.ack(Request.SET_MEM_TABLE, table, [fd])


def set_log(front_end, fd):
    return int.from_bytes(
        front_end.call(Request.SET_LOG_BASE, struct.pack("=QQ", 4096, 0), [fd]), "little"
    )


def set_log_fd(front_end, fd):
    return front_end.ack(Request.SET_LOG_FD, b"", [fd])


def set_kick(front_end, fd):
    return front_end.ack(Request.SET_VRING_KICK, bytes(8), [fd])


def set_call(front_end, fd):
    return front_end.ack(Request.SET_VRING_CALL, bytes(8), [fd])


def set_back_channel(front_end, fd):
    return front_end.ack(Request.SET_BACKEND_REQ_FD, b"", [fd])


def set_inflight(front_end, fd):
    part = 16 + 16 * 128
    region = struct.pack("=QQHH", -(-part // 64) * 64, 0, 1, 128)
    return front_end.ack(Request.SET_INFLIGHT_FD, region, [fd])


def unknown_request(front_end, fd):
    return front_end.ack(77, b"", [fd])


REQUESTS = [
    add_memory,
    set_memory,
    set_log,
    set_log_fd,
    set_kick,
    set_call,
    set_back_channel,
    set_inflight,
    unknown_request,
]
TAKEN = {set_log_fd}  # an eventfd that nothing is done with


def give(daemon, fuse, sent):
    """Hand a file of `fuse` over, and leave: what the request was answered."""
    with FrontEnd.connect(daemon.socket) as front_end, fuse.path.open("rb+") as file:
        front_end.disk()
        return sent(front_end, file.fileno())


@pytest.mark.parametrize("sent", REQUESTS, ids=lambda f: f.__name__)
def test_a_descriptor_whose_close_fails_hurts_nobody(daemon, fuse, sent):
    fuse.answers[FLUSH] = lambda: errno.EIO
    answer = give(daemon, fuse, sent)
    assert (answer == 0) == (sent in TAKEN)
    assert serves(daemon)
    fuse.wait_for(FLUSH)


@pytest.mark.parametrize("sent", REQUESTS, ids=lambda f: f.__name__)
def test_a_descriptor_whose_close_never_ends_hurts_nobody(daemon, fuse, sent):
    fuse.silent.add(FLUSH)
    began = time.monotonic()
    give(daemon, fuse, sent)
    assert serves(daemon)
    fuse.wait_for(FLUSH)
    assert daemon.call("show")["state"] == "serving"
    assert time.monotonic() - began < ANSWERED_WITHIN * 2


def test_descriptors_of_many_hung_closes_are_kept_and_others_go_on(daemon, fuse):
    fuse.silent.add(FLUSH)
    for _ in range(20):  # more than there are threads to close them
        give(daemon, fuse, set_log_fd)
    assert serves(daemon)
    daemon.wait_for_log("descriptors cannot be closed")
    daemon.wait_for("front_end", None)
    maps = Path(f"/proc/{daemon.process.pid}/maps")
    deadline = time.monotonic() + ANSWERED_WITHIN
    while "memfd:guest" in maps.read_text():
        assert time.monotonic() < deadline, "memory stays mapped"


@pytest.mark.parametrize("sent", [add_memory, set_log, set_inflight], ids=lambda f: f.__name__)
def test_a_file_system_that_does_not_say_what_it_is_holds_nobody_up(daemon, fuse, sent):
    fuse.silent.add(STATFS)
    assert give(daemon, fuse, sent) != 0
    daemon.wait_for_log("request refused")
    assert serves(daemon)


def test_threads_that_wait_for_file_systems_do_not_become_ever_more(daemon, fuse):
    fuse.silent.add(STATFS)
    tasks = Path(f"/proc/{daemon.process.pid}/task")
    with FrontEnd.connect(daemon.socket) as front_end, fuse.path.open("rb+") as file:
        front_end.prepare()
        for _ in range(4):
            assert add_memory(front_end, file.fileno()) != 0
        before = len(list(tasks.iterdir()))
        for _ in range(20):
            assert add_memory(front_end, file.fileno()) != 0
        assert len(list(tasks.iterdir())) < before + 5  # some close what was refused
    assert serves(daemon)


def test_guest_memory_may_be_a_file_of_a_local_file_system(daemon, tmp_path):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.prepare()
        with (tmp_path / "memory").open("wb+") as file:
            os.truncate(file.fileno(), MIB)
            assert add_memory(front_end, file.fileno()) == 0
        assert front_end.make_disk().write(0, bytes(512)) == OK


def test_a_second_front_end_that_leaves_hung_descriptors_behind_hurts_nobody(daemon, fuse):
    fuse.silent.add(FLUSH)
    with FrontEnd.connect(daemon.socket) as first, fuse.path.open("rb+") as file:
        disk = first.disk()
        for _ in range(5):
            with FrontEnd.connect(daemon.socket) as second:
                with contextlib.suppress(BrokenPipeError):
                    second.send(Request.SET_LOG_FD, b"", [file.fileno()])
                assert second.wait_closed()
        assert disk.write(0, bytes(512)) == OK
