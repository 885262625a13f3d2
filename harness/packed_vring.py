# SPDX-License-Identifier: Apache-2.0
"""A driver's side of a packed virtqueue (virtio 1.3, 2.8): what `Vring` is for a split one."""

import contextlib
import os
import time
from collections.abc import Sequence

from harness.vring import DESC, DESC_INDIRECT, DESC_NEXT, GuestMemory, drained, wait_readable

AVAIL, USED = 1 << 7, 1 << 15  # of a descriptor's flags
ENABLE, DISABLE, ONE_DESC = 0, 1, 2  # of an event suppression structure's
WRAP = 1 << 15  # of its other half, and of a position: the wrap counter
START = 0x80008000  # the base of a fresh ring: avail and used at 0, both counters 1
ID_STEP = 40503  # odd, so that all ids come once before one comes again, and in no order


class PackedVring:
    """The driver's side of one packed virtqueue, with its eventfds.

    Chains are given as to `Vring`, and take the ring's next descriptors when they are added.
    A buffer's id is any 16-bit number and says nothing of where its chain lies.
    """

    def __init__(self, memory: GuestMemory, size: int, *, event_idx: bool = False) -> None:
        self.memory, self.size, self.event_idx = memory, size, event_idx
        self.index = -1
        self.desc = memory.alloc(16 * size, 4096)
        self.avail = memory.alloc(4, 4096)  # our event suppression structure
        self.used = memory.alloc(4, 4096)  # the device's
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._last_id = 0
        self.rewind()

    def rewind(self, base: int = START) -> None:
        """Begin again as a driver does after a reset, or go on from `base` with an empty ring."""
        avail, used = base & 0xFFFF, base >> 16
        assert avail == used, "nothing is in flight when a ring begins"
        # Descriptors from the start of a round with counter 1, for ever.
        self.added = (avail & ~WRAP) + (0 if avail & WRAP else self.size)
        self.seen = self.kicked = self.shown = self.added
        self.chains: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        self._hidden: dict[int, tuple[int, int]] = {}
        self.memory.write(self.desc, bytes(16 * self.size))
        self.memory.write(self.avail, bytes(4))
        self.memory.write(self.used, bytes(4))

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)

    def position(self, count: int) -> int:
        """The offset in the ring, and above it the wrap counter, of descriptor `count`."""
        turn, offset = divmod(count, self.size)
        return offset | (0 if turn % 2 else WRAP)

    @property
    def base(self) -> int:
        """Where the device goes on if nothing is in flight, as SET_VRING_BASE takes it."""
        return self.position(self.seen) << 16 | self.position(self.seen)

    @property
    def room(self) -> int:
        """Descriptors that can be added."""
        return self.size - (self.added - self.seen)

    @property
    def event_flags(self) -> int:
        """When we want to be called; `event_at` says more of ONE_DESC."""
        return self.memory.read_u16(self.avail + 2)

    @event_flags.setter
    def event_flags(self, value: int) -> None:
        self.memory.write_u16(self.avail + 2, value)

    @property
    def event_at(self) -> int:
        return self.memory.read_u16(self.avail)

    @event_at.setter
    def event_at(self, value: int) -> None:
        self.memory.write_u16(self.avail, value)

    @property
    def device_event(self) -> tuple[int, int]:
        """When the device wants to be kicked: position and flags."""
        return self.memory.read_u16(self.used), self.memory.read_u16(self.used + 2)

    def put_desc(self, at: int, address: int, length: int, flags: int = 0, ident: int = 0) -> None:
        """Write descriptor `at` of the ring, its flags as given."""
        self.memory.write(self.desc + 16 * at, DESC.pack(address, length, ident, flags))

    def get_desc(self, at: int) -> tuple[int, int, int, int]:
        """Address, length, id and flags of descriptor `at`."""
        address, length, ident, flags = DESC.unpack(self.memory.read(self.desc + 16 * at, 16))
        return address, length, ident, flags

    def marks(self, count: int) -> int:
        """The flags that make descriptor `count` available."""
        return AVAIL if self.position(count) & WRAP else USED

    def _next_id(self) -> int:
        while True:
            self._last_id = (self._last_id + ID_STEP) & 0xFFFF
            if self._last_id not in self.chains:
                return self._last_id

    def add(self, chain: Sequence[tuple[int | bytes, int, int]], ident: int | None = None) -> int:
        """Write a chain into the next descriptors: its id.  The device does not see it yet."""
        assert len(chain) <= self.room, "the ring is full"
        if ident is None:
            ident = self._next_id()
        owned: list[tuple[int, int]] = []
        first = self.added
        for n, (buffer, length, flags) in enumerate(chain):
            last = n + 1 == len(chain)
            written = flags | self.marks(self.added) | (0 if last else DESC_NEXT)
            if n == 0:
                self._hidden[ident] = first, written
                written = 0 if self.position(first) & WRAP else AVAIL | USED  # as if used before
            address = self.memory.place(buffer, length, owned)
            self.put_desc(self.added % self.size, address, length, written, ident)
            self.added += 1
        self.chains[ident] = len(chain), owned
        return ident

    def add_indirect(self, chain: Sequence[tuple[int | bytes, int, int]]) -> int:
        """Write a chain into an indirect table, and that into one descriptor: its id."""
        owned: list[tuple[int, int]] = []
        table = b"".join(
            DESC.pack(self.memory.place(buffer, length, owned), length, 0, flags)
            for buffer, length, flags in chain
        )
        ident = self.add([(table, len(table), DESC_INDIRECT)])
        self.chains[ident][1].extend(owned)
        return ident

    def publish(self, *idents: int) -> None:
        """Make chains available to the device, without a kick; the first one last."""
        for ident in reversed(idents):
            count, flags = self._hidden.pop(ident)
            self.memory.write_u16(self.desc + 16 * (count % self.size) + 14, flags)
            self.shown = max(self.shown, count + self.chains[ident][0])

    def kick(self) -> None:
        """Tell the device, wanted or not."""
        os.eventfd_write(self.kick_fd, 1)

    def notify(self) -> bool:
        """Tell the device if it asked for that, as a real driver does: whether it did."""
        crossed = {self.position(count) for count in range(self.kicked, self.shown)}
        self.kicked = self.shown
        where, flags = self.device_event
        wanted = where in crossed if flags == ONE_DESC else flags == ENABLE
        if wanted:
            self.kick()
        return wanted

    def take_used(self) -> list[tuple[int, int]]:
        """The (id, written bytes) that the device has given back, their descriptors freed."""
        taken = []
        while self.seen != self.added:
            _, written, ident, flags = self.get_desc(self.seen % self.size)
            if flags & (AVAIL | USED) != (AVAIL | USED if self.position(self.seen) & WRAP else 0):
                break
            length, owned = self.chains.pop(ident)
            taken.append((ident, written))
            for gpa, size in owned:
                self.memory.free(gpa, size)
            self.seen += length
        return taken

    def wait_used(self, timeout: float = 5) -> list[tuple[int, int]]:
        """What the device gives back next, after it called us; [] when the time is over."""
        deadline = time.monotonic() + timeout
        while True:
            if self.event_idx:
                self.event_at = self.position(self.seen)
                self.event_flags = ONE_DESC
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
