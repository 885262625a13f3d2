# SPDX-License-Identifier: Apache-2.0
"""Space given back: what is offered, what is answered, and that nobody else's is touched."""

import errno
import os

import pytest

from tests.daemon import Daemon, Successor
from tests.frontend import OK, Feature
from tests.fuse import FALLOCATE, FileSystem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and loop devices are root's")

MIB = 1 << 20


@pytest.fixture
def storage(tmp_path):
    with FileSystem(tmp_path / "fuse", 4 * MIB) as found:
        yield found


def test_nothing_is_punched_of_an_image_that_is_not_locked(storage, tmp_path):
    with Daemon(storage.path, tmp_path, "--incoming") as daemon:
        assert daemon.ready()["discard"]
        assert storage.seen[FALLOCATE] == 0


def test_nothing_is_punched_of_an_image_that_another_process_serves(storage, serve):
    daemon, front_end = serve(storage.path)
    disk = front_end.disk()
    before = storage.seen[FALLOCATE]
    with Successor(daemon) as new:
        assert new.ready()["discard"]
        assert storage.seen[FALLOCATE] == before
        assert disk.discard([(0, 8)]) == OK
        assert storage.seen[FALLOCATE] == before + 1


def test_an_image_that_is_not_locked_offers_what_it_offers_locked(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    os.utime(path, (1, 1))
    with Daemon(path, tmp_path, "--incoming") as daemon:
        incoming = daemon.ready()
        assert path.stat().st_mtime == 1
    with Daemon(path, tmp_path) as daemon:
        assert daemon.ready()["features"] == incoming["features"]


def test_a_file_that_gives_no_space_back_offers_no_discard(storage, serve):
    storage.answers[FALLOCATE] = lambda: errno.EOPNOTSUPP
    _, front_end = serve(storage.path)
    disk = front_end.disk()
    assert not front_end.features & Feature.DISCARD
    assert disk.write(0, b"x" * 4096) == OK
    assert disk.write_zeroes([(0, 8)], unmap=True) == OK
    assert disk.read(0, 4096) == (OK, bytes(4096))
