# SPDX-License-Identifier: Apache-2.0
"""What comes back: requests are taken from the rings, timed and judged."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from blk.layouts cimport BLK_S_OK
from loadgen.blocks cimport Block, INTACT, Judgement, STALE, check_block
from loadgen.clock cimport ns_of, ticks
from loadgen.histogram cimport record
from loadgen.load cimport BAD_LENGTH, BAD_STATUS, Finding, Load, MAX_FINDINGS, Passing
from loadgen.queue cimport Queue, WILD_ID, stay_quiet, take_packed, take_split, used_now
from loadgen.slots cimport READ, Slot, due_length
from sys.atomics cimport copy_once


cdef inline void note(
    Load *g, const Slot *s, int what, uint32_t at, uint64_t found, uint64_t expected
) noexcept nogil:
    """Keep what was wrong, as long as there is room."""
    cdef Finding *f
    if g.finding_count == MAX_FINDINGS:
        return
    f = &g.findings[g.finding_count]
    f.what, f.kind, f.offset, f.at = what, s.kind, s.offset, at
    f.found, f.expected = found, expected
    g.finding_count += 1


cdef inline bint note_passing(Load *g, const Block *b) noexcept nogil:
    """Keep account of a block's generation: whether it can be of the last or last but one."""
    cdef Passing *p = &g.passings[b.generation & 1]
    if p.generation == 0:
        p.generation, p.first, p.last, p.first_offset = b.generation, b.sequence, 0, b.offset
    elif p.generation != b.generation:
        return False
    if b.sequence < p.first:
        p.first, p.first_offset = b.sequence, b.offset
    p.last = max(p.last, b.sequence)
    return True


cdef inline void check_data(Load *g, const Slot *s) noexcept nogil:
    """Judge the block that a read brought."""
    cdef Block b
    cdef Judgement j
    b.offset, b.seed, b.sequence = s.offset, g.work.seed, s.sequence
    b.generation = g.work.generation - (1 if s.sequence >= g.work.turn else 0)
    j = check_block(
        <const uint64_t *>s.data, g.work.block_bytes // sizeof(uint64_t), &b,
        g.work.any_generation,
    )
    if j.what == INTACT and g.work.any_generation and not note_passing(g, &b):
        j.what, j.found = STALE, b.generation
        j.expected = g.passings[b.generation & 1].generation
    if j.what == INTACT:
        g.intact += 1
    else:
        g.wrong_blocks += 1
        note(g, s, j.what, j.at, j.found, j.expected)


cdef inline int finish(
    Load *g, Queue *q, uint32_t number, uint32_t length, bint has_length
) noexcept nogil:
    """Take one answered request: 0, or WILD_ID."""
    cdef Slot *s
    cdef uint8_t status
    if number >= q.depth or not q.slots[number].busy:
        return WILD_ID
    s = &q.slots[number]
    s.busy = False
    q.free[q.free_count] = <uint16_t>number
    q.free_count += 1
    record(&g.histograms[s.kind], ns_of(&g.clock, g.now - s.sent))
    copy_once(&status, &s.frame.status, 1)
    if status != BLK_S_OK:
        g.errors += 1
        note(g, s, BAD_STATUS, 0, status, BLK_S_OK)
    elif has_length and length != due_length(s, &g.shape):
        g.errors += 1
        note(g, s, BAD_LENGTH, 0, length, due_length(s, &g.shape))
    elif g.work.check and s.kind == READ:
        check_data(g, s)
    return 0


cdef inline int reap_split(Load *g, Queue *q) noexcept nogil:
    """Take what a split ring has for us now: how many requests, or what is wrong."""
    cdef uint32_t number, length
    cdef int _, n = used_now(q)
    if n <= 0:
        return n
    g.now = ticks(&g.clock)
    for _ in range(n):
        take_split(q, &number, &length)
        if finish(g, q, number, length, True) < 0:
            return WILD_ID
    stay_quiet(q)
    return n


cdef inline int reap_packed(Load *g, Queue *q) noexcept nogil:
    """Take what a packed ring has for us now: how many requests, or what is wrong."""
    cdef uint32_t number, length
    cdef bint has_length
    cdef int n = 0
    while q.free_count < q.depth and take_packed(q, &number, &length, &has_length):
        if n == 0:
            g.now = ticks(&g.clock)
        if finish(g, q, number, length, has_length) < 0:
            return WILD_ID
        n += 1
    return n
