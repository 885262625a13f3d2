# SPDX-License-Identifier: Apache-2.0
"""What is sent: requests are chosen, aimed and made available, and the back end is kicked."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from loadgen.blocks cimport Block, fill_block, place_of
from loadgen.clock cimport next_random, scale, ticks
from loadgen.load cimport Load
from loadgen.queue cimport NO_KICK, Queue, offer_packed, offer_split, publish_packed, publish_split
from loadgen.slots cimport Kind, READ, Slot, WRITE, aim, turn_round

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t bytes)


cdef inline bint start_pass(Load *g) noexcept nogil:
    """Begin the next pass over all blocks once the last one is done: whether it is."""
    cdef uint32_t i, k
    if g.in_flight:
        return False            # no block may be in flight twice
    if g.passes == g.work.most_passes:
        g.sending = False
        return False
    g.passes += 1
    g.next_block = 0
    g.work.generation = g.passes
    for i in range(g.count):
        for k in range(g.queues[i].depth):
            g.queues[i].slots[k].kept = 0
    return True


cdef inline bint choose_once(Load *g, Slot *s, Kind kind) noexcept nogil:
    """Choose a request of a checked stretch: whether one can be sent now.

    Each block comes once a pass; of mixed requests a read looks at the slot's last write.
    """
    cdef uint64_t at
    if g.next_block == g.work.blocks and not start_pass(g):
        return False
    if kind == READ and g.work.mixed:
        if s.kept:
            s.sequence = s.kept - 1
        else:
            kind = WRITE
    if kind != READ or not g.work.mixed:
        s.sequence = g.next_block
        g.next_block += 1
        s.kept = g.next_block
    at = s.sequence
    if g.work.random:
        at = place_of(at, g.work.blocks, g.work.seed)
    s.offset = at * g.work.block_bytes
    if s.kind != kind:
        turn_round(s, &g.shape, kind)
    return True


cdef inline bint choose(Load *g, Slot *s) noexcept nogil:
    """Choose what a free slot asks for next: whether there is anything."""
    cdef Kind kind = g.work.kind
    if g.work.mixed:
        kind = READ if next_random(&g.random) >> 32 < g.work.read_share else WRITE
    if g.work.once:
        return choose_once(g, s, kind)
    if g.work.random:
        s.offset = scale(next_random(&g.random), g.work.blocks) * g.work.block_bytes
    else:
        s.offset = g.next_block * g.work.block_bytes
        g.next_block += 1
        if g.next_block == g.work.blocks:
            g.next_block = 0
    if s.kind != kind:
        turn_round(s, &g.shape, kind)
    return True


cdef inline void fill_data(Load *g, Slot *s) noexcept nogil:
    """Give a write the block that describes itself."""
    cdef Block b
    b.offset, b.seed = s.offset, g.work.seed
    b.generation, b.sequence = g.work.generation, s.sequence
    fill_block(<uint64_t *>s.data, g.work.block_bytes // sizeof(uint64_t), &b)


cdef inline uint64_t allowance(Load *g) noexcept nogil:
    """How many more requests may be sent now."""
    cdef uint64_t most = ~<uint64_t>0
    if g.work.limit:
        most = g.work.limit
    if g.work.per_tick > 0:
        g.now = ticks(&g.clock)
        most = min(most, 1 + <uint64_t>(<double>(g.now - g.began) * g.work.per_tick))
    return most - g.sent if most > g.sent else 0


cdef inline int send(Load *g, Queue *q) noexcept nogil:
    """Send as many requests as slots are free and the work allows: 0, or NO_KICK."""
    cdef uint64_t one = 1, room = min(<uint64_t>q.free_count, allowance(g))
    cdef uint64_t now = ticks(&g.clock)
    cdef uint32_t n = 0
    cdef uint16_t number
    cdef Slot *s
    while n < room:
        number = q.free[q.free_count - 1]
        s = &q.slots[number]
        if not choose(g, s):
            break
        q.free_count -= 1
        if g.work.fill and s.kind == WRITE:
            fill_data(g, s)
        aim(s)
        s.sent = now
        if q.packed:
            offer_packed(q, number)
        else:
            offer_split(q, number)
        n += 1
    if n == 0:
        return 0
    g.sent += n
    g.in_flight += n
    if publish_packed(q) if q.packed else publish_split(q):
        g.kicks += 1
        if write(q.kick, &one, sizeof(one)) != sizeof(one):
            return NO_KICK
    return 0
