# SPDX-License-Identifier: Apache-2.0
"""Storage that wants to be asked again: a few times at once, then ever later, then not at all."""

import errno
import os

import pytest

from harness.frontend import IN, IOERR, OK, OUT
from harness.fuse import FLUSH, FSYNC, READ, WRITE, FileSystem, times

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="FUSE is mounted as root")

SIZE = 4 << 20
PATIENCE = 10  # seconds; blkd repeats for 4


@pytest.fixture
def storage(tmp_path):
    with FileSystem(tmp_path / "fuse", SIZE) as found:
        yield found


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR], ids=["EAGAIN", "EINTR"])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_step_that_is_given_up_for_ever_becomes_an_error(storage, serve, kind, error):
    # Not O_DIRECT: the kernel's io_uring would repeat by itself what ends so.
    daemon, front_end = serve(storage.path, "--cache", "writeback", "--engine", "uring")
    disk = front_end.disk()
    opcode = READ if kind == "read" else WRITE
    storage.seen.clear()
    storage.answers[opcode] = lambda: error
    head = disk.submit(IN, 2048, size=4096) if kind == "read" else disk.submit(OUT, 0, bytes(512))
    assert disk.wait(head, timeout=PATIENCE)[0].status == IOERR
    assert 10 < storage.seen[opcode] < 100
    assert daemon.wait_for_log("image failed a request")["reason"] == os.strerror(error)
    storage.answers.clear()
    assert disk.read(4096, 4096) == (OK, bytes(4096))


@pytest.mark.parametrize("often", [1, 12, 20], ids=["once", "at-once", "after-pauses"])
def test_a_step_that_is_given_up_for_a_while_is_done(storage, serve, often):
    _, front_end = serve(storage.path)
    disk = front_end.disk()
    storage.answers[WRITE] = times(often, errno.EAGAIN)
    assert disk.write(8, b"w" * 4096) == OK
    storage.answers[READ] = times(often, errno.EAGAIN)
    assert disk.read(8, 4096) == (OK, b"w" * 4096)


def test_others_are_served_while_a_step_waits(storage, serve):
    _, front_end = serve(storage.path)
    disk = front_end.disk()
    storage.answers[WRITE] = lambda: errno.EAGAIN
    waiting = disk.submit(OUT, 0, bytes(512))
    for _ in range(50):
        assert disk.read(0, 512) == (OK, bytes(512))
    assert disk.wait(waiting, timeout=PATIENCE)[0].status == IOERR


def test_a_sync_that_was_interrupted_is_repeated(storage, serve):
    _, front_end = serve(storage.path, "--cache", "writeback")
    disk = front_end.disk()
    storage.answers[FSYNC] = times(3, errno.EINTR)
    assert disk.flush() == OK


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR, errno.EIO])
def test_a_sync_that_tells_of_a_failed_write_back_is_not_repeated(tmp_path, serve, error):
    with FileSystem(tmp_path / "fuse", SIZE, writeback=True) as storage:
        daemon, front_end = serve(storage.path, "--cache", "writeback", "--engine", "uring")
        disk = front_end.disk()
        storage.answers[WRITE] = lambda: error
        assert disk.write(0, b"w" * 4096) == OK
        assert disk.flush() == IOERR
        storage.answers.clear()
        assert disk.flush() == IOERR
        assert daemon.call("show")["sync_error"] == os.strerror(error)
        front_end.close()
        daemon.end()


def test_a_sync_that_failed_is_not_repeated(storage, serve):
    daemon, front_end = serve(storage.path, "--cache", "writeback")
    disk = front_end.disk()
    storage.answers[FSYNC] = times(1, errno.EAGAIN)
    assert [disk.flush(), disk.flush()] == [IOERR, IOERR]
    assert storage.seen[FSYNC] == 1
    assert daemon.call("show")["sync_error"] == os.strerror(errno.EAGAIN)


def test_a_file_system_that_complains_at_the_close_does_not_keep_the_process(storage, serve):
    daemon, front_end = serve(storage.path, "--cache", "writeback")
    assert front_end.disk().write(0, b"x" * 4096) == OK
    storage.answers[FLUSH] = lambda: errno.EIO  # at each close(2)
    front_end.close()
    assert daemon.end() == 0
    assert storage.seen[FLUSH] >= 3
    assert "Traceback" not in daemon.errors()


def test_a_flush_of_an_image_for_direct_io_has_an_error_of_its_own(storage, serve):
    daemon, front_end = serve(storage.path, "--cache", "none")
    disk = front_end.disk()
    storage.answers[FSYNC] = times(1, errno.EIO)
    assert [disk.flush(), disk.flush()] == [IOERR, OK]
    assert daemon.call("show")["sync_error"] is None
