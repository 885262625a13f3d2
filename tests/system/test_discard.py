# SPDX-License-Identifier: Apache-2.0
"""Space given back: what is offered, what is answered, and that nobody else's is touched."""

import errno
import os
from pathlib import Path

import pytest

from harness.daemon import Daemon, Taker, image
from harness.frontend import OK, UNSUPP, Feature
from harness.fuse import FALLOCATE, FileSystem
from harness.storage import loop_device

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
    with Taker(daemon) as new:
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


def test_a_discard_that_did_nothing_is_not_answered_with_ok(storage, serve):
    daemon, front_end = serve(storage.path)
    disk = front_end.disk()
    assert disk.discard([(0, 8)]) == OK
    storage.answers[FALLOCATE] = lambda: errno.EOPNOTSUPP
    assert disk.discard([(0, 8)]) == UNSUPP
    assert daemon.wait_for_log("image failed a request")["request"] == "discard"


@pytest.fixture
def device(tmp_path):
    """A block device over a file that a test may look at."""
    path = image(tmp_path / "below", 16 * MIB)
    path.write_bytes(b"x" * 16 * MIB)
    with loop_device(path) as found:
        yield found, path


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
def test_a_block_device_discards_by_a_command_of_its_own(device, serve, cache):
    found, below = device
    _, front_end = serve(found, "--cache", cache)
    disk = front_end.disk()
    assert front_end.features & Feature.DISCARD
    before = discards(found)
    assert disk.discard([(0, 2048), (8192, 2048)]) == OK
    assert discards(found) == before + 2
    content = below.read_bytes()
    assert not any(content[:MIB] + content[4 * MIB : 5 * MIB])
    assert set(content[MIB : 4 * MIB]) == set(content[5 * MIB :]) == {ord("x")}
    assert disk.write_zeroes([(2048, 8)], unmap=True) == OK
    assert discards(found) == before + 2, "zeroes are zeroes"
    assert disk.read(2048, 4096) == (OK, bytes(4096))


def discards(device):
    """How many discards the kernel has given a block device."""
    return int((Path("/sys/block") / device.name / "stat").read_text().split()[11])


def test_a_block_device_that_refuses_a_discard_is_believed(storage, serve):
    with loop_device(storage.path) as device:
        daemon, front_end = serve(device)
        disk = front_end.disk()
        assert disk.discard([(0, 8)]) == OK
        storage.answers[FALLOCATE] = lambda: errno.EOPNOTSUPP
        assert disk.discard([(0, 8)]) == UNSUPP
        assert disk.write_zeroes([(0, 8)], unmap=True) == OK, "they are written"
        assert disk.read(0, 4096) == (OK, bytes(4096))
        front_end.close()
        assert daemon.end() == 0


def test_looking_at_a_block_device_discards_nothing(device, serve):
    found, below = device
    before = discards(found)
    serve(found)
    assert set(below.read_bytes()) == {ord("x")}
    assert discards(found) == before
