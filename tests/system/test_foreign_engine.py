# SPDX-License-Identifier: Apache-2.0
"""I/O that a library does on threads of its own, and cannot be made to drop.

Whatever becomes of it, the guest's memory is the guest's once it was given back.
"""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from blkd.dataplane import DataPlane, ServedDisk, WorkerPlan
from blkd.errors import DrainTimeout
from blkd.export.config import ExportConfig
from blkd.export.parameters import parameters
from blkd.image.base import Opening
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import MemoryRegion
from blkd.virtio.blk import BlkDevice
from harness.daemon import Daemon, image
from harness.frontend import FLUSH, IN, OUT, FrontEnd
from harness.process import worker_sleeps
from harness.vring import DESC_WRITE, GuestMemory, Vring
from tests.engines import late

MIB = 1 << 20
LIMIT = 10.0  # seconds for what takes milliseconds
END_LIMIT = 6.0  # seconds: docs/commands.md says 5
REST = 0.1  # seconds in which nothing of the guest's memory is to change
FEATURES = 1 << 32
OUTSTANDING = 8
BLOCK = 4096


class Disk:
    """A late image served in this process, and the driver of its one ring."""

    def __init__(self, path):
        self.stall = late.stall_of(path)
        self.path = path
        opening = Opening(read_only=False, direct=False, logical_block_size=None)
        self.image = late.LateImage(str(path), opening)
        device = BlkDevice(
            parameters(ExportConfig(image=str(path), name="a", queues=1), self.image)
        )
        device.accept(FEATURES)
        self.plane = DataPlane(ServedDisk(self.image, device, 128), WorkerPlan(1))
        self.memory = GuestMemory()
        self.ring = Vring(self.memory, 64)
        self.buffers = []

    async def start(self):
        ring = self.ring
        await self.share(self.memory)
        await self.plane.configure()
        await self.plane.set_kick(0, os.dup(ring.kick_fd))
        await self.plane.set_call(0, os.dup(ring.call_fd))
        where = [self.memory.user_address(at) for at in (ring.desc, ring.avail, ring.used)]
        await self.plane.start_vring(0, VringSetup(ring.size, *where, 0, FEATURES))
        await self.plane.enable_vring(0, enabled=True)

    async def share(self, memory):
        regions = [MemoryRegion(r.gpa, r.size, r.uva, r.offset) for r in memory.regions]
        await self.plane.set_memory(regions, [os.dup(region.fd) for region in memory.regions])

    async def submit(self, kind, count=OUTSTANDING):
        """Make requests available, a block each, and wait until they are with the engine."""
        for n in range(count):
            sector = 8 * len(self.buffers)
            header = kind.to_bytes(8, "little") + sector.to_bytes(8, "little")
            data = self.memory.alloc(BLOCK, BLOCK)
            self.memory.write(data, bytes([n + 1]) * BLOCK)
            flags = DESC_WRITE if kind == IN else 0
            chain = [(header, 16, 0), (data, BLOCK, flags), (bytes(1), 1, DESC_WRITE)]
            self.ring.publish(self.ring.add(chain))
            self.buffers.append(data)
        self.ring.kick()
        await self.until(lambda: self.plane.in_flight == count)

    async def until(self, true):
        deadline = time.monotonic() + LIMIT
        while not true():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    async def let_end(self, count=OUTSTANDING):
        """Have the engine go on, and wait until it has ended what it was given."""
        self.stall.unlink()
        await self.until(lambda: self.image.ended == count)

    def contents(self):
        """All of the guest's memory."""
        return [os.pread(region.fd, region.size, region.offset) for region in self.memory.regions]


@pytest.fixture
async def disk(tmp_path):
    path = image(tmp_path / "a.img", MIB)
    path.write_bytes(bytes([0xEE]) * MIB)
    disk = Disk(path)
    disk.stall.touch()
    await disk.start()
    yield disk
    disk.stall.unlink(missing_ok=True)
    await disk.plane.reset()
    disk.plane.close()
    if not disk.plane.has_abandoned:
        disk.image.close()
    disk.memory.close()


async def given_back(disk, command):
    """Have what is stalled end while `command` runs; nothing changes once it has returned."""
    running = asyncio.ensure_future(command)
    await asyncio.sleep(REST)
    assert not running.done()
    disk.stall.unlink()
    async with asyncio.timeout(LIMIT):
        result = await running
    before = disk.contents()
    assert disk.image.ended == OUTSTANDING
    await asyncio.sleep(REST)
    assert disk.contents() == before
    return result


async def test_a_ring_stops_once_what_was_fetched_from_it_is_answered(disk):
    await disk.submit(IN)
    assert await given_back(disk, disk.plane.stop_vring(0)) == OUTSTANDING
    assert len(disk.ring.take_used()) == OUTSTANDING
    assert all(disk.memory.read(at, BLOCK) == bytes([0xEE]) * BLOCK for at in disk.buffers)


async def test_memory_is_let_go_once_what_names_it_is_answered(disk):
    await disk.submit(IN)
    await given_back(disk, disk.plane.set_memory([], []))


async def test_a_reset_waits_for_what_was_fetched(disk):
    await disk.submit(OUT)
    await given_back(disk, disk.plane.reset())


async def test_a_pause_that_came_too_late_is_taken_back(disk):
    await disk.submit(IN)
    with pytest.raises(DrainTimeout, match=f"{OUTSTANDING} requests"):
        await disk.plane.pause(REST)
    disk.stall.unlink()
    await disk.until(lambda: disk.plane.in_flight == 0)
    await disk.plane.resume()
    await disk.submit(OUT, 0)
    assert len(disk.ring.take_used()) == OUTSTANDING


async def test_what_reads_bring_after_the_end_reaches_no_guest(disk):
    await disk.submit(IN)
    before = disk.contents()
    disk.plane.abandon()
    assert disk.plane.has_abandoned
    await disk.let_end()
    await asyncio.sleep(REST)
    assert disk.contents() == before
    assert disk.memory.read(disk.buffers[0], BLOCK) == bytes([1]) * BLOCK


async def test_what_writes_take_after_the_end_is_what_they_were_given(disk):
    await disk.submit(OUT)
    disk.plane.abandon()
    for at in disk.buffers:
        disk.memory.write(at, b"!" * BLOCK)  # the guest uses them for something else
    await disk.let_end()
    written = disk.path.read_bytes()
    for n in range(OUTSTANDING):
        assert written[n * BLOCK : (n + 1) * BLOCK] == bytes([n + 1]) * BLOCK


async def test_what_ends_in_time_is_not_abandoned(disk):
    await disk.submit(IN)
    disk.stall.unlink()
    disk.plane.abandon()
    assert not disk.plane.has_abandoned
    assert disk.image.ended == OUTSTANDING


# ---- a process of its own ----


@pytest.fixture
def served(tmp_path, late_engine):  # noqa: ARG001 - it serves
    with Daemon(image(tmp_path / "a.img", MIB), tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            yield daemon, front_end.disk(), late.stall_of(daemon.image)


def test_a_pause_with_a_deadline_is_missed_and_resumed(served):
    daemon, disk, stall = served
    assert daemon.call("show")["engine"] == "late"
    stall.touch()
    writes = [disk.submit(OUT, 8 * n, bytes([n]) * BLOCK) for n in range(OUTSTANDING)]
    daemon.wait_for("in_flight", OUTSTANDING)
    assert daemon.pause(0.2) == OUTSTANDING
    waiting = disk.submit(FLUSH)
    stall.unlink()
    assert all(done.status == 0 for done in disk.wait(*writes))
    assert daemon.pause(LIMIT) == 0
    daemon.call("resume")
    assert disk.wait(waiting)[0].status == 0


def test_a_disk_ends_once_what_was_fetched_is_answered(served):
    daemon, disk, stall = served
    stall.touch()
    writes = [disk.submit(OUT, 8 * n, bytes([n]) * BLOCK) for n in range(32)]
    daemon.wait_for("in_flight", 32)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for_log("stopping")
    assert disk.ring.used_idx == 0
    stall.unlink()
    assert daemon.end(None) == 0
    assert all(done.status == 0 for done in disk.wait(*writes))


def test_a_disk_that_is_stalled_ends_in_time_all_the_same(served):
    daemon, disk, stall = served
    stall.touch()
    for n in range(OUTSTANDING):
        disk.submit(IN, 8 * n, size=BLOCK)
    daemon.wait_for("in_flight", OUTSTANDING)
    began = time.monotonic()
    assert daemon.end(timeout=END_LIMIT) == 0
    assert time.monotonic() - began < END_LIMIT
    daemon.wait_for_log("requests abandoned", requests=OUTSTANDING)
    with contextlib.suppress(FileNotFoundError):
        stall.unlink()


def test_an_idle_worker_does_not_wake(served):
    daemon, disk, _ = served
    assert disk.write(0, bytes(BLOCK)) == 0
    time.sleep(REST)
    before = worker_sleeps(daemon.process.pid)
    time.sleep(10 * REST)
    assert worker_sleeps(daemon.process.pid) == before
