# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a raw image becomes a disk of a real Linux guest, is verified and grows.

In the second act one daemon keeps the disks of two guests, one of them hostile.  Every figure in
the report was measured or read in this run; the exit status is 0 only if every step was seen to
work.  Nothing but images/demo.img stays behind, whatever happens.
"""

import asyncio
import contextlib
import hashlib
import signal
import sys
import time
from pathlib import Path

from rich.markup import escape

from blkd.errors import BlkdError
from demo import two_guests
from demo.report import LIMIT, MIB, Report, expect, mib, rate
from harness.fio import fio
from harness.guest import Disk, Guest, Machine
from harness.server import Server, blkd, serve

IMAGE = Path(__file__).parent.parent / "images" / "demo.img"
SIZE = 128 * MIB
GROWN = 256 * MIB
WRITTEN = 64 * MIB
QUEUES = 4


async def demonstrate(report: Report) -> None:
    """The whole job.  Raises BlkdError or TimeoutError at the first step not seen to work."""
    with report.step("prepare the guest") as seen:
        machine = await Machine.prepare()
        version = ".".join(map(str, machine.qemu_version))
        seen.append(f"QEMU {version}, accelerator {machine.accelerator}")
    await one_guest(report, machine)
    await two_guests.demonstrate(report, machine)


async def one_guest(report: Report, machine: Machine) -> None:
    """The first act: a disk, from its image to its end."""
    with report.step("create the image") as seen:
        IMAGE.unlink(missing_ok=True)
        await blkd("image", "create", IMAGE, SIZE)
        seen.append(f"{IMAGE.parent.name}/{IMAGE.name}, {mib(IMAGE.stat().st_size)}")
    async with contextlib.AsyncExitStack() as running:
        with report.step("blkd serve") as seen:
            server = await running.enter_async_context(serve(IMAGE, "--queues", QUEUES))
            expect("size served", server.announced["size"], SIZE)
            seen.append("ready: {queues} queues of {queue_size}".format(**server.announced))
        with report.step("boot a guest") as seen:
            disk = Disk(server.socket, queues=QUEUES)
            guest = await running.enter_async_context(machine.boot(disk, cpus=QUEUES))
            seen.extend([f"Linux {guest.kernel}", await look_at_disk(guest, server)])
        with report.step("fio, verified") as seen:
            seen.extend(await write_and_verify(guest, 0))
        with report.step("grow online") as seen:
            seen.extend(await grow(guest, server))
        with report.step("fio beyond the old end") as seen:
            seen.extend(await write_and_verify(guest, SIZE))
        with report.step("compare guest and image") as seen:
            seen.extend(await compare(guest))
        with report.step("stop") as seen:
            seen.extend(await stop(guest, server))


async def look_at_disk(guest: Guest, server: Server) -> str:
    """What the guest's kernel makes of the disk."""
    expect("size in the guest", await guest.size("vda"), SIZE)
    serial, cache, *queues = (
        await guest.run("cd /sys/block/vda; echo $(cat serial); cat cache_type; ls mq")
    ).splitlines()
    expect("serial in the guest", serial, server.announced["serial"])
    expect("cache in the guest", cache, "write back")
    expect("queues in the guest", len(queues), QUEUES)
    return f"/dev/vda of {mib(SIZE)}, serial {serial}, {cache}, {len(queues)} queues"


async def write_and_verify(guest: Guest, offset: int) -> list[str]:
    """Write at random, flush, read back and check each block's crc32c."""
    seen = await fio(
        guest,
        "/dev/vda",
        f"--rw=randwrite --bsrange=4k-64k --iodepth=16 --fsync=64 --offset={offset}",
        f"--size={WRITTEN // QUEUES} --numjobs={QUEUES} --offset_increment={WRITTEN // QUEUES}",
    )
    expect("bytes written", seen.write.bytes, WRITTEN)
    expect("bytes verified", seen.read.bytes, WRITTEN)
    return [
        f"wrote {rate(seen.write)}, {seen.flushes} fsyncs",
        f"read {rate(seen.read)}, every crc32c right",
    ]


async def grow(guest: Guest, server: Server) -> list[str]:
    """Resize while the guest runs, and wait until its kernel knows."""
    began = time.monotonic()
    answer = await server.call("resize", GROWN)
    expect("resize announced", answer["announced"], "fetched")
    await guest.until(f"[ $(blockdev --getsize64 /dev/vda) -eq {GROWN} ]")
    took = time.monotonic() - began
    expect("size of the image", IMAGE.stat().st_size, GROWN)
    return [
        f"{mib(SIZE)} to {mib(GROWN)}: seen in the guest {took:.2f} s after the command was given",
        escape((await guest.run("dmesg | grep -o '.vda. new size:.*'")).strip()),
    ]


async def compare(guest: Guest) -> list[str]:
    """Digests of the whole disk, as the guest and as the host read it."""
    inside = await guest.sha256("vda")
    with IMAGE.open("rb") as image:
        outside = hashlib.file_digest(image, "sha256").hexdigest()
    expect("sha256 in the guest", inside, outside)
    return [f"sha256 of {mib(GROWN)} the same: {inside[:16]}…"]


async def stop(guest: Guest, server: Server) -> list[str]:
    """Look for errors, then switch the guest off and end blkd as a service manager does."""
    errors = await guest.kernel_errors()
    expect("errors in the guest's kernel log", errors, [])
    expect("status of QEMU", await guest.power_off(), 0)
    rings = (await server.call("stats"))["rings"]
    total = {
        what: sum(ring[what] for ring in rings)
        for what in ("reads", "writes", "flushes", "errors", "in_flight")
    }
    expect("requests that failed", total["errors"], 0)
    expect("requests left over", total["in_flight"], 0)
    began = time.monotonic()
    expect("status of blkd", await server.stop(), 0)
    took = time.monotonic() - began
    return [
        f"{len(errors)} errors in the guest's kernel log",
        "blkd answered {reads} reads, {writes} writes, {flushes} flushes; {errors} failed".format(
            **total
        ),
        f"guest off, QEMU ended with status 0; blkd with status 0, {took:.2f} s after SIGTERM",
    ]


async def main() -> int:
    """Run the demo and print its report: the exit status."""
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    report = Report()
    try:
        async with asyncio.timeout(LIMIT):
            await demonstrate(report)
    except (BlkdError, TimeoutError, OSError, asyncio.CancelledError):
        if not report.failed:
            raise
    finally:
        report.show()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
