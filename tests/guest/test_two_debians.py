# SPDX-License-Identifier: Apache-2.0
"""A guest moves from the QEMU of one Debian to that of the other."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from harness.fio import fio
from harness.guest import QEMU, Disk, Machine
from harness.server import serve

PROJECT = Path(__file__).parents[2]
MODEL, CPU = "pc-q35-7.2", "qemu64"  # of the older QEMU, and known to the newer one
JOB = (
    "--rw=randrw --bs=4k --iodepth=16 --size=12M --numjobs=2 --offset_increment=16M --fsync=64 "
    "--time_based --runtime=6"
)


@pytest.fixture(scope="session")
def other_machine() -> Machine:
    """Guests under the other Debian's QEMU, with the same kernel and programs as here."""
    made = sorted((PROJECT / "build" / "debian").glob("*/made"))
    if not made:
        pytest.skip("no other Debian: make other-debian makes one")
    run = str(PROJECT / "tests" / "other-debian")
    return asyncio.run(Machine.prepare((run, "run", str(made[0].parent), QEMU)))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_guest_migrates_to_a_newer_qemu_under_load(machine, other_machine, image, packed):
    older, newer = (
        replace(each, model=MODEL, cpu=CPU)
        for each in sorted((machine, other_machine), key=lambda m: m.qemu_version)
    )
    assert older.qemu_version[0] < newer.qemu_version[0]
    path = image()
    async with (
        serve(path) as here,
        serve(path, "--incoming") as there,
        older.boot(Disk(here.socket, packed=packed), cpus=2) as guest,
        newer.incoming(Disk(there.socket, packed=packed), cpus=2) as moved,
    ):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fio(guest, "/dev/vda", JOB, limit=150))
            await under_load(here)
            await guest.migrate(moved)
            await moved.take_over(guest)
            await guest.kill()
            await under_load(there)
        assert (await there.call("show"))["image_locked"]
        await there.kill()  # what is in flight is recorded in a region that the newer QEMU keeps
        async with asyncio.TaskGroup() as tasks:
            job = tasks.create_task(fio(moved, "/dev/vda", JOB, limit=150))
            await there.start()
            await under_load(there)
            assert not job.done()
            await there.kill()
            await there.start()
        await moved.reboot()
        await fio(moved, "/dev/vda", "--rw=randwrite --bs=4k --size=4M --iodepth=16")
        assert await moved.kernel_errors() == []


async def under_load(server):
    """Wait until requests are answered."""
    async with asyncio.timeout(30):
        while (await server.call("stats"))["total"]["writes"] < 100:
            pass
