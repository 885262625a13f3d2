# SPDX-License-Identifier: Apache-2.0
"""The second act of the demo: two guests with two disks of one daemon, one of the guests hostile.

What is hostile is the driver of a real guest: its memory, in which the driver writes what it wants
of the disk, is overwritten while requests run, as nothing but that guest could.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from demo.report import MIB, DemoError, Report, expect, mib, rate
from harness.fio import fio
from harness.guest import Disk, Guest, Machine
from harness.server import Keeper, keep

GOOD: Final = "web"
HOSTILE: Final = "db"
SIZE: Final = 64 * MIB
CPUS: Final = {GOOD: 2, HOSTILE: 1}
ATTACK_LIMIT: Final = 30.0  # seconds until the daemon has seen through a driver that writes wildly
LOOK: Final = 0.2  # seconds of attack between two looks at what became of it
FAR_AHEAD: Final = 0x7FFF  # requests that a ring cannot have
AVAIL_IDX: Final = 2  # where the index is in an avail ring (virtio 1.3, 2.7.6)
REGISTERS_BAR: Final = 4  # where QEMU has the common configuration structure, at its start
QUEUE_DRIVER: Final = (
    0x28  # the field of it that says where the avail ring is (virtio 1.3, 4.1.4.3)
)


async def demonstrate(report: Report, machine: Machine) -> None:
    """The whole act.  Raises BlkdError or TimeoutError at the first step not seen to work."""
    async with contextlib.AsyncExitStack() as running:
        with report.step("blkd daemon, blkd add") as seen:
            daemon = await running.enter_async_context(keep())
            seen.extend([await add(daemon, name) for name in (GOOD, HOSTILE)])
        with report.step("boot two guests") as seen:
            guests = {}
            for name in (GOOD, HOSTILE):
                disk = Disk(await socket_of(daemon, name), queues=CPUS[name])
                guest = await running.enter_async_context(machine.boot(disk, cpus=CPUS[name]))
                guests[name] = guest
                seen.append(f"{name}: Linux {guest.kernel}, /dev/vda of {mib(SIZE)}")
        with report.step("kill the daemon under load") as seen:
            seen.extend(await kill_daemon(daemon, guests[GOOD]))
        with report.step("a guest turns hostile") as seen:
            seen.extend(await turn_hostile(daemon, guests))
        with report.step("end both") as seen:
            seen.extend(await end(daemon, guests[GOOD]))


async def add(daemon: Keeper, name: str) -> str:
    """Have an image made and served."""
    image = daemon.images / f"{name}.img"
    view = await daemon.call("add", image, "--create", SIZE, "--queues", CPUS[name])
    expect("state", view["state"], "serving")
    return f"{name}: served by process {view['pid']}, {confinement(view['served']['sandbox'])}"


def confinement(sandbox: dict[str, Any] | None) -> str:
    """What the process of an export may not do."""
    if sandbox is None:
        return "without a sandbox"
    namespaces = f"{len(sandbox['namespaces'])} namespaces of its own"
    filtered = "a seccomp filter" if sandbox["seccomp"] else "no seccomp filter"
    return f"user {sandbox['user']}, {namespaces}, {filtered}"


async def socket_of(daemon: Keeper, name: str) -> Path:
    """Where front ends of an export connect."""
    (path,) = (await daemon.call("show", name))["sockets"]
    return Path(path)


async def kill_daemon(daemon: Keeper, guest: Guest) -> list[str]:
    """Kill the daemon and start it again while a guest writes."""
    before = await pids(daemon)
    async with beside(write_and_verify(guest)) as load:
        await daemon.kill()
        await daemon.start()
    expect("processes of the exports", await pids(daemon), before)
    return [
        "killed, started again: both exports found, their processes the same",
        f"{GOOD}: {load.result()}",
    ]


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, str]) -> AsyncIterator[asyncio.Task[str]]:
    """Do something beside what the context does, and to its end.  Raises the first error alone."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks.create_task(work)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def pids(daemon: Keeper) -> dict[str, int]:
    """The process of each export."""
    return {each["name"]: each["pid"] for each in (await daemon.call("ls"))["exports"]}


async def write_and_verify(guest: Guest) -> str:
    """Write at random, read back and check each block's crc32c."""
    seen = await fio(
        guest, "/dev/vda", f"--rw=randwrite --bsrange=4k-64k --iodepth=16 --size={SIZE} --fsync=64"
    )
    expect("bytes verified", seen.read.bytes, SIZE)
    return f"wrote {rate(seen.write)}; every crc32c right"


async def turn_hostile(daemon: Keeper, guests: dict[str, Guest]) -> list[str]:
    """Have one guest's driver write wildly, and see that it harms its own disk alone."""
    before = await pids(daemon)
    load = "fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=8"
    await guests[HOSTILE].run(f"{load} --rw=randread --time_based --runtime=60 >/dev/null 2>&1 &")
    async with beside(write_and_verify(guests[GOOD])) as good:
        broken = await attack(daemon, guests[HOSTILE])
    expect("processes of the exports", await pids(daemon), before)
    expect("errors in the other guest's kernel log", await guests[GOOD].kernel_errors(), [])
    return [f"{HOSTILE}: {escape(broken)}", f"{GOOD}: {good.result()}, no error in its kernel log"]


async def attack(daemon: Keeper, guest: Guest) -> str:
    """Overwrite what the guest's driver tells the disk, until the disk has seen through it."""
    place = await avail_ring(guest)
    with guest_memory(guest.pid) as memory:
        async with asyncio.timeout(ATTACK_LIMIT):
            while True:
                await asyncio.to_thread(overwrite, memory, place)
                shown = (await daemon.call("show", HOSTILE))["served"]
                if shown["broken_rings"]:
                    return f"ring {shown['broken_rings'][0]} stands still: " + "; ".join(
                        shown["broken_reasons"][:1]
                    )


async def avail_ring(guest: Guest) -> int:
    """Where the driver's index of the only queue stands, in bytes of the guest's memory.

    The driver has written it into the device's registers.  (QEMU's own x-query-virtio-queue-status
    would stop the queue.)
    """
    bars = "cat $(readlink -f /sys/block/vda/device)/../resource"
    registers = (await guest.run(bars)).splitlines()[REGISTERS_BAR].split()[0]
    printed = await guest.qmp.execute(
        "human-monitor-command", command_line=f"xp /1gx {int(registers, 16) + QUEUE_DRIVER}"
    )
    return int(printed.rpartition(":")[2], 16)


@contextlib.contextmanager
def guest_memory(pid: int) -> Iterator[int]:
    """The file that is the memory of the guest that process `pid` runs, below 2 GiB as it sees it.

    Raises DemoError where the process has none.
    """
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if "memfd:memory-backend-memfd" in str(entry.readlink()):
            memory = os.open(entry, os.O_RDWR)
            try:
                yield memory
            finally:
                os.close(memory)
            return
    raise DemoError(f"process {pid} has no memory that is shared")


def overwrite(memory: int, avail: int) -> None:
    """Write, for a while, an index far ahead of what any ring may hold."""
    index = avail + AVAIL_IDX
    ends = time.monotonic() + LOOK
    while time.monotonic() < ends:
        now = int.from_bytes(os.pread(memory, 2, index), "little")
        os.pwrite(memory, ((now + FAR_AHEAD) & 0xFFFF).to_bytes(2, "little"), index)


async def end(daemon: Keeper, guest: Guest) -> list[str]:
    """Throw the hostile guest's disk away, switch the other guest off, and end the daemon."""
    removed = await daemon.call("rm", HOSTILE, "--delete-image")
    expect("removed", (removed["removed"], removed["image_deleted"]), (True, True))
    expect("status of QEMU", await guest.power_off(), 0)
    total = (await daemon.call("stats", GOOD))["total"]
    expect("requests that failed", total["errors"], 0)
    expect("status of the daemon", await daemon.stop(), 0)
    return [
        f"{HOSTILE}: removed, its image deleted",
        "{0}: answered {reads} reads, {writes} writes, {flushes} flushes; {errors} failed".format(
            GOOD, **total
        ),
        "the daemon ended with status 0",
    ]
