# SPDX-License-Identifier: Apache-2.0
"""A running guest learns of every new size, whatever it is doing."""

import asyncio
import os

import pytest

from harness.fio import fio
from harness.guest import Disk, Guest
from harness.server import ServerError, serve

MIB = 1 << 20
BUSY = "--rw=randrw --bs=4k --iodepth=16 --size=8M"
DRIVER = "/sys/bus/virtio/drivers/virtio_blk"


async def see(guest: Guest, size: int) -> None:
    await guest.until(f"[ $(blockdev --getsize64 /dev/vda) -eq {size} ]")


async def test_a_disk_in_use_grows_by_command(boot, image):
    path = image()
    async with serve(path) as server, boot(Disk(server.socket)) as guest:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fio(guest, "/dev/vda", f"{BUSY} --numjobs=4 --offset_increment=16M"))
            for size in range(65 * MIB, 75 * MIB, MIB):
                answer = await server.call("resize", size)
                assert (answer["size"], answer["announced"]) == (size, "fetched")
                await see(guest, size)
        assert path.stat().st_size == 74 * MIB
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=4k --offset=64M --size=10M")


async def test_a_file_that_grows_by_other_means_is_noticed(boot, image):
    path = image()
    async with serve(path) as server, boot(Disk(server.socket)) as guest:
        os.truncate(path, 80 * MIB)
        await see(guest, 80 * MIB)
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=64k --offset=64M --size=16M")


async def test_a_disk_shrinks_only_by_force(boot, image):
    path = image()
    async with serve(path) as server, boot(Disk(server.socket)) as guest:
        with pytest.raises(ServerError, match="--force"):
            await server.call("resize", 32 * MIB)
        assert await guest.size("vda") == path.stat().st_size == 64 * MIB
        answer = await server.call("resize", "32M", "--force")
        assert answer["announced"] == "fetched"
        await see(guest, 32 * MIB)
        assert path.stat().st_size == 32 * MIB
        await fio(guest, "/dev/vda", "--rw=randwrite --bs=64k --size=32M")


async def test_a_resize_without_a_driver_is_seen_by_the_next_one(boot, image):
    async with serve(image()) as server, boot(Disk(server.socket)) as guest:
        device = (await guest.run("basename $(readlink /sys/block/vda/device)")).strip()
        await guest.run(f"echo {device} >{DRIVER}/unbind")
        await server.call("resize", "96M")
        await guest.run(f"echo {device} >{DRIVER}/bind")
        await see(guest, 96 * MIB)


async def test_a_resize_while_the_back_end_was_away_is_seen(boot, image):
    path = image()
    async with serve(path) as server, boot(Disk(server.socket)) as guest:
        assert await server.stop() == 0
        os.truncate(path, 96 * MIB)
        await server.start()
        await see(guest, 96 * MIB)


async def test_a_resize_during_a_reboot_is_seen(boot, image):
    size = 64 * MIB
    async with serve(image()) as server, boot(Disk(server.socket)) as guest:
        async with asyncio.TaskGroup() as tasks:
            reboot = tasks.create_task(guest.reboot())
            while not reboot.done():
                size += MIB
                await server.call("resize", size)
                rings = (await server.call("show"))["front_end"]["rings"]
                if [ring["index"] for ring in rings if ring["started"]] == [0]:
                    break  # the firmware reads the disk: no driver knows this size
        await see(guest, size)
