# SPDX-License-Identifier: Apache-2.0
"""The two sides of a vsock test: two guests of one `blkd vsock`, or one guest that is both."""

import asyncio
import contextlib
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from blkd.errors import BlkdError
from harness.guest import Guest, Machine, Vsock, Wire
from harness.process import kill, spawn
from harness.server import BLKD, START_LIMIT

CIDS = (3, 4)
LOOPBACK_CID = 1
LOG = "blkd.log"
FEATURES = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*/features"
"""Those in force, a digit each."""
PACKED_BIT = 34  # VIRTIO_F_RING_PACKED
GOODBYE = '"event":"back-end channel lost"'
GONE_LIMIT = 20.0  # seconds for connections to go: Linux waits 8 for one that does not close


class SuiteError(BlkdError):
    """The tests could not be run."""


@dataclass(frozen=True, slots=True)
class Side:
    """A guest, and how the other side reaches it."""

    guest: Guest
    cid: int
    address: str
    """Of the control connection."""
    transport: str = "vmw_vsock_virtio_transport"
    """The module that its connections go through."""

    async def idle(self) -> None:
        """Wait until the kernel has forgotten all connections: each has hold of the module."""
        await self.guest.until(
            f"[ $(cat /sys/module/{self.transport}/refcnt) -eq 0 ]", limit=GONE_LIMIT
        )


@contextlib.asynccontextmanager
async def devices(directory: Path) -> AsyncIterator[tuple[Path, ...]]:
    """The sockets of one `blkd vsock` with a device for each of CIDS, ready to serve."""
    sockets = tuple(directory / f"vsock-{cid}" for cid in CIDS)
    options: list[object] = ["--control", directory / "control"]
    for cid, path in zip(CIDS, sockets, strict=True):
        options += ["--cid", cid, "--socket", path, "--uds", directory / f"host-{cid}"]
    log = directory / LOG
    with log.open("wb") as stderr:
        process = await spawn(BLKD, "vsock", *options, "--json", stdout=PIPE, stderr=stderr)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_LIMIT):
            ready = await process.stdout.readline()
        if not ready:
            raise SuiteError(f"blkd vsock: status {await process.wait()}: {log.read_text()}")
        yield sockets
    finally:
        await kill(process)


def complaints(directory: Path) -> list[str]:
    """What blkd has logged as a warning or worse, if it ran, but for the end of a QEMU."""
    log = directory / LOG
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if '"level":"info"' not in line and GOODBYE not in line]


@contextlib.asynccontextmanager
async def siblings(
    machine: Machine, directory: Path, *, packed: bool
) -> AsyncIterator[tuple[Side, Side]]:
    """Two guests of one `blkd vsock`, beside it wired to each other; sockets in `directory`."""
    async with contextlib.AsyncExitStack() as stack:
        sockets = await stack.enter_async_context(devices(directory))
        ends = [directory / f"wire-{cid}" for cid in CIDS]
        sides = []
        for number, (cid, path) in enumerate(zip(CIDS, sockets, strict=True), start=1):
            wire = Wire(ends[number - 1], ends[number % 2], number)
            guest = await stack.enter_async_context(machine.boot(Vsock(path, packed), wire, cpus=2))
            address = f"10.0.0.{number}"
            await guest.run(f"ip address add {address}/24 dev eth0; ip link set eth0 up")
            if (await guest.run(f"cut -c {PACKED_BIT + 1} {FEATURES}")).strip() != str(int(packed)):
                raise SuiteError(f"the guest's rings are {'split' if packed else 'packed'}")
            sides.append(Side(guest, cid, address))
        yield sides[0], sides[1]


@contextlib.asynccontextmanager
async def loopback(machine: Machine) -> AsyncIterator[tuple[Side, Side]]:
    """One guest that is both sides."""
    async with machine.boot(cpus=2) as guest:
        await guest.run("ip link set lo up; insmod /modules/vsock_loopback.ko")
        side = Side(guest, LOOPBACK_CID, "127.0.0.1", "vsock_loopback")
        yield side, side
