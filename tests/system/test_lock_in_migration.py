# SPDX-License-Identifier: Apache-2.0
"""One image, two back ends: who may write to it before, during and after a live migration."""

import contextlib
import os

import pytest

from harness.daemon import Daemon, image, run
from harness.dirtylog import DirtyLog, log_data
from harness.frontend import FLUSH, Disk, FrontEnd
from harness.storage import loop_device

SIZE = 16 << 20
OK = 0
PATIENCE = 15  # seconds; blkd waits 5 for the lock
DATA = b"as it was written over there" + bytes(484)


class Host:
    """A back end, and the front end that is connected to it now."""

    def __init__(self, path, directory, *options):
        directory.mkdir()
        self.daemon = Daemon(path, directory, *options)
        self.daemon.ready()
        self.front_end = None
        self.connect()

    def connect(self):
        """Have another front end come in the place of the one that was there."""
        if self.front_end:
            self.front_end.close()
        self.front_end = FrontEnd.connect(self.daemon.socket, timeout=PATIENCE)
        self.front_end.prepare()

    def boot(self):
        """Start a ring: the disk."""
        self.disk = Disk(self.front_end, self.front_end.start_ring())
        return self.disk

    def starts(self):
        """Whether the back end starts a ring."""
        try:
            self.front_end.start_ring()
        except AssertionError as refused:
            if "SET_VRING_KICK" not in str(refused):
                raise
            self.front_end.rings.pop(0).close()
            return False
        return True

    def begin_to_migrate(self):
        """Have all that is written logged."""
        with DirtyLog(self.front_end) as log:
            log.start()

    def migrate_away(self):
        """Stop the ring while that is logged, as a front end does in the end."""
        self.begin_to_migrate()
        assert self.disk.request(FLUSH).status == OK
        self.front_end.stop_ring()

    @property
    def locked(self):
        return self.daemon.call("show")["image_locked"]

    def close(self):
        self.front_end.close()
        self.daemon.__exit__()


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "disk.img", SIZE)


@pytest.fixture
def host(tmp_path):
    """Starts back ends, each with a front end."""
    with contextlib.ExitStack() as hosts:

        def start(name, path, *options):
            started = Host(path, tmp_path / name, *options)
            hosts.callback(started.close)
            return started

        yield start


@pytest.fixture(params=["file", "block-device"])
def shared(request, path):
    """An image that both ends see."""
    if request.param == "file":
        yield path
    else:
        with loop_device(path, "--direct-io=on") as device:
            yield device


def test_an_image_goes_there_and_back(host, shared):
    source, destination = host("source", shared), host("destination", shared, "--incoming")
    disk = source.boot()
    assert (source.locked, destination.locked) == (True, False)
    for turn in range(3):
        assert disk.write(8 * turn, DATA) == OK
        source.migrate_away()
        assert not source.locked
        destination.connect()
        disk = destination.boot()
        assert destination.locked
        assert disk.read(8 * turn, 512) == (OK, DATA)
        source, destination = destination, source


def test_a_ring_waits_for_the_lock_and_is_refused_if_it_stays_taken(host, path):
    source, destination = host("source", path), host("destination", path, "--incoming")
    source.boot()
    assert not destination.starts()
    assert source.locked
    assert not destination.locked
    assert f"in use by blkd (pid {source.daemon.process.pid})" in destination.daemon.errors()
    source.migrate_away()
    assert destination.starts()
    assert destination.locked


def test_a_cancelled_migration_takes_the_image_back(host, path):
    source = host("source", path)
    disk = source.boot()
    source.migrate_away()
    assert not source.locked
    source.connect()
    disk = source.boot()
    assert source.locked
    assert disk.write(0, DATA) == OK


def test_the_source_does_not_go_on_while_the_destination_has_the_image(host, path):
    source, destination = host("source", path), host("destination", path, "--incoming")
    source.boot()
    source.migrate_away()
    destination.boot()
    source.connect()
    assert not source.starts()
    assert not source.locked


def test_a_stop_without_migration_keeps_the_lock(host, path):
    source = host("source", path)
    source.boot()
    source.front_end.stop_ring()
    assert source.locked


def test_a_stop_with_logging_accepted_and_no_log_keeps_it_too(host, path):
    source = host("source", path)
    source.boot()
    log_data(source.front_end, on=True)
    source.front_end.stop_ring()
    assert source.locked


def test_a_guest_that_was_paused_before_goes_once_the_source_s_blkd_has_ended(host, shared):
    source, destination = host("source", shared), host("destination", shared, "--incoming")
    assert source.boot().write(0, DATA) == OK
    source.front_end.stop_ring()
    source.begin_to_migrate()  # late
    source.front_end.close()
    source.daemon.wait_for_log("front end left")
    assert source.locked
    assert not destination.starts()
    assert source.daemon.end() == 0
    assert destination.boot().read(0, 512) == (OK, DATA)
    assert destination.locked


def test_the_lock_goes_with_the_last_ring(host, path):
    source = host("source", path)
    source.boot()
    source.front_end.start_ring(1)
    source.begin_to_migrate()
    source.front_end.stop_ring(0)
    assert source.locked
    source.front_end.stop_ring(1)
    assert not source.locked


def test_a_front_end_that_vanishes_in_a_migration_leaves_the_image(host, path):
    source, destination = host("source", path), host("destination", path, "--incoming")
    source.boot()
    source.begin_to_migrate()
    source.front_end.close()
    assert destination.starts()


def test_growth_before_the_hand_over_is_seen_with_it(host, path):
    source, destination = host("source", path), host("destination", path, "--incoming")
    source.boot()
    os.truncate(path, 2 * SIZE)
    source.migrate_away()
    disk = destination.boot()
    assert destination.daemon.call("show")["size"] == 2 * SIZE
    assert disk.read(SIZE // 512, 512) == (OK, bytes(512))


def test_an_image_that_is_not_ours_cannot_be_resized(host, path):
    destination = host("destination", path, "--incoming")
    command = ["resize", 2 * SIZE, "--control", destination.daemon.control]
    done = run(*command)
    assert done.returncode == 1
    assert "not locked" in done.stderr
    assert path.stat().st_size == SIZE


def test_an_image_that_is_only_read_is_nobody_s_alone(host, path):
    source = host("source", path, "--read-only")
    destination = host("destination", path, "--read-only", "--incoming")
    source.boot()
    assert destination.boot().read(0, 512) == (OK, bytes(512))


def test_a_moved_image_is_locked_all_the_same(host, path):
    destination = host("destination", path, "--incoming")
    path.rename(path.with_name("elsewhere.img"))
    assert destination.starts()
    assert destination.locked


def test_a_null_image_needs_no_lock(host):
    assert host("destination", "null:1M", "--incoming").boot().write(0, DATA) == OK
