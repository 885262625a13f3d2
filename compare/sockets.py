# SPDX-License-Identifier: Apache-2.0
"""How fast `blkd vsock` is: an emulated driver at one end, a program of the host at the other.

`python -m compare.sockets` prints a table.  No peer is packaged, so nothing stands beside it.
"""

import contextlib
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
from blkd.vsock_load import Load, address_of
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from blkd.loadgen.cpu_time import Processor
from harness.daemon import Serving
from harness.frontend import Feature, FrontEnd, GuestMemory, Vring
from harness.vsock import HEADER, RX, TX

GIB: Final = 1 << 30
CID: Final = 3
PORT: Final = 80
MEMORY: Final = 48 << 20
SIZE: Final = 128
"""Descriptors of a ring, as QEMU has them."""
LINUX_BUFFER: Final = 4096
"""Payload of a buffer that Linux receives into."""
FEATURES: Final = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
PINGS: Final = 20_000
REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One way to load a connection."""

    name: str
    payload: int
    """Bytes of the driver's buffers."""
    run: Callable[[Load, socket.socket, int], int]
    """Carries `total` bytes over: how many, or how many round trips."""
    is_latency: bool = False


def to_host(load: Load, host: socket.socket, total: int, piece: int) -> int:
    """The guest sends."""
    reader = threading.Thread(target=_read_all, args=(host, total))
    reader.start()
    load.send_all(total, piece)
    reader.join()
    return total


def to_guest(load: Load, host: socket.socket, total: int) -> int:
    """The host sends."""
    writer = threading.Thread(target=_write_all, args=(host, total))
    writer.start()
    load.receive_all(total)
    writer.join()
    return total


def ping(load: Load, host: socket.socket, _total: int) -> int:
    """One byte there and back, again and again."""
    echo = threading.Thread(target=_echo, args=(host, PINGS))
    echo.start()
    load.ping(PINGS, 1)
    echo.join()
    return PINGS


def _read_all(host: socket.socket, total: int) -> None:
    room = bytearray(1 << 18)
    while total:
        total -= host.recv_into(room)


def _write_all(host: socket.socket, total: int) -> None:
    data = memoryview(bytes(1 << 16))
    while total:
        total -= host.send(data[: min(total, len(data))])


def _echo(host: socket.socket, count: int) -> None:
    for _ in range(count):
        host.send(host.recv(1))


CASES: Final = (
    Case("guest to host, 64 KiB", 1 << 16, partial(to_host, piece=1 << 16)),
    Case("guest to host, 4 KiB", LINUX_BUFFER, partial(to_host, piece=LINUX_BUFFER)),
    Case("host to guest, buffers of 64 KiB", 1 << 16, to_guest),
    Case("host to guest, buffers of 4 KiB", LINUX_BUFFER, to_guest),
    Case("a byte there and back", LINUX_BUFFER, ping, is_latency=True),
)


class Vsock(Serving):
    """`blkd vsock` with one guest."""

    def __init__(self, directory: Path) -> None:
        self.socket, self.uds = directory / "guest", directory / "host"
        command = ["blkd", "vsock", "--cid", CID, "--socket", self.socket, "--uds", self.uds]
        super().__init__([*command, "--json"], directory / "log")


@contextlib.contextmanager
def connected(blkd: Vsock, payload: int) -> Iterator[tuple[Load, socket.socket]]:
    """A driver with one connection, and the other end of it."""
    with FrontEnd.connect(blkd.socket) as front_end, socket.socket(socket.AF_UNIX) as listener:
        front_end.memory = GuestMemory((MEMORY,))
        front_end.prepare(FEATURES)
        (region,) = front_end.memory.regions
        places = []
        for index in (RX, TX):
            ring = front_end.start_ring(index, SIZE)
            assert isinstance(ring, Vring)
            buffers = front_end.memory.alloc(SIZE * (HEADER.size + payload), 4096)
            addresses = ring.desc, ring.avail, ring.used, buffers
            places.append((*addresses, SIZE, ring.kick_fd, ring.call_fd))
        path = Path(f"{blkd.uds}_{PORT}")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        base = address_of(region.memory)
        load = Load(base, region.gpa, *places, payload, CID, PORT, 1024)
        load.connect()
        host, _ = listener.accept()
        with host:
            yield load, host


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run came to."""

    seconds: float
    work: int
    processor: float
    """Seconds of blkd's."""


def measure(case: Case, total: int) -> Measured:
    """Run a case once, with a process of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="sockets-") as directory,
        Vsock(Path(directory)) as blkd,
    ):
        blkd.ready()
        with connected(blkd, case.payload) as (load, host):
            processor = Processor(blkd.process.pid)
            used, began = processor.seconds(), time.perf_counter()
            work = case.run(load, host, total)
            seconds = time.perf_counter() - began
            return Measured(seconds, work, processor.seconds() - used)


@click.command()
@click.option("--gib", type=click.FloatRange(0.01), default=1.0, help="To carry over in a run.")
def main(gib: float) -> None:
    """Measure each case some times and print the medians."""
    table = Table(box=SIMPLE_HEAD)
    for head in ("case", "", "of blkd's CPU"):
        table.add_column(head)
    for case in CASES:
        runs = [measure(case, int(gib * GIB)) for _ in range(REPEATS)]
        seconds = statistics.median(run.seconds / run.work for run in runs)
        processor = statistics.median(run.processor / run.work for run in runs)
        if case.is_latency:
            table.add_row(case.name, f"{1e6 * seconds:.1f} µs", f"{1e6 * processor:.1f} µs")
        else:
            rate = f"{8e-6 / seconds:,.0f} Mbit/s"
            table.add_row(case.name, rate, f"{1e9 * processor:.3f} ns a byte")
    Console().print(table)


if __name__ == "__main__":
    main()
