# SPDX-License-Identifier: Apache-2.0
"""An image on a failing disk: each request has its error, the log says what failed, once."""

import fcntl
import json
import os
import struct
import time

import pytest

from harness.daemon import image
from harness.frontend import IN, IOERR, OK
from harness.storage import loop_device, mounted, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and loop devices are root's")

MIB = 1 << 20
IOC_SHUTDOWN = 0x8004587D  # of ext4 and XFS
NO_LOG_FLUSH = struct.pack("=I", 2)
FAILED = "image failed a request"


def failures(daemon, count=1, limit=5.0):
    """What the log says of failures, once it says `count` things: by kind of request."""
    deadline = time.monotonic() + limit
    while len(found := [x for x in entries(daemon) if x["event"] == FAILED]) < count:
        assert time.monotonic() < deadline, found
    assert len(found) == count
    return {entry["request"]: entry for entry in found}


def entries(daemon):
    *whole, _ = daemon.errors().split("\n")
    return map(json.loads, whole)


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_that_shuts_down_fails_every_request(backing, tmp_path, serve, cache, kind):
    run(f"mkfs.{kind}", "-q", backing)
    with mounted(backing, tmp_path / kind, "-o", "loop") as place:
        path = image(place / "disk.img", 4 * MIB)
        path.write_bytes(bytes(4 * MIB))
        daemon, front_end = serve(path, "--cache", cache)
        disk = front_end.disk()
        assert disk.write(0, b"a" * 4096) == OK
        root = os.open(place, os.O_RDONLY)
        fcntl.ioctl(root, IOC_SHUTDOWN, NO_LOG_FLUSH)
        os.close(root)
        assert disk.write(8, b"b" * 4096) == IOERR
        assert disk.read(4096, 4096)[0] == IOERR
        assert disk.flush() == IOERR
        assert disk.write_zeroes([(0, 8)]) == IOERR
        assert disk.discard([(0, 8)]) == IOERR
        found = failures(daemon, 5)
        assert set(found) == {"read", "write", "flush", "zeroes", "discard"}
        assert {entry["reason"] for entry in found.values()} == {"Input/output error"}
        assert daemon.call("show")["front_end"], "the connection stays"
        assert daemon.end() == 0
        front_end.close()


def test_a_full_file_system_is_named(tmpfs, serve):
    daemon, front_end = serve(image(tmpfs / "disk.img", 16 * MIB))
    disk = front_end.disk()
    (tmpfs / "filler").write_bytes(bytes(7 * MIB))
    statuses = [disk.write(2048 + n * 512, b"b" * 262144) for n in range(8)]
    assert statuses[-1] == IOERR
    assert failures(daemon)["write"]["reason"] == "No space left on device"


def test_an_image_that_ends_early_is_named(serve, tmp_path):
    path = image(tmp_path / "disk.img", 4 * MIB)
    daemon, front_end = serve(path)
    disk = front_end.disk()
    os.truncate(path, 2 * MIB)
    assert disk.read(6144, 4096)[0] == IOERR
    said = failures(daemon)["read"]
    assert said["offset"] == 6144 * 512
    assert said["reason"] == "the image ends before the disk does"


def test_a_device_without_its_medium_is_named(serve, backing):
    os.truncate(backing, 8 * MIB)
    with loop_device(backing, "--direct-io=on") as device:
        daemon, front_end = serve(device)
        disk = front_end.disk()
        os.truncate(backing, MIB)
        assert disk.read(8192, 4096)[0] == IOERR
        assert failures(daemon)["read"]["reason"] == "Input/output error"
        front_end.close()
        assert daemon.end() == 0


def test_a_thousand_failures_are_one_line_and_other_rings_go_on(serve, tmp_path):
    path = image(tmp_path / "disk.img", 4 * MIB)
    daemon, front_end = serve(f"faulty:fail@read+0-1M:{path}", "--queues", 2, "--workers", 2)
    failing, well = front_end.disks(2)
    for _ in range(16):
        heads = [failing.submit(IN, n % 64, size=512) for n in range(40)]
        assert {done.status for done in failing.wait(*heads)} == {IOERR}
        assert well.read(4096, 4096)[0] == OK
    assert failures(daemon)["read"]["reason"] == "Input/output error"
    assert daemon.call("stats")["rings"][0]["errors"] == 640
