# SPDX-License-Identifier: Apache-2.0
"""Space that a guest gives back, and zeros that it asks for."""

import asyncio
import hashlib

from harness.fio import fio
from harness.guest import Disk
from harness.server import serve

MIB = 1 << 20
BLKDISCARD = "/usr/sbin/blkdiscard"  # by its path: busybox has a lesser one
FILL = "--rw=write --bs=1M --do_verify=0"


def allocated(path) -> int:
    return path.stat().st_blocks * 512


async def test_discarded_blocks_are_given_back_and_zeroed_ones_are_kept(boot, image):
    path = image()
    async with serve(path) as server, boot(Disk(server.socket)) as guest:
        await fio(guest, "/dev/vda", FILL)
        assert allocated(path) >= 64 * MIB

        await guest.run(f"{BLKDISCARD} --offset 8M --length 16M /dev/vda")
        assert allocated(path) <= 49 * MIB
        data = path.read_bytes()
        assert not any(data[8 * MIB : 24 * MIB])
        assert all(any(data[n * MIB : (n + 1) * MIB]) for n in (7, 24))

        await guest.run(f"{BLKDISCARD} --zeroout --offset 32M --length 8M /dev/vda")
        assert 48 * MIB <= allocated(path) <= 49 * MIB
        data = path.read_bytes()
        assert not any(data[32 * MIB : 40 * MIB])
        assert all(any(data[n * MIB : (n + 1) * MIB]) for n in (31, 40))

        await guest.run(f"{BLKDISCARD} /dev/vda")
        assert allocated(path) <= MIB
        assert await guest.sha256("vda") == hashlib.sha256(bytes(64 * MIB)).hexdigest()


async def test_trims_at_random_spare_the_data_between_them(boot, image):
    path = image()
    async with serve(path) as server, boot(Disk(server.socket)) as guest:
        await fio(guest, "/dev/vda", "--rw=write --bs=64k --size=32M --do_verify=0")
        trims = "--rw=randtrim --bs=64k --iodepth=8 --offset=32M --size=32M"
        await asyncio.gather(
            guest.run(f"fio --name=t --filename=/dev/vda --direct=1 --ioengine=libaio {trims}"),
            fio(guest, "/dev/vda", "--rw=read --bs=64k --size=32M --iodepth=8 --loops=2"),
        )
        assert 32 * MIB <= allocated(path) <= 33 * MIB


async def test_a_disk_without_discard_offers_none(boot, image):
    path = image()
    async with serve(path, "--no-discard") as server, boot(Disk(server.socket)) as guest:
        limits = await guest.run(
            "cd /sys/block/vda/queue; cat discard_max_bytes write_zeroes_max_bytes"
        )
        assert limits.split() == ["0", "0"]
        await guest.run(f"{BLKDISCARD} --zeroout --length 1M /dev/vda")  # written as data
