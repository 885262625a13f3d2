# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a raw image becomes a disk of a real Linux guest, is verified and grows.

Every figure in the report was measured or read in this run; the exit status is 0 only if
every step was seen to work.  Nothing but images/demo.img stays behind, whatever happens.
"""

import asyncio
import contextlib
import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blkd.errors import BlkdError
from harness.fio import Transfer, fio
from harness.guest import Disk, Guest, Machine
from harness.server import Server, blkd, serve

MIB = 1 << 20
IMAGE = Path(__file__).parent.parent / "images" / "demo.img"
SIZE = 128 * MIB
GROWN = 256 * MIB
WRITTEN = 64 * MIB
QUEUES = 4
LIMIT = 170.0  # for all of it, so that a demo which hangs fails and cleans up


class DemoError(BlkdError):
    """Something was seen that should have been otherwise."""


class Report:
    """What was seen, step by step."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.failed = False
        self._table = Table("step", "what was seen", "took", box=SIMPLE_HEAD)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what it puts in the list is reported.  An error is noted and goes on up."""
        seen: list[str] = []
        began = time.monotonic()
        with self.console.status(name):
            try:
                yield seen
            except BaseException as error:
                self.failed = True
                seen.append(f"[bold red]FAILED[/]: {describe(error)}")
                raise
            finally:
                took = time.monotonic() - began
                self._table.add_row(name, "\n".join(seen), f"{took:.1f} s")

    def show(self) -> None:
        """Print it."""
        self.console.print(self._table)


def describe(error: BaseException) -> str:
    """An error as a person wants to read it, safe to print."""
    if isinstance(error, asyncio.CancelledError):
        return f"interrupted, or not done in {LIMIT:g} s"
    hint = f"\nhint: {error.hint}" if isinstance(error, BlkdError) and error.hint else ""
    return escape(f"{error or type(error).__name__}{hint}")


def expect(what: str, seen: object, wanted: object) -> None:
    """Raise DemoError unless `seen` is what was wanted."""
    if seen != wanted:
        raise DemoError(f"{what}: {seen!r}, expected {wanted!r}")


async def demonstrate(report: Report) -> None:
    """The whole job.  Raises BlkdError or TimeoutError at the first step not seen to work."""
    with report.step("create the image") as seen:
        IMAGE.unlink(missing_ok=True)
        await blkd("image", "create", IMAGE, SIZE)
        seen.append(f"{IMAGE.parent.name}/{IMAGE.name}, {mib(IMAGE.stat().st_size)}")
    with report.step("prepare the guest") as seen:
        machine = await Machine.prepare()
        version = ".".join(map(str, machine.qemu_version))
        seen.append(f"QEMU {version}, accelerator {machine.accelerator}")
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


def mib(size: int) -> str:
    """Bytes in MiB."""
    return f"{size / MIB:g} MiB"


def rate(seen: Transfer) -> str:
    """How much was moved, and how fast."""
    return f"{mib(seen.bytes)} in {seen.requests} requests, {seen.iops:.0f}/s"


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
