# SPDX-License-Identifier: Apache-2.0
"""The front end's side of a dirty log, as QEMU has one during a live migration."""

import mmap
import os
import struct
from collections.abc import Iterable
from typing import Self

from harness.frontend import Feature, FrontEnd, Request, Ring
from harness.packed_vring import PackedVring

PAGE = 4096
MIB = 1 << 20


class DirtyLog:
    """A log in a memfd; leaving the context closes it, whether it is in use or not."""

    def __init__(self, front_end: FrontEnd, covered: int = 32 * MIB, *, offset: int = 0) -> None:
        """Cover the guest addresses below `covered`; begin at `offset` of the file."""
        self.front_end = front_end
        self.size, self.offset = covered // PAGE // 8, offset
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + self.size)
        self._bits = mmap.mmap(self.fd, offset + self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bits.close()
        os.close(self.fd)

    @property
    def payload(self) -> bytes:
        """What SET_LOG_BASE carries."""
        return struct.pack("=QQ", self.size, self.offset)

    def use(self) -> int:
        """Hand the log over: 0 if it was taken."""
        answer = self.front_end.call(Request.SET_LOG_BASE, self.payload, [self.fd])
        return int.from_bytes(answer, "little")

    def start(self) -> None:
        """Do as QEMU does when a migration begins, with all rings that there are."""
        assert self.use() == 0
        log_data(self.front_end, on=True)
        for ring in self.front_end.rings.values():
            log_ring(self.front_end, ring, on=True)

    def stop(self) -> None:
        """Do as QEMU does when it is over."""
        log_data(self.front_end, on=False)
        for ring in self.front_end.rings.values():
            log_ring(self.front_end, ring, on=False)

    def has(self, page: int) -> bool:
        return bool(self._bits[self.offset + page // 8] >> page % 8 & 1)

    def take(self) -> set[int]:
        """The pages marked since the last time."""
        marked = {page for page in range(8 * self.size) if self.has(page)}
        self._bits[self.offset :] = bytes(self.size)
        assert not any(self._bits[: self.offset])
        return marked


def log_data(front_end: FrontEnd, *, on: bool) -> None:
    """Switch LOG_ALL."""
    features = front_end.features & ~Feature.LOG_ALL
    front_end.features = features | Feature.LOG_ALL if on else features
    front_end.set_features()


def log_ring(front_end: FrontEnd, ring: Ring, *, on: bool) -> None:
    """Switch the logging of a ring's own areas."""
    log = front_end.memory.device_address(ring.used) if on else None
    front_end.set(Request.SET_VRING_ADDR, front_end.ring_addresses(ring, log))


def pages(address: int, length: int) -> set[int]:
    """The pages that these bytes lie in."""
    return set(range(address // PAGE, (address + length - 1) // PAGE + 1))


def areas(ring: Ring) -> set[int]:
    """The pages of the areas of a ring that the device writes."""
    if isinstance(ring, PackedVring):
        return pages(ring.desc, 16 * ring.size) | pages(ring.used, 4)
    return pages(ring.used, 6 + 8 * ring.size)


def union(sets: Iterable[set[int]]) -> set[int]:
    return set().union(*sets)
