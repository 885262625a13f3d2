# SPDX-License-Identifier: Apache-2.0
"""Who holds an image is found out without a look at the files of anybody else."""

import json
import subprocess
import sys

import pytest

from harness.daemon import Daemon, image, run
from harness.fuse import GETATTR, FileSystem

MIB = 1 << 20
ANSWER_LIMIT = 10  # seconds; a hang would last for ever

KEEPER = """
import sys
files = [open(sys.argv[1], "rb") for _ in range(int(sys.argv[2]))]
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def keep():
    """Starts processes that keep a file open some times."""
    kept = []

    def start(path, times=1):
        keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, path, str(times)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        kept.append(keeper)
        keeper.stdout.readline()
        return keeper

    yield start
    for keeper in kept:
        keeper.kill()
        keeper.communicate()


def holders(path):
    shown = run("image", "info", path, "--json", timeout=ANSWER_LIMIT)
    return [holder["pid"] for holder in json.loads(shown.stdout)["locked_by"]]


def test_a_process_with_a_file_on_a_hung_file_system_hangs_nobody(tmp_path, keep):
    disk = image(tmp_path / "disk.img", MIB)
    with FileSystem(tmp_path / "fuse", MIB, writeback=True) as fuse:
        keep(fuse.path)
        fuse.silent.add(GETATTR)
        with Daemon(disk, tmp_path, "--name", "first") as daemon:
            daemon.ready()
            assert holders(disk) == [daemon.process.pid]
            assert "lock" in run("doctor", disk, timeout=ANSWER_LIMIT).stdout
            second = run("serve", disk, "--socket", tmp_path / "b.sock", timeout=ANSWER_LIMIT)
            assert f"in use by blkd (pid {daemon.process.pid})" in second.stderr


@pytest.mark.parametrize("filesystem", ["btrfs", "tmpfs", "xfs"])
def test_the_holder_is_named_on_every_file_system(request, tmp_path, filesystem):
    place = request.getfixturevalue(filesystem)
    disk = image(place / "disk.img", MIB)
    options = ("--cache", "writeback")
    with Daemon(disk, tmp_path, *options) as daemon:
        daemon.ready()
        assert holders(disk) == [daemon.process.pid]
        second = run("serve", disk, "--socket", tmp_path / "b.sock", *options)
        assert f"in use by blkd (pid {daemon.process.pid})" in second.stderr
        daemon.end()


def test_the_holder_of_a_block_device_is_named(device, tmp_path):
    with Daemon(device, tmp_path) as daemon:
        daemon.ready()
        second = run("serve", device, "--socket", tmp_path / "b.sock")
        assert f"blkd (pid {daemon.process.pid})" in second.stderr
        assert holders(device) == [daemon.process.pid]
        daemon.end()
