# SPDX-License-Identifier: Apache-2.0
"""A driver's side of shared memory: memfd regions, and a split virtqueue in them."""

import contextlib
import mmap
import os
import select
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIB = 1 << 20

REGION = struct.Struct("=QQQQ")  # guest address, size, user address, mmap offset
DESC = struct.Struct("<QIHH")  # address, length, flags, next
DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
NO_NOTIFY = 1  # used flags


@dataclass(frozen=True, slots=True)
class Region:
    """One piece of guest memory: where the guest, the front end and the file see it."""

    gpa: int
    size: int
    uva: int
    offset: int
    fd: int
    memory: mmap.mmap

    def pack(self) -> bytes:
        return REGION.pack(self.gpa, self.size, self.uva, self.offset)


class GuestMemory:
    """memfd regions with a hole before and between them; all three address spaces differ."""

    USER_BASE = 0x7F00_0000_0000
    OFFSET = 0x1_0000  # regions do not start at the beginning of their file

    def __init__(self, sizes: Sequence[int] = (8 * MIB, 8 * MIB)) -> None:
        self.regions: list[Region] = []
        self._next: list[int] = []
        self._free: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.device_address: Callable[[int], int] = lambda gpa: gpa
        """By which address a device finds a guest address: another one behind an IOMMU."""
        for size in sizes:
            self.grow(size)

    def grow(self, size: int) -> Region:
        """One more region, which the back end does not know of yet."""
        fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(fd, self.OFFSET + size)
        last = self.regions[-1] if self.regions else None
        gpa = last.gpa + last.size + MIB if last else MIB
        uva = self.USER_BASE + len(self.regions) * (1 << 36)
        memory = mmap.mmap(fd, size, offset=self.OFFSET)
        self.regions.append(Region(gpa, size, uva, self.OFFSET, fd, memory))
        self._next.append(gpa)
        return self.regions[-1]

    def close(self) -> None:
        for region in self.regions:
            region.memory.close()
            os.close(region.fd)
        self.regions.clear()

    def region(self, gpa: int, size: int = 1) -> Region:
        for region in self.regions:
            if region.gpa <= gpa and gpa + size <= region.gpa + region.size:
                return region
        raise ValueError(f"{size} bytes at {gpa:#x} are not in guest memory")

    def user_address(self, gpa: int) -> int:
        region = self.region(gpa)
        return region.uva + gpa - region.gpa

    def read(self, gpa: int, size: int) -> bytes:
        region = self.region(gpa, size)
        start = gpa - region.gpa
        return region.memory[start : start + size]

    def write(self, gpa: int, data: bytes) -> None:
        region = self.region(gpa, len(data))
        start = gpa - region.gpa
        region.memory[start : start + len(data)] = data

    def read_u16(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 2), "little")

    def write_u16(self, gpa: int, value: int) -> None:
        self.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))

    def place(self, buffer: int | bytes, length: int, owned: list[tuple[int, int]]) -> int:
        """A device's address of a buffer; bytes are copied to memory that joins `owned`."""
        if isinstance(buffer, int):
            return self.device_address(buffer)
        length = max(length, len(buffer))
        gpa = self.alloc(length)
        owned.append((gpa, length))
        self.write(gpa, buffer)
        return self.device_address(gpa)

    def alloc(self, size: int, align: int = 16, region: int | None = None) -> int:
        """The guest address of `size` zero bytes, from the first region that has room."""
        if region is None and self._free[size, align]:
            gpa = self._free[size, align].pop()
            self.write(gpa, bytes(size))
            return gpa
        for i in range(len(self.regions)) if region is None else (region,):
            gpa = -(-self._next[i] // align) * align
            if gpa + size <= self.regions[i].gpa + self.regions[i].size:
                self._next[i] = gpa + size
                return gpa
        raise MemoryError(f"no {size} bytes of guest memory are left")

    def free(self, gpa: int, size: int, align: int = 16) -> None:
        self._free[size, align].append(gpa)


class Vring:
    """The driver's side of one split virtqueue, with its eventfds.

    A chain is a sequence of (address or bytes, length, flags); bytes are copied to guest
    memory, and NEXT flags are added.  Nothing else is checked: hostile chains are wanted.
    """

    def __init__(self, memory: GuestMemory, size: int, *, event_idx: bool = False) -> None:
        self.memory, self.size, self.event_idx = memory, size, event_idx
        self.index = -1
        self.desc = memory.alloc(16 * size, 4096)
        self.avail = memory.alloc(6 + 2 * size, 2)
        self.used = memory.alloc(6 + 8 * size, 4096)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.rewind()

    def rewind(self, index: int = 0) -> None:
        """Begin again as a driver does after a reset, or go on from `index`."""
        self.seen = index  # used entries that were taken
        self.kicked = index  # avail index when it was last asked whether the device wants a kick
        self.spare = list(range(self.size))
        self.chains: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        for area, length in ((self.avail, 6 + 2 * self.size), (self.used, 6 + 8 * self.size)):
            self.memory.write(area, bytes(length))
        self.avail_idx = index
        self.memory.write_u16(self.used + 2, index)

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)

    @property
    def avail_idx(self) -> int:
        return self.memory.read_u16(self.avail + 2)

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self.memory.write_u16(self.avail + 2, value)

    @property
    def avail_flags(self) -> int:
        return self.memory.read_u16(self.avail)

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self.memory.write_u16(self.avail, value)

    @property
    def used_event(self) -> int:
        """The used index at which we want to be called (EVENT_IDX)."""
        return self.memory.read_u16(self.avail + 4 + 2 * self.size)

    @used_event.setter
    def used_event(self, value: int) -> None:
        self.memory.write_u16(self.avail + 4 + 2 * self.size, value)

    @property
    def used_idx(self) -> int:
        return self.memory.read_u16(self.used + 2)

    @property
    def base(self) -> int:
        """Where the device goes on if nothing is in flight, as SET_VRING_BASE takes it."""
        return self.used_idx

    @property
    def used_flags(self) -> int:
        return self.memory.read_u16(self.used)

    @property
    def avail_event(self) -> int:
        """The avail index at which the device wants to be kicked (EVENT_IDX)."""
        return self.memory.read_u16(self.used + 4 + 8 * self.size)

    def put_desc(self, at: int, address: int, length: int, flags: int = 0, link: int = 0) -> None:
        """Write descriptor `at` of the ring's own table."""
        self.memory.write(self.desc + 16 * at, DESC.pack(address, length, flags, link))

    def add(self, chain: Sequence[tuple[int | bytes, int, int]]) -> int:
        """Write a chain into free descriptors: its head.  The device does not see it yet."""
        owned: list[tuple[int, int]] = []
        ids = [self.spare.pop(0) for _ in chain]
        for n, (buffer, length, flags) in enumerate(chain):
            last = n + 1 == len(chain)
            link = 0 if last else ids[n + 1]
            address = self.memory.place(buffer, length, owned)
            self.put_desc(ids[n], address, length, flags | (0 if last else DESC_NEXT), link)
        self.chains[ids[0]] = ids, owned
        return ids[0]

    def add_indirect(self, chain: Sequence[tuple[int | bytes, int, int]]) -> int:
        """Write a chain into an indirect table, and that into one descriptor: its head."""
        owned: list[tuple[int, int]] = []
        table = b""
        for n, (buffer, length, flags) in enumerate(chain):
            more = DESC_NEXT if n + 1 < len(chain) else 0
            address = self.memory.place(buffer, length, owned)
            table += DESC.pack(address, length, flags | more, n + 1 if more else 0)
        head = self.add([(table, len(table), DESC_INDIRECT)])
        self.chains[head][1].extend(owned)
        return head

    def publish(self, *heads: int) -> None:
        """Make chains available to the device, without a kick."""
        index = self.avail_idx
        for n, head in enumerate(heads):
            self.memory.write_u16(self.avail + 4 + 2 * ((index + n) % self.size), head)
        self.avail_idx = index + len(heads)

    def kick(self) -> None:
        """Tell the device, wanted or not."""
        os.eventfd_write(self.kick_fd, 1)

    def notify(self) -> bool:
        """Tell the device if it asked for that, as a real driver does: whether it did."""
        new, old = self.avail_idx, self.kicked
        self.kicked = new
        if self.event_idx:
            wanted = (new - self.avail_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self.used_flags & NO_NOTIFY
        if wanted:
            self.kick()
        return wanted

    def take_used(self) -> list[tuple[int, int]]:
        """The (head, written bytes) that the device has given back, their descriptors freed."""
        taken = []
        while self.seen != self.used_idx:
            entry = self.memory.read(self.used + 4 + 8 * (self.seen % self.size), 8)
            head, written = struct.unpack("<II", entry)
            taken.append((head, written))
            ids, owned = self.chains.pop(head, ([], []))
            self.spare.extend(ids)
            for gpa, size in owned:
                self.memory.free(gpa, size)
            self.seen = (self.seen + 1) & 0xFFFF
        return taken

    def wait_used(self, timeout: float = 5) -> list[tuple[int, int]]:
        """What the device gives back next, after it called us; [] when the time is over."""
        deadline = time.monotonic() + timeout
        while True:
            self.used_event = self.seen
            if taken := self.take_used():
                return taken
            if not wait_readable(self.call_fd, deadline - time.monotonic()):
                return self.take_used()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call_fd)

    def called(self, timeout: float = 0) -> bool:
        """Whether the device called since the last wait; the eventfd is emptied."""
        return drained(self.call_fd, timeout)

    def broken(self, timeout: float = 5) -> bool:
        """Whether the device reported an error of this ring."""
        return drained(self.err_fd, timeout)


def wait_readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def drained(fd: int, timeout: float) -> bool:
    if not wait_readable(fd, timeout):
        return False
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
    return True
