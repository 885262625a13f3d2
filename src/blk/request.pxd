# SPDX-License-Identifier: Apache-2.0
"""Requests in flight, out of a fixed table for each vring: nothing is allocated on the way."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.budgets cimport DIRECTIONS, Places
from blk.counters cimport BlkCounters
from blk.layouts cimport BlkRange, RANGE_F_UNMAP, SECTOR_SHIFT
from blk.limits cimport MAX_RANGES
from blk.operation cimport Operation
from engine.engine cimport Io, IoQueue
from sys.uring cimport iovec
from virtio.guestmem cimport MemoryView, Region
from virtio.virtq cimport Chain
from worker.state cimport Worker, keep, let_go
from worker.vring cimport Vring


cdef enum:
    FEW_IOVECS = 4              # kept inside the request; most have fewer


cdef struct Request


cdef struct Request:
    Io io                       # what the engine is asked for; has to be the first
    MemoryView *pinned          # NULL while it is at rest: addresses are the guest's then
    uint8_t *status_byte
    Vring *vring
    iovec *data                 # `data_count` of them, all that the guest gave
    BlkRange *range             # DISCARD, WRITE_ZEROES: the next one
    uint32_t ranges_left
    uint32_t data_count
    uint32_t type               # virtio-blk's
    bint durable                # is answered once the disk has it
    uint64_t held_since         # by `now`, of one that the error policy has held; else 0
    bint is_final               # it is answered, whatever becomes of it: not held again
    uint32_t free_in            # the round of `is_used` in which it was found to be free
    uint64_t seen_at            # nanoseconds: since when the worker knew of it ...
    uint64_t begun_at           # ... it was fetched, 0 while it is free ...
    uint64_t started_at         # ... and limits let it go on; 0 while they do not
    uint64_t asked              # bytes of data, or of the ranges that were begun
    Request *older              # of those in flight
    Request *newer
    Chain chain
    iovec few[FEW_IOVECS]


cdef struct InFlight:           # those of one worker, by when they were fetched
    Request *oldest
    Request *newest


cdef struct ThrottleQueue:
    # Requests of one direction that wait for a rate, in the order in which they came.
    IoQueue waiting
    Places places               # of the first
    uint64_t start              # nanoseconds: when that may begin
    Places owed                 # the last ones of those that were begun before their time


cdef struct BlkVring:
    # The device's part of a vring, all of it the worker's; the control thread reads the counters.
    Request *requests           # one a descriptor
    uint32_t *free              # stack of the free requests' numbers
    uint32_t free_count
    iovec *iovecs               # `iov_room` for each request that needs more than a few
    BlkRange *ranges            # MAX_RANGES for each request
    uint32_t iov_room
    uint32_t round              # of `is_used`
    uint32_t size               # requests that its vring can have
    uint32_t index              # the device's number of the vring
    InFlight *line              # the worker's
    uint64_t left_at            # when more was left in the vring than its turn allowed, or 0
    ThrottleQueue throttled[DIRECTIONS]
    BlkCounters counters


cdef struct Run:                # equal requests that were answered at once
    Vring *vring
    uint32_t type
    uint64_t bytes              # of each
    uint64_t count


cdef inline BlkVring *blk_vring(const Vring *r) noexcept nogil:
    return <BlkVring *>r.part


cdef inline void free_requests(Vring *r) noexcept nogil:
    """Have every request of a vring free, and a chain wanted for each."""
    cdef BlkVring *b = blk_vring(r)
    cdef uint32_t i
    r.wanted = b.free_count = b.size = r.vq.size
    b.index = r.index
    for i in range(b.free_count):
        b.free[i] = b.free_count - 1 - i


cdef inline BlkRange *next_ranges(const Vring *r) noexcept nogil:
    """Room for the segments of the request that `take_request` will give next."""
    cdef const BlkVring *b = blk_vring(r)
    return b.ranges + <size_t>b.free[b.free_count - 1] * MAX_RANGES


cdef inline void line_up(InFlight *line, Request *q) noexcept nogil:
    """Put a request that was fetched behind all others in flight."""
    q.older, q.newer = line.newest, NULL
    if line.newest == NULL:
        line.oldest = q
    else:
        line.newest.newer = q
    line.newest = q


cdef inline void leave_line(InFlight *line, Request *q) noexcept nogil:
    """Have a request no more among those in flight."""
    if q.older == NULL:
        line.oldest = q.newer
    else:
        q.older.newer = q.newer
    if q.newer == NULL:
        line.newest = q.older
    else:
        q.newer.older = q.older
    q.begun_at = 0


cdef inline Request *take_request(
    Worker *w, Vring *r, const Operation *op, const Chain *chain
) noexcept nogil:
    """Fill a free request from a parsed operation and keep the memory it points to."""
    cdef BlkVring *b = blk_vring(r)
    cdef uint32_t number, i
    cdef Request *q
    r.wanted -= 1
    b.free_count -= 1
    number = b.free[b.free_count]
    q = b.requests + number
    q.pinned = keep(w, r)
    q.vring = r
    q.chain = chain[0]
    q.type = op.type
    q.status_byte = op.status_byte
    q.range = b.ranges + <size_t>number * MAX_RANGES
    q.ranges_left = op.ranges
    q.held_since = q.is_final = 0
    q.durable = op.io.durable
    q.data = &q.few[0]
    if op.io.data_count > FEW_IOVECS:
        q.data = b.iovecs + <size_t>number * b.iov_room
    q.data_count = op.io.data_count
    for i in range(op.io.data_count):
        q.data[i].iov_base = op.io.data[i].base
        q.data[i].iov_len = op.io.data[i].len
    q.io.kind, q.io.durable = op.io.kind, op.io.durable
    q.io.offset = op.io.offset
    q.io.left = q.io.length = op.io.length
    q.io.iov, q.io.iov_count = q.data, q.data_count
    q.asked = op.io.length
    q.seen_at, q.begun_at, q.started_at = w.seen_at, w.now, w.now
    line_up(b.line, q)
    return q


cdef inline void skip_empty_ranges(Request *q) noexcept nogil:
    """Have the next range be one that is not empty, or none."""
    while q.ranges_left and q.range.sectors == 0:
        q.range += 1
        q.ranges_left -= 1


cdef inline bint take_range(Request *q) noexcept nogil:
    """Have the engine asked for the next range that is not empty: whether there is one.

    The last one is durable with all before it.
    """
    skip_empty_ranges(q)
    if q.ranges_left == 0:
        return False
    q.io.offset = q.range.sector << SECTOR_SHIFT
    q.io.left = q.io.length = <uint64_t>q.range.sectors << SECTOR_SHIFT
    q.asked += q.io.length
    q.io.may_unmap = (q.range.flags & RANGE_F_UNMAP) != 0
    q.range += 1
    q.ranges_left -= 1
    skip_empty_ranges(q)
    q.io.durable = q.durable and q.ranges_left == 0
    return True


cdef inline void free_request(Request *q) noexcept nogil:
    """Make a request free again that keeps no memory."""
    cdef BlkVring *b = blk_vring(q.vring)
    b.free[b.free_count] = <uint32_t>(q - b.requests)
    b.free_count += 1
    leave_line(b.line, q)
    q.vring.wanted += 1


cdef inline void give_request_back(Worker *w, Request *q) noexcept nogil:
    """Make an answered request free again and let its memory go."""
    let_go(w, q.vring, q.pinned)
    free_request(q)


cdef inline bint is_within(
    const void *at, size_t length, const Region *ranges, uint32_t count
) noexcept nogil:
    """Whether some of `length` bytes are in one of the ranges, as mapped here."""
    cdef uint32_t i
    for i in range(count):
        if <const uint8_t *>at < ranges[i].base + ranges[i].size and (
            ranges[i].base < <const uint8_t *>at + length
        ):
            return True
    return False


cdef inline bint touches(const Request *q, const Region *ranges, uint32_t count) noexcept nogil:
    """Whether a request in flight has a buffer in one of the ranges."""
    cdef uint32_t i
    if q.pinned == NULL:
        return False            # it is at rest
    if is_within(q.status_byte, 1, ranges, count):
        return True
    for i in range(q.data_count):
        if is_within(q.data[i].iov_base, q.data[i].iov_len, ranges, count):
            return True
    return False


cdef inline bint is_used(const Vring *r, const Region *ranges, uint32_t count) noexcept nogil:
    """Whether a request of a vring that is in flight has a buffer in one of the ranges."""
    cdef BlkVring *b = blk_vring(r)
    cdef uint32_t i
    if r.in_flight == 0:
        return False
    b.round += 1                # the free ones are known by it: a request does not note its end
    for i in range(b.free_count):
        b.requests[b.free[i]].free_in = b.round
    for i in range(r.vq.size):
        if b.requests[i].free_in != b.round and touches(&b.requests[i], ranges, count):
            return True
    return False
