# SPDX-License-Identifier: Apache-2.0
"""A guest whose disk stands behind an IOMMU: what the driver maps and unmaps is what blkd sees."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from harness.fio import fio
from harness.guest import Disk, Guest, Iommu
from harness.initramfs import Kernel
from harness.server import serve

MIB = 1 << 20
ACCESS_PLATFORM = 1 << 33
SIZE = 16 * MIB  # of a disk: each page of a buffer is asked for
JOBS = (
    "--rw=randrw --bsrange=512-96k --iodepth=8 --size=1M --numjobs=2 --offset_increment=8M",
    "--rw=randwrite --bs=4k --iodepth=32 --size=512k --numjobs=4 --offset_increment=4M",
)
LOAD = (
    "--rw=randrw --bs=4k --iodepth=16 --size=2M --numjobs=2 --offset_increment=8M "
    "--time_based --runtime=25"
)
DOMAIN = {Iommu.STRICT: "DMA", Iommu.PASSTHROUGH: "identity", Iommu.VIRTIO_STRICT: "DMA"}

pytestmark = pytest.mark.timeout(300)
STRICT_SPLIT = pytest.param(Iommu.STRICT, False, id="strict-split")
STRICT_PACKED = pytest.param(Iommu.STRICT, True, id="strict-packed")
PASSTHROUGH = pytest.param(Iommu.PASSTHROUGH, False, id="pt-split")
VIRTIO = pytest.param(Iommu.VIRTIO_STRICT, False, id="virtio-split")


def disk_behind(iommu: Iommu, socket: Path, *, packed: bool) -> Disk:
    """A disk behind an IOMMU; skips the test where the guest's kernel has no driver of it."""
    if iommu is Iommu.VIRTIO_STRICT and not Kernel.fetched().has("virtio-iommu"):
        pytest.skip("the guest's kernel has no driver of virtio-iommu")
    return Disk(socket, packed=packed, translated=True, ats=iommu is not Iommu.VIRTIO_STRICT)


async def require_iommu(guest: Guest, server, iommu: Iommu) -> None:
    """See that the disk is behind the IOMMU, and blkd knows."""
    device = "/sys/block/vda/device/../iommu_group/type"
    assert (await guest.run(f"cat {device}")).strip() == DOMAIN[iommu]
    assert (await server.call("show"))["front_end"]["features"] & ACCESS_PLATFORM


@pytest.mark.parametrize(("iommu", "packed"), [STRICT_SPLIT, PASSTHROUGH, VIRTIO])
async def test_data_is_carried(boot, image, iommu, packed):
    path = image(size=SIZE)
    async with (
        serve(path) as server,
        boot(disk_behind(iommu, server.socket, packed=packed), iommu=iommu) as guest,
    ):
        await require_iommu(guest, server, iommu)
        for job in JOBS:
            await fio(guest, "/dev/vda", job, limit=150)
        assert await guest.sha256("vda") == hashlib.sha256(path.read_bytes()).hexdigest()
        rings = (await server.call("stats"))["rings"]
        assert sum(ring["errors"] for ring in rings) == 0
        await guest.reboot()
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=4k --size=512k --iodepth=16")


@pytest.mark.parametrize(("iommu", "packed"), [STRICT_SPLIT, STRICT_PACKED, VIRTIO])
async def test_blkd_is_killed_upgraded_and_its_disk_grows_under_load(boot, image, iommu, packed):
    async with (
        serve(image(size=SIZE)) as server,
        boot(disk_behind(iommu, server.socket, packed=packed), iommu=iommu) as guest,
    ):
        await require_iommu(guest, server, iommu)
        async with asyncio.TaskGroup() as tasks:
            job = tasks.create_task(fio(guest, "/dev/vda", LOAD, limit=150))
            await more_than(server, 100)
            await server.kill()
            await server.start()
            await more_than(server, 100)
            assert await server.upgrade() == 0
            await more_than(server, 100)
            assert not job.done()
            await server.call("resize", 2 * SIZE)
        await guest.until(f"[ $(blockdev --getsize64 /dev/vda) = {2 * SIZE} ]")
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=4k --offset=16M --size=512k --iodepth=16")


async def more_than(server, count):
    """Wait until more requests than before were answered."""
    start = await answered(server)
    async with asyncio.timeout(40):
        while await answered(server) <= start + count:
            pass


async def answered(server):
    total = (await server.call("stats"))["total"]
    return total["reads"] + total["writes"]
