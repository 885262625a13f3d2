# SPDX-License-Identifier: Apache-2.0
"""A guest at work does not notice that another process serves its disk now and then."""

import asyncio

import pytest

from harness.fio import fio
from harness.guest import Disk
from harness.server import serve

JOB = (
    "--rw=randrw --bs=4k --iodepth=16 --size=12M --numjobs=4 --offset_increment=16M "
    "--time_based --runtime=15"
)
MIB = 1 << 20


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_blkd_is_upgraded_under_load(boot, image, packed):
    async with (
        serve(image()) as server,
        boot(Disk(server.socket, packed=packed)) as guest,
    ):
        async with asyncio.TaskGroup() as tasks:
            job = tasks.create_task(fio(guest, "/dev/vda", JOB, limit=150))
            seen = 0
            for _ in range(5):
                seen = await more_than(server, seen + 200)
                assert await server.upgrade() == 0
                assert not job.done()
        await server.call("resize", 80 * MIB)
        await guest.until(f"[ $(blockdev --getsize64 /dev/vda) = {80 * MIB} ]")
        await guest.reboot()
        assert await guest.size("vda") == 80 * MIB
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=4k --size=4M --iodepth=16")


async def more_than(server, count):
    """Wait until so many requests were answered, by all processes together: how many."""
    async with asyncio.timeout(60):
        while (total := (await server.call("stats"))["total"])["writes"] <= count:
            pass
    return total["writes"]
