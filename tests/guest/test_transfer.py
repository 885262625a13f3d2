# SPDX-License-Identifier: Apache-2.0
"""Data that a guest writes is the data that it, and the host, read."""

import asyncio
import contextlib
import hashlib

import pytest

from harness.fio import fio
from harness.guest import Disk
from harness.server import serve

MIB = 1 << 20
BLKDISCARD = "/usr/sbin/blkdiscard"  # by its path: busybox has a lesser one
SHAPES = [(1, 4), (1, 64, True), (2, 128), (4, 256), (4, 256, True), (4, 1024)]
"""Queues, queue size, and whether packed: all in one guest, which works on all disks at once."""
RING_PACKED = 1 << 34
JOBS = {
    "small and random": "--rw=randwrite --bs=4k --iodepth=32 --size=4M --numjobs=2",
    "reads among writes": "--rw=randrw --bsrange=512-96k --iodepth=8 --size=8M --numjobs=2",
    "large": "--rw=write --bs=1M --iodepth=4 --size=24M --numjobs=2",
    "trims": "--rw=randtrimwrite --bs=16k --iodepth=8 --size=4M --numjobs=2 --fsync=32",
}


@pytest.mark.timeout(400)
async def test_every_kind_of_queue_carries_every_kind_of_request(boot, image):
    async with contextlib.AsyncExitStack() as stack:
        images = [image(f"disk{n}") for n in range(len(SHAPES))]
        servers = [
            await stack.enter_async_context(serve(path, "--queues", queues, "--queue-size", size))
            for path, (queues, size, *_) in zip(images, SHAPES, strict=True)
        ]
        disks = [Disk(s.socket, *shape) for s, shape in zip(servers, SHAPES, strict=True)]
        guest = await stack.enter_async_context(boot(*disks))
        names = [f"vd{chr(ord('a') + n)}" for n in range(len(disks))]
        for name, server, (queues, _, *packed) in zip(names, servers, SHAPES, strict=True):
            assert len((await guest.run(f"ls /sys/block/{name}/mq")).split()) == queues
            features = (await server.call("show"))["front_end"]["features"]
            assert bool(features & RING_PACKED) is bool(packed)

        for options in JOBS.values():
            spread = f"{options} --offset_increment=32M"
            await asyncio.gather(*(fio(guest, f"/dev/{n}", spread, limit=200) for n in names))
        for name, path, server in zip(names, images, servers, strict=True):
            assert await guest.sha256(name) == sha256(path)
            rings = (await server.call("stats"))["rings"]
            assert sum(ring["errors"] for ring in rings) == 0
            assert all(ring["reads"] and ring["writes"] and ring["discards"] for ring in rings)


async def test_disks_of_large_blocks_carry_data(boot, image, loop_device):
    plain = image("plain")
    async with (
        serve(loop_device) as device,
        serve(plain, "--logical-block-size", 4096) as file,
        boot(Disk(device.socket), Disk(file.socket)) as guest,
    ):
        for name, path in {"vda": loop_device, "vdb": plain}.items():
            assert await guest.run(f"blockdev --getss /dev/{name}") == "4096\n"
            await fio(guest, f"/dev/{name}", "--rw=randrw --bsrange=4k-64k --size=16M --iodepth=8")
            await guest.run(f"{BLKDISCARD} --offset 16M --length 1M /dev/{name}")
            assert await guest.sha256(name) == sha256(path)


async def test_a_mebibyte_is_one_request(boot, image):
    async with serve(image(), "--queue-size", 256) as server, boot(Disk(server.socket)) as guest:
        assert int(await guest.run("cat /sys/block/vda/queue/max_sectors_kb")) >= 1024
        await guest.run("echo 4 >/proc/sys/vm/nr_hugepages")
        before = await total(server, "writes")
        await fio(guest, "/dev/vda", "--rw=write --bs=1M --size=32M --do_verify=0 --iomem=mmaphuge")
        assert await total(server, "writes") - before == 32


async def test_a_flush_reaches_the_disk_unless_the_guest_wants_no_cache(boot, image):
    job = "--rw=write --bs=4k --size=256k --fsync=1 --do_verify=0"
    async with serve(image()) as server, boot(Disk(server.socket)) as guest:
        assert await guest.run("cat /sys/block/vda/cache_type") == "write back\n"
        await fio(guest, "/dev/vda", job)
        assert await total(server, "flushes") >= 63

        await guest.run("echo 'write through' >/sys/block/vda/cache_type")
        before = await total(server, "flushes")
        await fio(guest, "/dev/vda", job)
        assert await total(server, "flushes") == before


async def test_a_file_system_outlives_a_reboot(boot, image):
    async with serve(image()) as server, boot(Disk(server.socket)) as guest:
        await guest.run("mke2fs /dev/vda && mkdir /mnt && mount -t ext2 /dev/vda /mnt")
        await guest.run(
            "cp -r /lib/x86_64-linux-gnu /mnt/kept || true; cd /mnt/kept; md5sum * >/mnt/sums"
        )
        await guest.run("umount /mnt")
        await guest.reboot()
        await guest.run(
            "mkdir /mnt && mount -t ext2 /dev/vda /mnt && cd /mnt/kept && md5sum -c /mnt/sums"
        )


async def total(server, counter: str) -> int:
    return sum(ring[counter] for ring in (await server.call("stats"))["rings"])


def sha256(path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
