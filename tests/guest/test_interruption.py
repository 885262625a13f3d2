# SPDX-License-Identifier: Apache-2.0
"""A guest at work does not notice that its disk pauses, or that blkd is replaced."""

import asyncio
import time

from harness.fio import fio
from harness.guest import Disk
from harness.server import serve

JOB = (
    "--rw=randrw --bs=4k --iodepth=16 --size=12M --numjobs=4 --offset_increment=16M "
    "--time_based --runtime=20"
)
"""Long enough to be interrupted, on a fast machine as on a slow one; then it verifies."""


async def answered(server) -> int:
    rings = (await server.call("stats"))["rings"]
    return sum(ring["reads"] + ring["writes"] for ring in rings)


async def more_than(server, count: int) -> None:
    """Wait until requests are being answered."""
    async with asyncio.timeout(60):
        while await answered(server) <= count:
            pass


async def test_requests_wait_while_a_disk_is_paused(boot, image):
    async with (
        serve(image()) as server,
        boot(Disk(server.socket)) as guest,
        asyncio.TaskGroup() as tasks,
    ):
        start = await answered(server)
        job = tasks.create_task(fio(guest, "/dev/vda", JOB, limit=150))
        for _ in range(3):
            await more_than(server, start + 200)
            assert (await server.call("pause"))["drained"]
            assert (await server.call("show"))["state"] == "paused"
            start = await answered(server)
            waiting = "awk '{ exit !($9 > 0) }' /sys/block/vda/stat"  # requests in flight
            await guest.until(waiting)
            await guest.run("sleep 0.5")
            assert await answered(server) == start
            assert not job.done()
            await server.call("resume")
            assert (await server.call("show"))["state"] == "serving"


async def test_blkd_ends_and_starts_again_under_load(boot, image):
    async with (
        serve(image()) as server,
        boot(Disk(server.socket)) as guest,
        asyncio.TaskGroup() as tasks,
    ):
        job = tasks.create_task(fio(guest, "/dev/vda", JOB, limit=150))
        for _ in range(3):
            await more_than(server, 200)  # each blkd counts from nought
            began = time.monotonic()
            assert await server.stop() == 0
            assert time.monotonic() - began < 5
            assert not job.done()
            await server.start()


async def test_an_idle_disk_outlives_a_killed_blkd(boot, image):
    async with serve(image()) as server, boot(Disk(server.socket)) as guest:
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=4k --size=4M")
        await server.kill()
        await server.start()
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=4k --size=4M --iodepth=16")
        await guest.reboot()
        await fio(guest, "/dev/vda", "--rw=randread --bs=4k --size=4M --verify_only")
