# SPDX-License-Identifier: Apache-2.0
"""Commands to a worker that is stuck in the disk, given up by who waited for them."""

import asyncio
import contextlib
import errno
import os

import pytest

from blkd.dataplane import DataPlane, ServedDisk, WorkerPlan
from blkd.export.config import ExportConfig
from blkd.export.parameters import parameters
from blkd.image.base import Opening
from blkd.image.kinds import open_image
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import MemoryRegion
from blkd.virtio.blk import BlkDevice
from harness.disk import IN
from harness.fuse import FLUSH, READ, FileSystem
from harness.vring import DESC_WRITE, GuestMemory, Vring

MIB = 1 << 20
LIMIT = 10.0  # seconds for what takes milliseconds
HEADER = IN.to_bytes(4, "little") + bytes(12)
FEATURES = 1 << 32


@pytest.fixture
async def plane(tmp_path):
    """A data path whose worker reads at once, from a file system that can hang."""
    with FileSystem(tmp_path / "fuse", MIB, writeback=True) as fuse:
        fuse.answers[FLUSH] = lambda: errno.ENOSYS
        image = await open_image(
            str(fuse.path),
            Opening(
                read_only=False,
                direct=True,  # or else it is only tried not to wait
                logical_block_size=None,
                engine="inline",
            ),
        )
        config = ExportConfig(image=str(fuse.path), name="a", queues=1)
        device = BlkDevice(parameters(config, image))
        device.accept(FEATURES)
        plane = DataPlane(ServedDisk(image, device, 128), WorkerPlan(1))
        plane.fuse = fuse
        try:
            yield plane
        finally:
            fuse.abort()
            await plane.reset()
            plane.close()
            with contextlib.suppress(OSError):
                image.close()


async def started(plane, memory):
    """A running ring, as the driver sees it."""
    ring = Vring(memory, 8)
    regions = [MemoryRegion(r.gpa, r.size, r.uva, r.offset) for r in memory.regions]
    await plane.set_memory(regions, [os.dup(region.fd) for region in memory.regions])
    await plane.configure()
    await plane.set_kick(0, os.dup(ring.kick_fd))
    await plane.set_call(0, os.dup(ring.call_fd))
    where = [memory.user_address(at) for at in (ring.desc, ring.avail, ring.used)]
    await plane.start_vring(0, VringSetup(ring.size, *where, 0, FEATURES))
    await plane.enable_vring(0, enabled=True)
    return ring


async def stuck(plane, ring):
    """Return once the worker reads from the disk, and does not come back."""
    plane.fuse.silent.add(READ)
    plane.fuse.seen.clear()
    data = ring.memory.alloc(4096, 4096)
    chain = [(HEADER, 16, 0), (data, 4096, DESC_WRITE), (bytes(1), 1, DESC_WRITE)]
    ring.publish(ring.add(chain))
    ring.kick()
    await asyncio.to_thread(plane.fuse.wait_for, READ)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def given_up(command):
    """Begin something, and cancel it."""
    task = asyncio.ensure_future(command)
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(true):
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LIMIT
    for _ in iter(true, True):
        assert loop.time() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["kick", "call", "error"])
async def test_a_descriptor_stays_open_until_the_worker_does_not_use_it(plane, kind):
    memory = GuestMemory()
    ring = await started(plane, memory)
    replace = getattr(plane, f"set_{kind}")
    await replace(0, os.dup(ring.kick_fd))
    old = plane.vring_snapshots()[0].fds[kind]
    await stuck(plane, ring)
    await given_up(replace(0, os.dup(ring.kick_fd)))
    assert is_open(old)
    plane.fuse.abort()
    await until(lambda: not is_open(old))
    memory.close()


async def test_a_stop_that_was_given_up_is_waited_for_by_the_next(plane):
    memory = GuestMemory()
    ring = await started(plane, memory)
    await stuck(plane, ring)
    await given_up(plane.stop_vring(0))
    plane.fuse.abort()
    async with asyncio.timeout(LIMIT):
        assert await plane.stop_vring(0) == 1
    memory.close()


async def test_a_start_that_was_given_up_is_undone_by_a_reset(plane):
    memory = GuestMemory()
    await started(plane, memory)
    await plane.stop_vring(0)
    ring = Vring(memory, 8)
    where = [memory.user_address(at) for at in (ring.desc, ring.avail, ring.used)]
    setup = VringSetup(ring.size, *where, 0, FEATURES)
    await given_up(plane.start_vring(0, setup))
    async with asyncio.timeout(LIMIT):
        await plane.reset()
    await started(plane, memory)
    memory.close()
