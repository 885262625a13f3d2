# SPDX-License-Identifier: Apache-2.0
"""Much data through the sockets of guests, with checksums: to the host, from it, between guests."""

import asyncio
import contextlib
import random
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from drills.outcome import Outcome
from harness.daemon import Serving
from harness.frontend import FrontEnd, GuestMemory
from harness.vsock import EOM, SEQPACKET, STREAM, Connection, Op, VsockDriver

MIB: Final = 1 << 20
ROUND: Final = 128 * MIB
"""Bytes of a round, each way to and from the host; between guests an eighth of it."""
PIECE: Final = 1 << 16
RINGS: Final = 128
MEMORY: Final = 32 * MIB
CIDS: Final = (3, 4)
PORT: Final = 80
LIMIT: Final = 60.0
"""Seconds that a program of the host waits for the next byte."""


@dataclass(slots=True)
class Seen:
    """What has gone through."""

    wrong: int = 0
    """Transfers with another checksum, or other ends of messages, than were sent."""
    to_host: int = 0
    from_host: int = 0
    between: int = 0


class Guests(Serving):
    """`blkd vsock` with two guests."""

    def __init__(self, directory: Path) -> None:
        self.control = directory / "control"
        self.hosts = {cid: directory / f"host-{cid}" for cid in CIDS}
        self.paths = {cid: directory / f"guest-{cid}" for cid in CIDS}
        command: list[object] = ["blkd", "vsock", "--control", self.control, "--json"]
        for cid in CIDS:
            command += ["--cid", cid, "--socket", self.paths[cid], "--uds", self.hosts[cid]]
        super().__init__(command, directory / "log")


@dataclass(slots=True)
class HostProgram:
    """One end of a connection, in a thread: it reads to the end, or writes what it is given."""

    sock: socket.socket
    checksum: int = 0
    count: int = 0
    _thread: threading.Thread = field(init=False)

    def read(self) -> None:
        """Begin to read, up to the end."""
        self._start(self._read)

    def write(self, data: bytes, count: int) -> None:
        """Begin to write `data` again and again, `count` bytes in all, then shut."""
        self._start(lambda: self._write(data, count))

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(LIMIT)
        self.sock.close()

    def _start(self, work: Callable[[], None]) -> None:
        self.sock.settimeout(LIMIT)
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := self.sock.recv(MIB):
            self.checksum = zlib.crc32(data, self.checksum)
            self.count += len(data)

    def _write(self, data: bytes, count: int) -> None:
        while self.count < count:
            self.sock.sendall(data)
            self.checksum = zlib.crc32(data, self.checksum)
            self.count += len(data)
        self.sock.shutdown(socket.SHUT_WR)


async def drill(rounds: int) -> Outcome:
    """Send a round's bytes each way, over fresh connections, again and again."""
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="drill-") as directory:
        await asyncio.to_thread(_run, Path(directory), rounds, seen)
    return Outcome(
        drill="sockets",
        rounds=rounds,
        errors=seen.wrong,
        figures={
            "bytes verified to the host": seen.to_host,
            "bytes verified from the host": seen.from_host,
            "bytes verified between guests": seen.between,
        },
    )


def _run(directory: Path, rounds: int, seen: Seen) -> None:
    chance = random.Random(0)  # noqa: S311 - the same data again and again
    with Guests(directory) as blkd, contextlib.ExitStack() as stack:
        blkd.ready()
        guests = tuple(stack.enter_context(_driver(blkd, cid)) for cid in CIDS)
        for number in range(rounds):
            data = chance.randbytes(PIECE)
            _to_host(blkd, guests[0], 1024 + number, data, seen)
            _from_host(blkd, guests[0], data, seen)
            _between(guests, 1024 + number, data, seen)


@contextlib.contextmanager
def _driver(blkd: Guests, cid: int) -> Iterator[VsockDriver]:
    with FrontEnd.connect(blkd.paths[cid]) as front_end:
        front_end.memory = GuestMemory((MEMORY,))
        yield VsockDriver(front_end, cid=cid, size=RINGS, buffer=PIECE)


def _to_host(blkd: Guests, driver: VsockDriver, port: int, data: bytes, seen: Seen) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = Path(f"{blkd.hosts[driver.cid]}_{PORT}")
        listener.bind(str(path))
        listener.listen()
        guest = driver.connect(PORT, src_port=port)
        host = HostProgram(listener.accept()[0])
        path.unlink()
    host.read()
    checksum = 0
    for _ in range(ROUND // len(data)):
        guest.write(data)
        checksum = zlib.crc32(data, checksum)
    guest.close()
    host.join()
    seen.to_host += host.count
    seen.wrong += (host.count, host.checksum) != (ROUND, checksum)


def _from_host(blkd: Guests, driver: VsockDriver, data: bytes, seen: Seen) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(blkd.hosts[driver.cid]))
    sock.sendall(b"CONNECT %d\n" % PORT)
    guest = driver.accept()
    sock.recv(64)
    host = HostProgram(sock)
    host.write(data, ROUND)
    checksum = count = 0
    while piece := guest.read(MIB):
        checksum = zlib.crc32(piece, checksum)
        count += len(piece)
    host.join()
    guest.wait(lambda: guest.shut)
    guest.close()
    seen.from_host += count
    seen.wrong += (count, checksum) != (ROUND, host.checksum)


def _between(guests: tuple[VsockDriver, ...], port: int, data: bytes, seen: Seen) -> None:
    """From one guest to the other: a stream, or, each second time, messages; they are compared."""
    one, other = guests
    kind = SEQPACKET if port % 2 else STREAM
    asking = one.request(PORT, cid=other.cid, kind=kind, src_port=port)
    answering = other.accept()
    asking.wait(lambda: asking.is_open)
    total = ROUND // 8
    sent = got = checksum = expected = 0
    while got < total:
        if sent < total and asking.peer_free >= len(data):
            asking.send(Op.RW, data, EOM if kind == SEQPACKET else 0)
            expected = zlib.crc32(data, expected)
            sent += len(data)
        _serve(one, other)
        for piece in _taken(answering, data, seen):
            checksum = zlib.crc32(piece, checksum)
            got += len(piece)
    asking.close()
    answering.wait(lambda: answering.shut)
    answering.close()
    seen.between += got
    seen.wrong += checksum != expected


def _serve(*drivers: VsockDriver) -> None:
    for driver in drivers:
        driver.waiting.extend(driver.poll(0.0005))
        while driver.waiting:
            driver.dispatch(driver.waiting.popleft())


def _taken(connection: Connection, message: bytes, seen: Seen) -> Iterator[bytes]:
    """What has come on a connection; credit is given for it."""
    if connection.kind == SEQPACKET:
        while connection.messages:
            piece, _ = connection.read_message()
            seen.wrong += piece != message
            yield piece
    elif connection.received:
        yield connection.read(len(connection.received))
