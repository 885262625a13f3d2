# SPDX-License-Identifier: Apache-2.0
"""A virtio-blk driver (virtio 1.3, 5.2.6) for the scripted front end."""

import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.packed_vring import PackedVring
from harness.vring import DESC_WRITE, Vring

if TYPE_CHECKING:
    from harness.frontend import FrontEnd

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
UNMAP = 1


@dataclass(frozen=True, slots=True)
class Done:
    """How one request ended."""

    status: int
    data: bytes
    written: int


class Disk:
    """A virtio-blk driver on one ring.

    `submit` and `wait` keep many requests in flight; the other methods are one request each.
    """

    def __init__(
        self, front_end: "FrontEnd", ring: Vring | PackedVring, *, indirect: bool = False
    ) -> None:
        self.front_end, self.ring, self.indirect = front_end, ring, indirect
        self.memory = ring.memory
        self._pending: dict[int, tuple[int, int, int]] = {}  # head: header, data, size
        self._done: dict[int, Done] = {}

    def submit(self, kind: int, sector: int = 0, out: bytes = b"", size: int = 0) -> int:
        """Send one request, `out` to the device or `size` bytes from it: what to wait for."""
        header = self.memory.alloc(32)  # 16 bytes, and the status in the second half
        length = len(out) or size
        data = self.memory.alloc(length, 4096) if length else 0
        self.memory.write(header, struct.pack("<IIQ", kind, 0, sector) + b"\xff")
        if out:
            self.memory.write(data, out)
        chain: list[tuple[int | bytes, int, int]] = [(header, 16, 0)]
        if length:
            chain.append((data, length, 0 if out else DESC_WRITE))
        chain.append((header + 16, 1, DESC_WRITE))
        head = self.ring.add_indirect(chain) if self.indirect else self.ring.add(chain)
        self._pending[head] = header, data, length
        self.ring.publish(head)
        self.ring.notify()
        return head

    def wait(self, *heads: int, timeout: float = 5) -> list[Done]:
        """The results of these requests, in this order.  Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not all(head in self._done for head in heads):
            self._done |= self.ended(deadline - time.monotonic())
        return [self._done.pop(head) for head in heads]

    def ended(self, timeout: float = 5) -> dict[int, Done]:
        """The requests that come back next, one at least, by their heads.  Raises TimeoutError."""
        used = self.ring.wait_used(timeout)
        if not used:
            raise TimeoutError(f"{len(self._pending)} requests are still in flight")
        return {head: self._take(head, written) for head, written in used}

    def poll(self, *heads: int, timeout: float = 5) -> list[Done]:
        """As `wait`, by the used ring alone: the call eventfd is left as it is."""
        deadline = time.monotonic() + timeout
        while not all(head in self._done for head in heads):
            self._done |= {at: self._take(at, written) for at, written in self.ring.take_used()}
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._pending)} requests are still in flight")
        return [self._done.pop(head) for head in heads]

    def buffer_of(self, head: int) -> int:
        """The guest address of a request's data, while it is not answered."""
        return self._pending[head][1]

    def _take(self, head: int, written: int) -> Done:
        header, data, size = self._pending.pop(head)
        status = self.memory.read(header + 16, 1)[0]
        content = self.memory.read(data, size) if size else b""
        self.memory.free(header, 32)
        if size:
            self.memory.free(data, size, 4096)
        return Done(status, content, written)

    def request(self, kind: int, sector: int = 0, out: bytes = b"", size: int = 0) -> Done:
        return self.wait(self.submit(kind, sector, out, size))[0]

    def read(self, sector: int, size: int) -> tuple[int, bytes]:
        done = self.request(IN, sector, size=size)
        return done.status, done.data

    def write(self, sector: int, data: bytes) -> int:
        return self.request(OUT, sector, data).status

    def flush(self) -> int:
        return self.request(FLUSH).status

    def get_id(self) -> tuple[int, bytes]:
        done = self.request(GET_ID, size=20)
        return done.status, done.data

    def discard(self, segments: Iterable[tuple[int, int]]) -> int:
        """Give back (sector, number of sectors) each."""
        out = b"".join(struct.pack("<QII", sector, count, 0) for sector, count in segments)
        return self.request(DISCARD, out=out).status

    def write_zeroes(self, segments: Iterable[tuple[int, int]], *, unmap: bool = False) -> int:
        """Zero (sector, number of sectors) each."""
        flags = UNMAP if unmap else 0
        out = b"".join(struct.pack("<QII", sector, count, flags) for sector, count in segments)
        return self.request(WRITE_ZEROES, out=out).status
