# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a packed virtqueue (virtio 1.3, 2.8)."""

import struct
from collections.abc import Sequence

from tests.vring import DESC_NEXT, Vring

DESC = struct.Struct("<QIHH")  # address, length, buffer id, flags
AVAIL, USED = 1 << 7, 1 << 15
WRAP = 1 << 15  # of a position
ENABLE, DISABLE, ONE = 0, 1, 2  # when the other side wants to hear
START = 0x80008000


class PackedVring(Vring):
    """Plays `Vring`: `avail` and `used` are the event suppression structures.

    What `add` returns is a buffer id; `first_id` moves them away from where descriptors lie.
    """

    first_id = 0

    def place_areas(self) -> tuple[int, int, int]:
        alloc = self.memory.alloc
        return alloc(16 * self.size, 4096), alloc(4, 4), alloc(4, 4)

    @property
    def base(self) -> int:
        position = self.seen | (WRAP if self.seen_wrap else 0)
        return position | position << 16

    def rewind(self, index: int = START) -> None:
        self.next, self.wrap = index & (WRAP - 1), bool(index & WRAP)
        self.seen, self.seen_wrap = self.next, self.wrap
        self.room = self.size
        self.fresh = 0  # descriptors made available since the device was last told
        self.spare = list(range(self.first_id, self.first_id + self.size))
        self.first_flags: dict[int, tuple[int, int]] = {}
        self.chains: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        self.memory.write(self.desc, bytes(16 * self.size))
        for area in (self.avail, self.used):
            self.memory.write(area, bytes(4))

    def add(self, chain: Sequence[tuple[int | bytes, int, int]]) -> int:
        """Write a chain into the next descriptors: its id.  The first one is not available yet."""
        if len(chain) > self.room:
            raise IndexError(f"{self.room} descriptors are free, not {len(chain)}")
        owned: list[tuple[int, int]] = []
        number = self.spare.pop(0)
        for n, (buffer, length, flags) in enumerate(chain):
            more = DESC_NEXT if n + 1 < len(chain) else 0
            state = AVAIL if self.wrap else USED
            at = self.desc + 16 * self.next
            data = DESC.pack(
                self._place(buffer, length, owned), length, number, flags | more | state
            )
            if n == 0:
                self.first_flags[number] = at + 14, flags | more | state
                self.memory.write(at, data[:14])
            else:
                self.memory.write(at, data)
            self.next += 1
            if self.next == self.size:
                self.next, self.wrap = 0, not self.wrap
        self.room -= len(chain)
        self.chains[number] = len(chain), owned
        return number

    def add_indirect(self, chain: Sequence[tuple[int | bytes, int, int]]) -> int:
        """Write a chain into an indirect table, where flags but WRITE mean nothing."""
        owned: list[tuple[int, int]] = []
        table = b"".join(
            DESC.pack(self._place(buffer, length, owned), length, 0xFFFF, flags | DESC_NEXT)
            for buffer, length, flags in chain
        )
        number = self.add([(table, len(table), 4)])
        self.chains[number][1].extend(owned)
        return number

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            at, flags = self.first_flags.pop(number)
            self._put_u16(at, flags)
            self.fresh += self.chains[number][0]

    @property
    def device_wish(self) -> tuple[int, int]:
        """When the device wants to be kicked: flags, and a position."""
        return self._u16(self.used + 2), self._u16(self.used)

    def notify(self) -> bool:
        flags, where = self.device_wish
        wanted = flags == ENABLE
        if flags == ONE:
            event = where & (WRAP - 1)
            if bool(where & WRAP) != self.wrap:
                event -= self.size
            wanted = (self.next - event - 1) & 0xFFFF < self.fresh
        self.fresh = 0
        if wanted:
            self.kick()
        return wanted

    def want_call(self) -> None:
        if self.event_idx:
            self._put_u16(self.avail, self.seen | (WRAP if self.seen_wrap else 0))
        self._put_u16(self.avail + 2, ONE if self.event_idx else ENABLE)

    def take_used(self) -> list[tuple[int, int]]:
        taken = []
        while True:
            entry = self.memory.read(self.desc + 16 * self.seen, 16)
            _, written, number, flags = DESC.unpack(entry)
            if not bool(flags & AVAIL) == bool(flags & USED) == self.seen_wrap:
                return taken
            if number not in self.chains:
                raise AssertionError(f"buffer id {number:#x} was given back and is not out")
            taken.append((number, written))
            count, owned = self.chains.pop(number)
            self.spare.append(number)
            self.room += count
            for gpa, size in owned:
                self.memory.free(gpa, size)
            self.seen += count
            if self.seen >= self.size:
                self.seen, self.seen_wrap = self.seen - self.size, not self.seen_wrap
