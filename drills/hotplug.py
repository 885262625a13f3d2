# SPDX-License-Identifier: Apache-2.0
"""Memory plugged into a guest at work, used for its I/O, and unplugged again.

DIMMs become regions of their own (ADD_MEM_REG, REM_MEM_REG); a virtio-mem device is one region
of which the guest uses more or less.  All of it is movable in the guest, which takes buffers
from there first.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from drills.outcome import Outcome
from harness.fio import Report, fio
from harness.guest import Disk, Guest, Machine, SpareMemory
from harness.qmp import QmpError
from harness.server import Server, serve

PLUGGED: Final = 128 << 20
"""Bytes that come and go: one memory block of the guest."""
DISK: Final = 128 << 20
FILL: Final = "--rw=write --bs=1M --iodepth=32 --size=32M --numjobs=3 --offset_increment=32M"
"""Buffers for three quarters of what is plugged, on the first three quarters of the disk."""
BUSY: Final = (
    "--rw=randrw --bsrange=4k-64k --iodepth=8 --size=4M --numjobs=2 --offset=96M"
    " --offset_increment=16M"
)
TRIES: Final = 5
"""How often a guest is asked for a DIMM: it refuses for a page that is in the way just then."""
UNPLUG_LIMIT: Final = 10.0
SPARE: Final = "/machine/peripheral/spare"


@dataclass(slots=True)
class Seen:
    """What a drill has seen so far."""

    dimms: int = 0
    resizes: int = 0
    refusals: int = 0
    """Times that the guest did not give a DIMM back at once."""
    requests: int = 0
    verified: int = 0
    wrong_regions: int = 0
    """Times that blkd did not have the regions that it should have had."""

    def take(self, report: Report) -> None:
        """Count what fio has done, and verified."""
        self.requests += report.read.requests + report.write.requests
        self.verified += report.read.bytes


class Drill:
    """A guest with a disk, and what is plugged into it."""

    def __init__(self, guest: Guest, server: Server, seen: Seen) -> None:
        self._guest, self._server, self._seen = guest, server, seen

    async def dimm(self) -> None:
        """Plug a DIMM, use it, unplug it."""
        qmp, before = self._guest.qmp, await self._regions()
        await qmp.execute(
            "object-add",
            qom_type="memory-backend-memfd",
            id="dimm-memory",
            size=PLUGGED,
            share=True,
        )
        await qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="dimm-memory")
        await self._used()
        self._seen.wrong_regions += await self._regions() != before + 1
        await self._unplug()
        await qmp.execute("object-del", id="dimm-memory")
        self._seen.wrong_regions += await self._regions() != before
        self._seen.dimms += 1

    async def virtio_mem(self) -> None:
        """Have the virtio-mem device grow, use it, and have it shrink to nothing."""
        for size in (PLUGGED, 0):
            since = len(self._guest.qmp.events)
            await self._guest.qmp.execute(
                "qom-set", path=SPARE, property="requested-size", value=size
            )
            await self._guest.qmp.event(
                "MEMORY_DEVICE_SIZE_CHANGE", partial(has_size, size), since=since
            )
            self._seen.resizes += 1
            if size:
                await self._used()

    async def _used(self) -> None:
        """Have the guest put its buffers into what was plugged, and see that it does."""
        managed = f"{PLUGGED // 4096}"
        zone = '/zone *Movable/ { here = 1 } here && $1 == "pages" { print $3; exit }'
        free = f"$(awk '{zone}' /proc/zoneinfo)"
        await self._guest.until(f'[ "{free}" -gt $(({managed} * 3 / 4)) ]')
        async with asyncio.TaskGroup() as tasks:
            filling = tasks.create_task(fio(self._guest, "/dev/vda", FILL))
            await self._guest.until(f'[ "{free}" -lt $(({managed} / 2)) ]')
        self._seen.take(filling.result())

    async def _unplug(self) -> None:
        qmp = self._guest.qmp
        for _ in range(TRIES):
            since = len(qmp.events)
            await qmp.execute("device_del", id="dimm")
            with contextlib.suppress(QmpError):
                await qmp.event(
                    "DEVICE_DELETED",
                    lambda event: event.get("device") == "dimm",
                    since=since,
                    limit=UNPLUG_LIMIT,
                )
                return
            self._seen.refusals += 1
        raise QmpError(f"the guest does not give its DIMM back, asked {TRIES} times")

    async def _regions(self) -> int:
        return len((await self._server.call("show"))["front_end"]["memory_regions"])


def has_size(size: int, event: dict[str, Any]) -> bool:
    """Whether an event says that a device has that size now."""
    return bool(event["size"] == size)


@contextlib.asynccontextmanager
async def at_work(guest: Guest, seen: Seen) -> AsyncIterator[None]:
    """Within, the guest reads, writes and verifies all the time."""
    over = False

    async def work() -> None:
        while not over:
            seen.take(await fio(guest, "/dev/vda", BUSY))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work())
        yield
        over = True


async def drill(rounds: int, *, machine: Machine | None = None) -> Outcome:
    """Plug and unplug a DIMM and a virtio-mem device `rounds` times, with I/O all the while.

    Raises CommandFailed when a request of the guest failed or a block was not the one written.
    """
    machine = machine or await Machine.prepare()
    seen = Seen()
    spare = SpareMemory(virtio_mem=f"{PLUGGED}")
    with tempfile.TemporaryDirectory(prefix="hotplug-") as directory:
        image = Path(directory) / "disk.img"
        image.touch()
        os.truncate(image, DISK)
        async with (
            serve(image, "--queues", 2) as server,
            machine.boot(Disk(server.socket, queues=2), cpus=2, spare=spare) as guest,
        ):
            async with at_work(guest, seen):
                plugging = Drill(guest, server, seen)
                for _ in range(rounds):
                    await plugging.dimm()
                    await plugging.virtio_mem()
            failed = sum(ring["errors"] for ring in (await server.call("stats"))["rings"])
            complaints = len(await guest.kernel_errors())
    return Outcome(
        drill="memory hot-plug",
        rounds=rounds,
        errors=seen.wrong_regions + failed + complaints,
        figures={
            "DIMMs plugged, used and unplugged": seen.dimms,
            "DIMMs not given back at once": seen.refusals,
            "changes of a virtio-mem device": seen.resizes,
            "requests": seen.requests,
            "bytes verified": seen.verified,
        },
    )
