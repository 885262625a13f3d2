# SPDX-License-Identifier: Apache-2.0
"""Storage that loses what the page cache had for it: no answer says that it is durable."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.daemon import Daemon, Taker, image, run
from harness.dirtylog import DirtyLog
from harness.frontend import FLUSH, IOERR, OK, OUT, FrontEnd
from harness.fuse import FSYNC, FileSystem, times
from harness.storage import loop_device, mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and loop devices are root's")

MIB = 1 << 20
BLOCK = 4096
BLOCKS = 160
ROOM = 64  # blocks


class Small(NamedTuple):
    """A block device that says it is larger than what is below it."""

    device: Path
    below: Path

    def has(self, number: int) -> bool:
        """Whether a block is on the disk; the device's page cache may show what is lost."""
        with self.below.open("rb") as file:
            return os.pread(file.fileno(), BLOCK, number * BLOCK) == block(number)


@pytest.fixture
def small(tmp_path):
    options = ("-t", "tmpfs", "-o", f"size={ROOM * BLOCK}")
    with mounted("none", tmp_path / "full", *options) as place:
        below = image(place / "below", 16 * MIB)
        with loop_device(below) as device:
            yield Small(device, below)


def block(number):
    return number.to_bytes(4, "little") * (BLOCK // 4)


def write(disk, numbers):
    """Write these blocks, all in flight at once: their statuses."""
    heads = [disk.submit(OUT, number * BLOCK // 512, block(number)) for number in numbers]
    return [done.status for done in disk.wait(*heads, timeout=20)]


def write_in_turns(disk, count, first=0, depth=32):
    """Write `count` blocks from `first` on, `depth` at a time: those that were acknowledged."""
    found = set()
    for start in range(first, first + count, depth):
        numbers = range(start, min(start + depth, first + count))
        found |= {n for n, status in zip(numbers, write(disk, numbers), strict=True) if not status}
    return found


def test_no_flush_succeeds_after_one_that_failed(small, serve):
    daemon, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    assert daemon.call("show")["sync_error"] is None
    assert len(write_in_turns(disk, BLOCKS)) == BLOCKS
    assert [disk.flush() for _ in range(3)] == [IOERR] * 3
    assert not all(map(small.has, range(BLOCKS)))
    assert disk.write(0, bytes(BLOCK)) == OK, "only what is to be durable fails"
    assert disk.read(0, BLOCK) == (OK, bytes(BLOCK))
    logged = daemon.wait_for_log("sync failed", image=str(small.device))
    assert logged["level"] == "error"
    assert "lost" in logged["hint"]
    assert daemon.errors().count('"sync failed"') == 1
    assert daemon.call("show")["sync_error"] == logged["reason"] == "Input/output error"
    front_end.close()
    with FrontEnd.connect(daemon.socket) as another:
        assert another.disk().flush() == IOERR


def test_a_process_that_opens_the_image_anew_flushes_again(small, tmp_path, serve):
    daemon, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    assert disk.flush() == IOERR
    front_end.close()
    assert daemon.end() == 0
    with Daemon(small.device, tmp_path, "--cache", "writeback") as again:
        again.ready()
        with FrontEnd.connect(again.socket) as front_end:
            assert front_end.disk().flush() == OK


@pytest.mark.parametrize("turn", range(4))
def test_flushes_of_several_workers_do_not_take_each_others_error(small, serve, turn):  # noqa: ARG001
    _, front_end = serve(small.device, "--cache", "writeback", "--queues", 3, "--workers", 3)
    disks = list(front_end.disks(3))
    for n, disk in enumerate(disks):
        write_in_turns(disk, BLOCKS, n * BLOCKS)
    heads = [disk.submit(FLUSH) for disk in disks]
    found = [disk.wait(head)[0].status for disk, head in zip(disks, heads, strict=True)]
    assert found == [IOERR] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_each_write_through_write_that_succeeds_is_on_the_disk(small, serve, workers):
    options = ("--cache", "writethrough", "--queues", workers, "--workers", workers)
    _, front_end = serve(small.device, *options)
    disks = list(front_end.disks(workers))
    acknowledged = set()
    for start in range(0, 720, 16):
        heads = [
            (n, disks[n % workers], disks[n % workers].submit(OUT, n * 8, block(n)))
            for n in range(start, start + 16)
        ]
        acknowledged |= {n for n, disk, head in heads if disk.wait(head)[0].status == OK}
    assert acknowledged, "there is room for some"
    assert len(acknowledged) < 720
    assert all(map(small.has, acknowledged))


def test_a_write_through_write_that_is_not_durable_is_named_by_its_place(small, serve):
    daemon, front_end = serve(small.device, "--cache", "writethrough")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    logged = daemon.wait_for_log("image failed a request", request="write")
    assert logged["offset"] < BLOCKS * BLOCK
    assert disk.write(80, b"x" * 4096) == IOERR
    daemon.wait_for_log("sync failed")


def test_writes_in_write_back_mode_that_a_switch_makes_durable_are_not_forgotten(small, serve):
    _, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    front_end.write_config(32, b"\0")
    assert disk.write(0, block(0)) == IOERR
    assert disk.write_zeroes([(0, 8)]) == IOERR


def test_a_failed_sync_is_known_after_an_upgrade(small, serve):
    daemon, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    assert disk.flush() == IOERR
    with Taker(daemon) as new:
        new.ready()
        assert disk.flush() == IOERR
        assert new.call("show")["sync_error"] == "Input/output error"
        new.wait_for_log("sync failed")


def test_an_error_that_another_program_got_is_known_after_an_upgrade(small, serve):
    daemon, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    fd = os.open(small.device, os.O_RDWR)
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(fd)  # no description that is opened from now on gets the error
    os.close(fd)
    with Taker(daemon) as new:
        new.ready()
        assert disk.flush() == IOERR


def test_an_image_whose_sync_failed_is_not_unlocked_for_another_host(small, serve):
    daemon, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    assert disk.flush() == IOERR
    with DirtyLog(front_end) as log:
        log.start()
        front_end.stop_ring()
    assert "has failed before" in daemon.wait_for_log("image not handed over")["reason"]
    assert daemon.call("show")["image_locked"]


def test_an_image_that_cannot_be_synced_is_not_unlocked_and_no_flush_succeeds(small, serve):
    daemon, front_end = serve(small.device, "--cache", "writeback")
    disk = front_end.disk()
    write_in_turns(disk, BLOCKS)
    with DirtyLog(front_end) as log:
        log.start()
        base = front_end.stop_ring()
    daemon.wait_for_log("image not handed over")
    assert daemon.call("show")["sync_error"] == "Input/output error"
    assert daemon.call("show")["image_locked"]
    assert base is not None


def test_a_resize_that_cannot_be_synced_is_an_error_and_none_is_tried_again(tmp_path, serve):
    with FileSystem(tmp_path / "fuse", MIB) as storage:
        daemon, front_end = serve(storage.path, "--cache", "writeback")
        disk = front_end.disk()
        assert disk.flush() == OK
        storage.answers[FSYNC] = times(1, errno.EIO)
        failed = run("resize", "2M", "--control", daemon.control)
        assert "cannot be made durable" in failed.stderr
        refused = run("resize", "2M", "--control", daemon.control)
        assert "a sync of it has failed before" in refused.stderr
        assert failed.returncode == refused.returncode == 1
        assert disk.flush() == IOERR
        front_end.close()
        assert daemon.end() == 0
