# SPDX-License-Identifier: Apache-2.0
"""Storage of many kinds, and socket devices with their drivers.

Storage is block devices and file systems that differ in what they can do.
"""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.daemon import Daemon, image
from harness.frontend import FrontEnd
from harness.storage import DISK_BYTES, loop_device, mounted, run
from harness.vsock import VsockDriver
from tests.engines import late
from tests.vsock_host import Vsock


@pytest.fixture
def backing(tmp_path):
    path = tmp_path / "backing"
    path.touch()
    os.truncate(path, DISK_BYTES)
    return path


@pytest.fixture
def device(backing):
    with loop_device(backing, "--sector-size", "4096", "--direct-io=on") as path:
        yield path


@pytest.fixture
def xfs(device, tmp_path):
    run("mkfs.xfs", "-q", device)
    with mounted(device, tmp_path / "xfs") as place:
        yield place


@pytest.fixture
def btrfs(backing, tmp_path):
    run("mkfs.btrfs", "-q", backing)
    with mounted(backing, tmp_path / "btrfs", "-o", "loop") as place:
        yield place


@pytest.fixture
def ext2(backing, tmp_path):
    """A file system that allocates no space ahead."""
    run("mkfs.ext2", "-q", backing)
    with mounted(backing, tmp_path / "ext2", "-o", "loop") as place:
        yield place


@pytest.fixture
def tmpfs(tmp_path):
    with mounted("none", tmp_path / "tmpfs", "-t", "tmpfs", "-o", "size=8m") as place:
        yield place


@pytest.fixture
def late_engine(tmp_path, monkeypatch):
    """Files are served by an engine that a file beside the image stalls: see `late.stall_of`."""
    (place := tmp_path / "programs").mkdir()
    monkeypatch.setattr("harness.daemon.PROGRAMS", late.make_programs(place))


@pytest.fixture(scope="module", params=["kernel", "late"])
def each_engine(request, tmp_path_factory):
    """By which engine files are served: the kernel's, and one with a thread of its own."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "late":
            programs = late.make_programs(tmp_path_factory.mktemp("programs"))
            patch.setattr("harness.daemon.PROGRAMS", programs)
        yield request.param


@pytest.fixture
def kernel_only(each_engine):
    """A test of what the kernel's images have alone: locks, devices, formats, fairness."""
    if each_engine != "kernel":
        pytest.skip("an image of the test's own")


@pytest.fixture
def path(tmp_path):
    """A sparse image of 16 MiB."""
    return image(tmp_path / "disk.img", 16 << 20)


@pytest.fixture
def daemon(path, tmp_path):
    """It, served with four queues."""
    with Daemon(path, tmp_path, "--queues", 4) as started:
        started.ready()
        yield started


@pytest.fixture
def front_end(daemon):
    """A connection to `daemon`."""
    with FrontEnd.connect(daemon.socket) as connected:
        yield connected


@pytest.fixture
def background():
    """Runs a call of the API beside the front end that must answer it."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def serve(tmp_path):
    """Serves an image with options and connects: the daemon and a front end."""
    running = []

    def served(path, *options):
        daemon = Daemon(path, tmp_path, *options)
        running.append(daemon)
        daemon.ready()
        running.append(FrontEnd.connect(daemon.socket))
        return daemon, running[-1]

    yield served
    for each in reversed(running):
        each.__exit__()


@pytest.fixture
def vsock(tmp_path):
    with Vsock(tmp_path) as process:
        process.ready()
        yield process


@pytest.fixture(params=["split", "packed"])
def driver(vsock, request):
    with FrontEnd.connect(vsock.socket) as front_end:
        yield VsockDriver(front_end, packed=request.param == "packed")


@pytest.fixture
def split(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        yield VsockDriver(front_end)


@pytest.fixture
def siblings(tmp_path):
    """The drivers of two guests of one process."""
    with Vsock(tmp_path, cids=(3, 4)) as process, contextlib.ExitStack() as stack:
        process.ready()
        ends = [stack.enter_context(FrontEnd.connect(path)) for path in process.paths.values()]
        yield [VsockDriver(end, cid=cid) for end, cid in zip(ends, process.paths, strict=True)]
