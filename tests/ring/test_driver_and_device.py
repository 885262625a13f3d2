# SPDX-License-Identifier: Apache-2.0
"""A driver and a device on one ring, step by step in any order, and what each must see."""

import struct

import pytest
from blkd.probes import Guest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harness.packed_vring import PackedVring
from harness.vring import DESC_WRITE, GuestMemory, Vring

LONGEST = 6  # descriptors of a chain


class Talk(RuleBasedStateMachine):
    """What was offered comes in order, what was given back comes back, and nobody sleeps on it."""

    layout: type[Vring] | type[PackedVring]
    sizes: st.SearchStrategy[int]
    starts: st.SearchStrategy[int]  # in descriptors or indices, counted for ever

    def __init__(self):
        super().__init__()
        self.memory = GuestMemory([1 << 20])
        self.buffer = self.memory.alloc(64, 4096)

    def teardown(self):
        self.ring.close()
        self.memory.close()
        super().teardown()

    @initialize(data=st.data(), event_idx=st.booleans())
    def start(self, data, event_idx):
        packed = self.layout is PackedVring
        self.ring = self.layout(self.memory, data.draw(self.sizes), event_idx=event_idx)
        start = data.draw(self.starts)
        base = self.ring.position(start) * 0x10001 if packed else start & 0xFFFF
        self.ring.rewind(base)
        self.device = self.make_device()
        self.begin(base)
        self.room = self.ring.size
        self.hidden = []  # (id, descriptors, lengths of the segments), added and not published
        self.offered = []  # ... not fetched yet
        self.fetched = []  # (id, descriptors) not given back yet
        self.returned = []  # ids that the driver has not seen
        self.lengths = {}  # of the chains, by id
        self.sleeps = False  # the device has asked for a kick
        self.waits = False  # the driver has asked for a call

    def make_device(self):
        ring = self.ring
        return Guest(
            [(region.gpa, region.memory) for region in self.memory.regions],
            size=ring.size,
            desc=ring.desc,
            avail=ring.avail,
            used=ring.used,
            packed=self.layout is PackedVring,
            event_idx=ring.event_idx,
            longest_chain=LONGEST,
        )

    def begin(self, base):
        self.device.start(base)

    @rule(length=st.integers(1, LONGEST), indirect=st.booleans())
    @precondition(lambda self: self.room > 0)
    def add(self, length, indirect):
        taken = 1 if indirect else min(length, self.room)
        length = length if indirect else taken
        chain = [(self.buffer + n, 1 + n, DESC_WRITE if n else 0) for n in range(length)]
        ident = (self.ring.add_indirect if indirect else self.ring.add)(chain)
        self.room -= taken
        self.lengths[ident] = taken
        segments = [(address, size, bool(flags)) for address, size, flags in chain]
        self.hidden.append((ident, taken, segments))

    @rule()
    @precondition(lambda self: self.hidden)
    def publish(self):
        self.ring.publish(*(ident for ident, _, _ in self.hidden))
        self.offered += self.hidden
        self.hidden = []
        kicked = self.ring.notify()
        assert kicked or not self.sleeps, "a device that asked for a kick got none"
        self.sleeps = False

    @rule()
    def take(self):
        self.sleeps = False
        self.device.suppress()
        if self.offered:
            assert self.device.take() == self.offered[0]
            ident, taken, _ = self.offered.pop(0)
            self.fetched.append((ident, taken))
        else:
            assert self.device.take() is None

    @rule()
    def sleep(self):
        more = self.device.rearm()
        assert more is bool(self.offered)
        self.sleeps = not more

    @rule(data=st.data())
    @precondition(lambda self: self.fetched)
    def give_back(self, data):
        chains = data.draw(st.permutations(self.fetched))
        chains = chains[: data.draw(st.integers(1, len(chains)))]
        called = self.device.give_back(*chains)
        assert called or not self.waits, "a driver that waits was not called"
        self.waits = False
        for chain in chains:
            self.fetched.remove(chain)
            self.returned.append(chain[0])

    @rule()
    def collect(self):
        self.waits = False
        assert self.ring.take_used() == [(ident, 1) for ident in self.returned]
        self.room += sum(self.lengths.pop(ident) for ident in self.returned)
        self.returned = []

    @rule()
    @precondition(lambda self: not self.returned)
    def wait(self):
        assert self.ring.wait_used(timeout=0) == []  # asks for a call, as it always does first
        self.waits = True

    @rule()
    @precondition(lambda self: not (self.hidden or self.offered or self.fetched))
    def stop_and_start(self):
        if self.layout is PackedVring:
            base = self.device.base()
            assert base == self.ring.position(self.ring.added) * 0x10001
        else:
            base = self.ring.avail_idx
        self.begin(base)

    @invariant()
    def nothing_of_the_drivers_is_changed(self):
        assert self.memory.read(self.buffer, 64) == bytes(64)


class SplitTalk(Talk):
    layout = Vring
    sizes = st.sampled_from([1, 2, 4, 8])
    starts = st.one_of(st.just(0), st.integers(0xFFF0, 0xFFFF))


class PackedTalk(Talk):
    layout = PackedVring
    sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8])
    starts = st.integers(0, 30)


for machine in (SplitTalk, PackedTalk):
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)

TestSplit = SplitTalk.TestCase
TestPacked = PackedTalk.TestCase


@pytest.mark.parametrize("size", [3, 5, 1000])
def test_a_ring_that_is_no_power_of_two_goes_round_for_ever(size):
    memory = GuestMemory([1 << 20])
    ring = PackedVring(memory, size)
    buffer = memory.alloc(16)
    device = Guest(
        [(region.gpa, region.memory) for region in memory.regions],
        size=size,
        desc=ring.desc,
        avail=ring.avail,
        used=ring.used,
        packed=True,
    )
    device.start(0x80008000)
    for n in range(4 * size):
        memory.write(buffer, struct.pack("<I", n))
        ring.publish(ring.add([(buffer, 4, 0), (buffer, 4, DESC_WRITE)][: 1 + n % 2]))
        ident, length, _ = device.take()
        device.give_back((ident, length))
        assert ring.take_used() == [(ident, 1)]
    ring.close()
    memory.close()
