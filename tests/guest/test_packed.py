# SPDX-License-Identifier: Apache-2.0
"""A real driver on packed rings."""

import asyncio
import contextlib
import hashlib

import pytest

from harness.fio import fio
from harness.guest import Disk
from harness.server import serve

MIB = 1 << 20
SHAPES = [(1, 16), (4, 1024)]
"""Queues and queue size: all of them in one guest."""
JOBS = [
    "--rw=randrw --bsrange=512-96k --iodepth=16 --size=4M",
    "--rw=randtrimwrite --bs=16k --iodepth=8 --size=2M --fsync=32",
]
DRIVER = "/sys/bus/virtio/drivers/virtio_blk"


@pytest.mark.timeout(200)
async def test_packed_rings_carry_data_and_outlive_a_new_driver_and_a_reboot(boot, image):
    async with contextlib.AsyncExitStack() as stack:
        paths = [image(f"{queues}x{size}", 16 * MIB) for queues, size in SHAPES]
        servers = [
            await stack.enter_async_context(serve(path, "--queues", queues, "--workers", 2))
            for path, (queues, _) in zip(paths, SHAPES, strict=True)
        ]
        disks = [
            Disk(s.socket, *shape, packed=True) for s, shape in zip(servers, SHAPES, strict=True)
        ]
        guest = await stack.enter_async_context(boot(*disks))
        names = [f"vd{chr(ord('a') + n)}" for n in range(len(SHAPES))]

        for options in JOBS:
            await load(guest, names, options)
        await check(guest, names, servers, paths)

        for name in names:
            device = (await guest.run(f"basename $(readlink /sys/block/{name}/device)")).strip()
            await guest.run(f"echo {device} >{DRIVER}/unbind; echo {device} >{DRIVER}/bind")
        await load(guest, names, "--rw=randrw --bs=4k --iodepth=32 --size=1M")
        await check(guest, names, servers, paths)

        await guest.reboot()  # the firmware uses split rings
        await load(guest, names, "--rw=randwrite --bs=4k --iodepth=32 --size=1M")
        await check(guest, names, servers, paths)


async def load(guest, names, options):
    spread = f"{options} --numjobs=2 --offset_increment=8M"
    await asyncio.gather(*(fio(guest, f"/dev/{name}", spread) for name in names))


async def check(guest, names, servers, paths):
    """The guest has packed rings, nothing failed, and the host has what the guest has."""
    for name, server, path in zip(names, servers, paths, strict=True):
        features = await guest.run(f"cat /sys/block/{name}/device/features")
        assert features[34] == "1"  # as text, the lowest bit first
        state = await server.call("show")
        assert "RING_PACKED" in state["front_end"]["feature_names"]
        assert state["broken_rings"] == []
        assert (await server.call("stats"))["total"]["errors"] == 0
        with path.open("rb") as file:
            assert await guest.sha256(name) == hashlib.file_digest(file, "sha256").hexdigest()
