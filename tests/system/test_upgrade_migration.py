# SPDX-License-Identifier: Apache-2.0
"""A live upgrade that is tried while the image goes to another back end, or comes from one."""

import contextlib

import pytest

from harness.daemon import Daemon, Taker
from harness.dirtylog import DirtyLog
from harness.frontend import FrontEnd
from harness.relay import Relay
from harness.storage import loop_device

OK = 0
PATIENCE = 15  # seconds; blkd waits 5 for the lock
DATA = bytes(range(256)) * 2
MEANWHILE = "its image was locked or handed over meanwhile"


@pytest.fixture
def host(tmp_path):
    """Starts back ends."""
    with contextlib.ExitStack() as running:

        def start(name, path, *options):
            (tmp_path / name).mkdir()
            daemon = running.enter_context(Daemon(path, tmp_path / name, *options))
            daemon.ready()
            return daemon

        yield start


@pytest.fixture
def connect():
    with contextlib.ExitStack() as connected:
        yield lambda daemon: connected.enter_context(
            FrontEnd.connect(daemon.socket, timeout=PATIENCE)
        )


@contextlib.contextmanager
def upgrade_at(daemon, name, act):
    """A new process, and the message `name` to or from it waits until `act` is done."""
    path = daemon.control.with_name("relay.sock")

    def hook(message):
        if message.name == name:
            act(new)

    with Relay(path, daemon.control, hook), Taker(daemon, path) as new:
        yield new


def migrate_away(front_end):
    """Stop the one ring under a dirty log, as at the end of a migration."""
    with DirtyLog(front_end) as log:
        log.start()
        front_end.stop_ring()


def locked(daemon):
    return daemon.call("show")["image_locked"]


def refused(daemon, new):
    """Whether the upgrade came to nothing for the image's sake, and the old process goes on."""
    assert new.process.wait(20) == 1
    assert "Traceback" not in new.errors()
    assert MEANWHILE in daemon.wait_for_log("not handed over")["reason"]
    return daemon.process.poll() is None


def test_an_image_that_was_offered_goes_over_while_the_new_process_has_it(host, connect, path):
    source, destination = host("source", path), host("destination", path, "--incoming")
    leaving, coming = connect(source), connect(destination)
    leaving.disk()

    def migrate(new):
        migrate_away(leaving)
        assert coming.disk().write(0, DATA) == OK
        assert new.process.poll() is None

    with upgrade_at(source, "ready", migrate) as new:
        assert refused(source, new)
    assert (locked(source), locked(destination)) == (False, True)


def test_a_new_process_that_gets_the_offer_late_locks_nothing(host, connect, path):
    source, destination = host("source", path), host("destination", path, "--incoming")
    leaving, coming = connect(source), connect(destination)
    leaving.disk()
    with upgrade_at(source, "offer", lambda _: migrate_away(leaving)) as new:
        assert refused(source, new)
        assert "came without the lock" in new.errors()
    assert coming.disk().write(0, DATA) == OK


def test_a_block_device_goes_over_once_the_new_process_has_heard(host, connect, path):
    with loop_device(path, "--direct-io=on") as device:
        source, destination = host("source", device), host("destination", device, "--incoming")
        leaving, coming = connect(source), connect(destination)
        leaving.disk()
        with upgrade_at(source, "ready", lambda _: migrate_away(leaving)) as new:
            source.wait_for_log("image unlocked")
            assert coming.disk().write(0, DATA) == OK
            assert refused(source, new)
        assert (locked(source), locked(destination)) == (False, True)
        source.end()
        destination.end()


def test_an_image_that_was_offered_unlocked_is_locked_where_it_is(host, connect, path):
    daemon = host("destination", path, "--incoming")
    front_end = connect(daemon)
    disks = []
    with upgrade_at(daemon, "ready", lambda _: disks.append(front_end.disk())) as new:
        assert refused(daemon, new)
    assert disks[0].write(0, DATA) == OK
    assert locked(daemon)


def test_an_image_that_went_and_came_back_is_not_the_one_that_was_offered(host, connect, path):
    daemon = host("source", path)
    front_end = connect(daemon)
    disk = front_end.disk()

    def migrate_and_fail(_new):
        migrate_away(front_end)
        front_end.start_ring(0, ring=disk.ring)

    with upgrade_at(daemon, "ready", migrate_and_fail) as new:
        assert refused(daemon, new)
    assert locked(daemon)
    with Taker(daemon) as again:
        again.ready()
        assert daemon.end(None) == 0
        assert locked(again)
