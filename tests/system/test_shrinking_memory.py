# SPDX-License-Identifier: Apache-2.0
"""A front end that takes its memory away while it is used: its connection ends, nothing else."""

import os
import struct
from pathlib import Path

import pytest

from harness.daemon import Daemon, image
from harness.frontend import IN, IOERR, OK, OUT, FrontEnd, Request
from harness.vring import DESC_WRITE

SIZE = 1 << 20
PAGE = 4096
ENGINES = {
    "direct": ("--cache", "none"),
    "buffered": ("--cache", "writeback"),
    "inline": ("--engine", "inline"),
    "memory": (),
}


@pytest.fixture(params=ENGINES)
def daemon(request, tmp_path, tmpfs):
    place = tmpfs if request.param == "memory" else tmp_path
    path = image(place / "a.img", SIZE)
    path.write_bytes(b"d" * SIZE)
    with Daemon(path, tmp_path, *ENGINES[request.param]) as daemon:
        daemon.ready()
        yield daemon


def submit(disk, kind, buffers):
    """A request of a page for each buffer; header and status lie in the first region."""
    status = disk.memory.alloc(16, region=0)
    disk.memory.write(status, b"\xff")
    flags = DESC_WRITE if kind == IN else 0
    header = struct.pack("<IIQ", kind, 0, 0)
    data = [(at, PAGE, flags) for at in buffers]
    head = disk.ring.add([(header, 16, 0), *data, (status, 1, DESC_WRITE)])
    disk.ring.publish(head)
    disk.ring.notify()
    return status


def ends(daemon, front_end):
    """Whether the connection is closed and said why, and the next front end is served."""
    closed = front_end.wait_closed()
    front_end.close()
    assert "memory shrank" in daemon.errors()
    with FrontEnd.connect(daemon.socket) as another:
        assert another.disk().read(8, PAGE)[0] == OK
    assert daemon.process.poll() is None
    return closed


@pytest.mark.parametrize("kind", [IN, OUT], ids=["read", "write"])
@pytest.mark.parametrize("buffers", ["gone", "half-gone", "unaligned"])
def test_a_transfer_in_memory_that_is_gone_fails_and_ends_the_connection(daemon, kind, buffers):
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        gone = front_end.memory.regions[1]
        at = {
            "gone": [gone.gpa],
            "half-gone": [front_end.memory.alloc(PAGE, PAGE, region=0), gone.gpa],
            "unaligned": [gone.gpa + 16],  # goes through a buffer of ours
        }[buffers]
        os.ftruncate(gone.fd, 0)
        status = submit(disk, kind, at)
        assert disk.ring.wait_used()
        # What the worker copies itself meets zeroes that were put there; the kernel meets nothing.
        assert disk.memory.read(status, 1)[0] in {OK, IOERR}
        assert ends(daemon, front_end)


def test_memory_that_goes_while_a_request_waits_fails_it(tmp_path):
    path = image(tmp_path / "a.img", SIZE)
    with Daemon(f"faulty:delay=2s@read:{path}", tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            disk = front_end.disk()
            gone = front_end.memory.regions[1]
            status = submit(disk, IN, [gone.gpa])
            daemon.wait_for("in_flight", 1)
            os.ftruncate(gone.fd, 0)
            assert disk.ring.wait_used()
            assert disk.memory.read(status, 1)[0] == IOERR
            assert ends(daemon, front_end)


def test_an_in_flight_region_that_goes_ends_the_connection(tmp_path):
    with Daemon(image(tmp_path / "a.img", SIZE), tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            front_end.prepare()
            front_end.get_inflight(1, 128)
            payload, sealed = front_end.inflight
            ours = os.memfd_create("in-flight")  # a file that nothing keeps from shrinking
            os.ftruncate(ours, os.fstat(sealed).st_size)
            front_end.set(Request.SET_INFLIGHT_FD, payload, [ours])
            disk = front_end.make_disk()
            assert disk.write(0, b"x" * PAGE) == OK
            os.ftruncate(ours, 0)
            os.close(ours)
            disk.submit(IN, 0, size=PAGE)
            assert ends(daemon, front_end)


def test_registered_memory_outlives_the_file_and_the_connection_ends_at_the_next_look(tmp_path):
    path = image(tmp_path / "a.img", SIZE)
    with Daemon(path, tmp_path, "--register-memory") as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            disk = front_end.disk()
            assert daemon.call("show")["memory_registered"]
            gone = front_end.memory.regions[1]
            os.ftruncate(gone.fd, 0)
            status = submit(disk, IN, [gone.gpa])
            assert disk.ring.wait_used()
            assert disk.memory.read(status, 1)[0] == OK, "the kernel holds its pages"
            os.ftruncate(front_end.memory.regions[0].fd, 0)
            disk.ring.kick()
            assert ends(daemon, front_end)


def test_a_front_end_that_shrinks_time_and_again_leaves_nothing_behind(tmp_path):
    with Daemon(image(tmp_path / "a.img", SIZE), tmp_path) as daemon:
        daemon.ready()
        before = None
        for turn in range(20):
            with FrontEnd.connect(daemon.socket) as front_end:
                disk = front_end.disk()
                os.ftruncate(front_end.memory.regions[turn % 2].fd, turn % 3 * PAGE)
                if turn % 2:
                    submit(disk, IN, [front_end.memory.regions[1].gpa + 64 * PAGE])
                else:
                    disk.ring.kick()
                assert front_end.wait_closed(), turn
            daemon.wait_for("front_end", None)
            found = left(daemon)
            before = before or found
            assert found == before
        assert daemon.end() == 0


def left(daemon):
    """Descriptors and mappings of guest memory that the process has."""
    process = Path(f"/proc/{daemon.process.pid}")
    return len(list((process / "fd").iterdir())), daemon.mapped_memory()
