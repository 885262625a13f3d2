# SPDX-License-Identifier: Apache-2.0
"""Disks on every kind of storage, and storage that fails under a running guest."""

import os
import select
import signal
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.daemon import Daemon, image
from harness.frontend import DISCARD, IN, OUT, Feature, Request
from harness.storage import loop_device, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and loop devices are root's")

MIB = 1 << 20
OK, IOERR = 0, 1
WRITEBACK = 32  # offset of the config space's one writable byte


@pytest.fixture(params=["device", "xfs", "btrfs", "ext2", "tmpfs"])
def place(request):
    """An image of 4 MiB or more on each kind of storage."""
    found = request.getfixturevalue(request.param)
    return found if request.param == "device" else image(found / "disk.img", 4 * MIB)


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
def test_every_storage_carries_data_and_zeroes_in_every_cache_mode(place, serve, cache):
    _, front_end = serve(place, "--cache", cache)
    disk = front_end.disk()
    data = os.urandom(MIB)
    assert disk.write(8, data) == OK
    assert disk.write_zeroes([(16, 8), (64, 64)]) == OK
    assert disk.write_zeroes([(256, 128)], unmap=True) == OK
    assert disk.flush() == OK
    expected = bytearray(data)
    for sector, count in ((16, 8), (64, 64), (256, 128)):
        expected[(sector - 8) * 512 : (sector + count - 8) * 512] = bytes(count * 512)
    assert disk.read(8, MIB) == (OK, bytes(expected))
    if front_end.features & Feature.DISCARD:
        assert disk.discard([(2048, 1024)]) == OK


def test_a_served_block_device_shows_its_blocks(device, serve):
    daemon, front_end = serve(device)
    front_end.negotiate()
    state = daemon.call("show")
    assert (state["logical_block_size"], state["size"]) == (4096, front_end.capacity() * 512)
    assert int.from_bytes(front_end.config(20, 4), "little") == 4096


def test_a_block_device_that_grows_is_noticed(backing, device, serve):
    daemon, front_end = serve(device)
    front_end.disk()
    before = daemon.call("show")["size"]
    os.truncate(backing, before + MIB)
    run("losetup", "--set-capacity", device)
    front_end.answer_backend()
    daemon.wait_for("size", before + MIB)


def test_a_file_that_grows_is_noticed_and_announced(serve, tmp_path):
    path = image(tmp_path / "disk.img")
    _, front_end = serve(path)
    front_end.disk()
    front_end.config(0, 60)
    os.truncate(path, 2 * MIB)
    _, config = front_end.answer_backend()
    assert int.from_bytes(config[:8], "little") == 2 * MIB // 512


def flushes(device):
    """How often the kernel flushed a block device's cache."""
    return int((Path("/sys/block") / device.name / "stat").read_text().split()[15])


def test_writes_wait_for_the_flush_and_a_flush_reaches_the_device(device, serve):
    _, front_end = serve(device)
    disk = front_end.disk()
    before = flushes(device)
    for n in range(5):
        assert disk.write(n * 8, bytes(4096)) == OK
    assert flushes(device) == before
    assert disk.flush() == OK
    assert flushes(device) == before + 1


@pytest.mark.parametrize("how", ["config", "cache", "no-flush-feature"])
def test_without_a_write_back_cache_each_write_is_durable(device, serve, how):
    _, front_end = serve(device, "--cache", "writethrough" if how == "cache" else "none")
    offered = front_end.offered()
    features = offered & ~(Feature.FLUSH | Feature.CONFIG_WCE) if how.startswith("no") else offered
    disk = front_end.disk(features=Feature(features))
    if how == "config":
        front_end.write_config(WRITEBACK, b"\0")
        assert front_end.config(WRITEBACK, 1) == b"\0"
    before = flushes(device)
    for n in range(5):
        assert disk.write(n * 8, bytes(4096)) == OK
    assert flushes(device) >= before + 5


def test_a_full_file_system_fails_the_write_and_nothing_else(tmpfs, serve):
    path = image(tmpfs / "disk.img", 16 * MIB)
    _, front_end = serve(path)
    disk = front_end.disk()
    assert disk.write(0, b"a" * 4096) == OK
    (tmpfs / "filler").write_bytes(bytes(7 * MIB))
    statuses = [disk.write(2048 + n * 512, b"b" * 262144) for n in range(8)]
    assert statuses[-1] == IOERR
    assert disk.read(0, 4096) == (OK, b"a" * 4096)
    (tmpfs / "filler").unlink()
    assert disk.write(8192, b"c" * 262144) == OK


def test_a_truncated_image_fails_what_is_gone_and_keeps_its_size(serve, tmp_path):
    path = image(tmp_path / "disk.img", 4 * MIB)
    daemon, front_end = serve(path)
    disk = front_end.disk()
    assert disk.write(0, b"a" * 4096) == OK
    os.truncate(path, 2 * MIB)
    assert disk.read(6144, 4096)[0] == IOERR
    assert disk.read(0, 4096) == (OK, b"a" * 4096)
    daemon.process.send_signal(signal.SIGHUP)
    assert front_end.capacity() == 8192
    assert daemon.call("show")["size"] == 4 * MIB


def test_an_error_of_the_disk_is_the_guests_and_the_next_request_is_served(serve, backing):
    os.truncate(backing, 8 * MIB)
    with loop_device(backing, "--direct-io=on") as device:
        daemon, front_end = serve(device)
        disk = front_end.disk()
        assert disk.write(0, b"a" * 4096) == OK
        os.truncate(backing, MIB)  # what lies behind is an I/O error of the device
        assert disk.read(8192, 4096)[0] == IOERR
        assert disk.read(0, 4096) == (OK, b"a" * 4096)
        assert daemon.call("stats")["rings"][0]["errors"] == 1
        front_end.close()
        assert daemon.end() == 0


@pytest.fixture
def frozen(xfs):
    """Freezes the file system below the image: writes hang until it thaws."""
    thawed = []

    def freeze():
        run("fsfreeze", "--freeze", xfs)
        thawed.append(lambda: run("fsfreeze", "--unfreeze", xfs))
        return thawed.pop()

    yield freeze
    while thawed:
        thawed.pop()()


def test_a_pause_says_how_many_requests_its_deadline_left(xfs, serve, frozen):
    daemon, front_end = serve(image(xfs / "disk.img", 4 * MIB))
    disk = front_end.disk()
    thaw = frozen()
    heads = [disk.submit(OUT, n * 8, b"w" * 4096) for n in range(3)]
    daemon.wait_for("in_flight", 3)
    assert daemon.pause(0.2) == 3
    thaw()
    assert [done.status for done in disk.wait(*heads)] == [OK] * 3
    assert daemon.pause(10) == 0
    daemon.call("resume")
    assert disk.read(0, 4096) == (OK, b"w" * 4096)


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_writes_to_a_frozen_file_system_hold_up_no_other_ring_of_the_worker(
    xfs, serve, frozen, cache
):
    path = image(xfs / "disk.img", 4 * MIB)
    _, front_end = serve(path, "--cache", cache, "--workers", 1, "--queues", 2)
    stuck, other = front_end.disks(2)
    assert stuck.write(0, b"a" * 4096) == OK
    assert stuck.flush() == OK
    thaw = frozen()
    heads = [stuck.submit(OUT, n * 8, b"w" * 4096) for n in range(3)]
    heads.append(stuck.submit(DISCARD, out=struct.pack("<QII", 64, 8, 0)))
    for _ in range(3):
        assert other.read(4096, 4096) == (OK, bytes(4096))
    assert stuck.ring.take_used() == []
    assert front_end.stop_ring(1) == 3
    thaw()
    assert [done.status for done in stuck.wait(*heads)] == [OK] * 4


def test_stopping_a_ring_waits_for_its_requests(xfs, serve, frozen):
    daemon, front_end = serve(image(xfs / "disk.img", 4 * MIB))
    disk = front_end.disk()
    thaw = frozen()
    disk.submit(OUT, 0, b"w" * 4096)
    daemon.wait_for("in_flight", 1)
    front_end.send(Request.GET_VRING_BASE, bytes(8))
    front_end.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        front_end.receive()
    front_end.sock.settimeout(5)
    thaw()
    _, _, payload, _ = front_end.receive()
    assert payload == bytes(4) + (1).to_bytes(4, "little")
    assert disk.ring.used_idx == 1


def test_a_stuck_disk_does_not_keep_the_process_from_ending(xfs, serve, frozen):
    daemon, front_end = serve(image(xfs / "disk.img", 4 * MIB))
    disk = front_end.disk()
    thaw = frozen()
    disk.submit(OUT, 0, b"w" * 4096)
    daemon.wait_for("in_flight", 1)
    daemon.process.send_signal(signal.SIGTERM)
    try:
        status = daemon.process.wait(6)
    except subprocess.TimeoutExpired:
        status = None  # a thread of the kernel holds it until the disk answers
    thaw()
    assert status in (0, None)
    assert daemon.process.wait(5) == 0


@pytest.fixture
def shrinking(xfs, serve, frozen):
    """A shrink that waits for two writes beyond the new end: what to call to let them go on."""
    path = image(xfs / "disk.img", 4 * MIB)
    daemon, front_end = serve(path)
    disk = front_end.disk()
    thaw = frozen()
    heads = [disk.submit(OUT, 4096 + n * 8, b"w" * 4096) for n in range(2)]
    daemon.wait_for("in_flight", 2)
    with ThreadPoolExecutor(1) as executor:
        resized = executor.submit(daemon.call, "resize", "1M", "--force")

        def go_on():
            thaw()
            assert resized.result(10)["size"] == MIB
            assert [done.status for done in disk.wait(*heads)] == [OK] * 2
            return path.stat().st_size, disk

        yield daemon, go_on


def test_a_resume_does_not_let_a_shrink_overtake_requests(shrinking):
    daemon, go_on = shrinking
    daemon.call("resume")
    size, disk = go_on()
    assert size == MIB
    assert disk.read(0, 4096)[0] == OK


def test_a_pause_outlives_a_shrink(shrinking):
    daemon, go_on = shrinking
    assert daemon.pause(0.1) == 2
    _, disk = go_on()
    assert daemon.call("show")["state"] == "paused"
    head = disk.submit(IN, 0, size=4096)
    with pytest.raises(TimeoutError):
        disk.wait(head, timeout=0.2)
    daemon.call("resume")
    assert disk.wait(head)[0].status == OK


def test_shrinking_drains_first_and_refuses_what_is_beyond(serve, tmp_path):
    path = image(tmp_path / "disk.img", 4 * MIB)
    daemon, front_end = serve(path)
    disk = front_end.disk()
    heads = [disk.submit(OUT, 4096 + n * 8, b"e" * 4096) for n in range(32)]
    daemon.call("resize", "1M", "--force")
    assert all(done.status == OK for done in disk.wait(*heads))
    assert disk.read(4096, 4096)[0] == IOERR
    assert disk.request(IN, 2040, size=4096).status == OK
    assert path.stat().st_size == MIB


def test_an_image_whose_killed_server_still_writes_is_waited_for(xfs, tmp_path, serve, frozen):
    path = image(xfs / "disk.img", 4 * MIB)
    first, front_end = serve(path)
    disk = front_end.disk()
    thaw = frozen()
    disk.submit(OUT, 0, b"w" * 4096)
    first.wait_for("in_flight", 1)
    first.process.kill()
    with Daemon(path, tmp_path) as second:
        assert not select.select([second.process.stdout], [], [], 0.5)[0]
        thaw()
        second.ready()


def test_sigterm_completes_what_is_in_flight(xfs, serve, frozen):
    path = image(xfs / "disk.img", 4 * MIB)
    daemon, front_end = serve(path)
    disk = front_end.disk()
    thaw = frozen()
    heads = [disk.submit(OUT, n * 8, b"w" * 4096) for n in range(3)]
    daemon.wait_for("in_flight", 3)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("state", "stopping")
    # A front end that saw the connection close would resume from the used index as it is now.
    assert not front_end.wait_closed(0.3)
    thaw()
    assert [done.status for done in disk.wait(*heads)] == [OK] * 3
    assert daemon.end(None) == 0
    assert path.read_bytes()[: 3 * 4096] == b"w" * 3 * 4096
