# SPDX-License-Identifier: Apache-2.0
"""A guest whose disk has no space left waits for it, and never learns of that."""

import asyncio
import os

import pytest

from harness.fio import fio
from harness.guest import Disk
from harness.server import serve
from harness.storage import mounted

MIB = 1 << 20
JOB = "--rw=write --bs=64k --iodepth=16 --size=24M"
"""More than there is space for; it verifies what it has written in the end."""


@pytest.fixture
def small(tmp_path):
    """A sparse image of 64 MiB where 8 are left, and what takes the rest of 40."""
    place = tmp_path / "small"
    with mounted("none", place, "-t", "tmpfs", "-o", "size=40m") as directory:
        image, filler = directory / "disk.img", directory / "filler"
        for path in (image, filler):
            path.touch()
        os.truncate(image, 64 * MIB)
        with filler.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 32 * MIB)
        yield image, filler


async def until_held(server) -> None:
    """Wait until requests are held."""
    async with asyncio.timeout(60):
        while not (await server.call("show"))["held"]:
            pass


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_guest_writes_on_without_one_error_once_space_is_made(boot, small, packed):
    image, filler = small
    async with (
        serve(image, "--on-enospc", "hold", "--cache", "writeback") as server,
        boot(Disk(server.socket, packed=packed)) as guest,
        asyncio.TaskGroup() as tasks,
    ):
        job = tasks.create_task(fio(guest, "/dev/vda", JOB, limit=150))
        await until_held(server)
        shown = await server.call("show")
        assert (shown["state"], shown["held_reason"]) == ("held", "No space left on device")
        await guest.run("sleep 2")
        assert not job.done()
        filler.unlink()
        assert (await job).write.bytes == 24 * MIB
        assert (await server.call("show"))["state"] == "serving"
        total = (await server.call("stats"))["total"]
        assert (total["errors"], total["in_flight"]) == (0, 0)


async def test_what_is_held_survives_a_kill_and_an_upgrade_under_a_guest(boot, small):
    image, filler = small
    async with (
        serve(image, "--on-enospc", "hold", "--cache", "writeback") as server,
        boot(Disk(server.socket)) as guest,
        asyncio.TaskGroup() as tasks,
    ):
        job = tasks.create_task(fio(guest, "/dev/vda", JOB, limit=150))
        await until_held(server)
        await server.kill()
        await server.start()
        await until_held(server)
        assert await server.upgrade() == 0
        await until_held(server)
        assert not job.done()
        filler.unlink()
        assert (await job).write.bytes == 24 * MIB
