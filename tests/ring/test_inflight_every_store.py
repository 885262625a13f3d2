# SPDX-License-Identifier: Apache-2.0
"""A device dies at any instruction of its work: whatever it has stored by then, nothing is lost.

A child does the work an instruction at a time, while we look at the memory that it shares with
us: each state that a SIGKILL could leave behind is recovered from a copy.
"""

import ctypes
import mmap
import os
import signal

import pytest
from blkd.probes import Guest

from harness.packed_vring import PackedVring
from harness.vring import DESC_WRITE, GuestMemory, Vring

TRACEME, SINGLESTEP = 0, 9
START = 0x80008000
SIZE = 8

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Life:
    """A ring with a record in shared memory, and the device that works on it."""

    def __init__(self, layout):
        self.memory = GuestMemory([1 << 16])
        self.packed = layout is PackedVring
        self.ring = layout(self.memory, SIZE)
        self.region = mmap.mmap(-1, 4096)
        self.buffer = self.memory.alloc(64)
        self.base = START if self.packed else 0
        self.fetched = []  # (id, descriptors) in their order
        self.device = self.device_on(
            [(region.gpa, region.memory) for region in self.memory.regions], self.region
        )
        assert self.device.recover(self.base) == []

    def device_on(self, regions, record):
        device = Guest(
            regions,
            size=SIZE,
            desc=self.ring.desc,
            avail=self.ring.avail,
            used=self.ring.used,
            packed=self.packed,
        )
        device.record_in(record, SIZE)
        return device

    def offer(self, descriptors=1):
        chain = [(self.buffer + n, 1, DESC_WRITE) for n in range(descriptors)]
        self.ring.publish(self.ring.add(chain))

    def fetch(self, descriptors=1):
        self.offer(descriptors)
        self.fetched.append(self.device.take()[:2])

    def go_round(self, count):
        """Carry the ring some descriptors further, with nothing in flight in the end."""
        for _ in range(count):
            self.fetch()
            self.device.give_back(self.fetched.pop())
            self.ring.take_used()

    def state(self):
        """All that a death would leave behind."""
        (region,) = self.memory.regions
        return bytes(region.memory), bytes(self.region)

    def recovered(self, state):
        """What a device finds in flight in that state, and where it would go on.

        Whichever of that it gives back first, the driver must see that and nothing else.
        """
        seen = self.seen_by_driver(state)
        successor, guest, found = self.successor_of(state)
        assert self.seen_by_driver([guest]) == seen
        for n, chain in enumerate(found):
            other, its_guest, _ = self.successor_of(state)
            other.walk_again(n)
            other.give_back(chain)
            assert self.seen_by_driver([its_guest]) == [*seen, chain[0]]
        return found, successor.base()

    def successor_of(self, state):
        """A device that goes on with a copy of that state, the copy, and what it is to do again."""
        guest, record = map(bytearray, state)
        (region,) = self.memory.regions
        successor = self.device_on([(region.gpa, guest)], record)
        base = START
        if not self.packed:
            at = self.ring.used - region.gpa + 2
            base = int.from_bytes(guest[at : at + 2], "little")
        again = range(len(successor.recover(base)))
        return successor, guest, [successor.walk_again(n)[:2] for n in again]

    def seen_by_driver(self, state):
        """The ids that the driver would take from the used ring in that state."""
        (region,) = self.memory.regions
        live = bytes(region.memory)
        region.memory[:] = state[0]
        try:
            return self.peek()
        finally:
            region.memory[:] = live

    def peek(self):
        saved = {name: value for name, value in vars(self.ring).items() if name != "memory"}
        saved["chains"] = dict(self.ring.chains)
        if "spare" in saved:
            saved["spare"] = list(saved["spare"])
        ids = [ident for ident, _ in self.ring.take_used()]
        vars(self.ring).update(saved)
        return ids

    def close(self):
        self.ring.close()
        self.memory.close()


def states(life, work):
    """Every state of the shared memory while a child does some work, in their order."""
    child = os.fork()
    if child == 0:
        libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        yield from followed(life, child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def followed(life, child):
    _, status = os.waitpid(child, 0)
    assert os.WSTOPSIG(status) == signal.SIGSTOP
    last = life.state()
    yield last
    while True:
        assert libc.ptrace(SINGLESTEP, child, None, None) == 0, "not allowed to trace"
        _, status = os.waitpid(child, 0)
        assert os.WIFSTOPPED(status), "the child ended in the middle of its work"
        if (now := life.state()) != last:
            last = now
            yield now
        if os.WSTOPSIG(status) == signal.SIGSTOP:
            return


@pytest.fixture(params=[Vring, PackedVring], ids=["split", "packed"])
def life(request):
    life = Life(request.param)
    yield life
    life.close()


@pytest.mark.parametrize("before", [0, 5, 13], ids=["first round", "its end", "second round"])
def test_no_moment_of_giving_a_batch_back_loses_or_repeats_a_request(life, before):
    life.go_round(before)
    for descriptors in (1, 2, 1, 1, 2):
        life.fetch(descriptors)
    batch = [life.fetched[n] for n in (3, 1, 4)]
    outcomes = set()
    for count, state in enumerate(states(life, lambda: life.device.give_back(*batch))):
        seen = life.seen_by_driver(state)
        assert seen in ([], [ident for ident, _ in batch])
        left = [chain for chain in life.fetched if chain[0] not in seen]
        found, position = life.recovered(state)
        if life.packed and before == 0 and not seen and not found:
            assert position == START  # nothing was ever used: all of it is fetched anew
        else:
            assert found == left, f"after {count} stores"
        outcomes.add(len(left))
    assert outcomes == {5, 2}
    assert count > 10  # stores


@pytest.mark.parametrize("before", [0, 5, 13], ids=["first round", "its end", "second round"])
def test_no_moment_of_fetching_loses_or_repeats_a_request(life, before):
    life.go_round(before)
    life.fetch()
    life.fetch(2)
    life.device.give_back(life.fetched.pop(0))
    life.offer(3)
    _, undone = life.recovered(life.state())
    outcomes = set()
    for state in states(life, life.device.take):
        found, position = life.recovered(state)
        assert found[:1] == life.fetched
        assert (len(found) == 1) == (position == undone), "what is not found is fetched anew"
        outcomes.add(len(found))
    assert outcomes == {1, 2}


def test_the_successor_of_a_successor_loses_nothing_either(life):
    life.go_round(11)
    for _ in range(5):
        life.fetch()
    life.device.give_back(*life.fetched[1:4], steps=2)
    left = [life.fetched[0], life.fetched[4]]
    (region,) = life.memory.regions
    successor = life.device_on([(region.gpa, region.memory)], life.region)
    base = START if life.packed else life.ring.used_idx
    for state in states(life, lambda: successor.recover(base)):
        found, _ = life.recovered(state)
        assert found == left
