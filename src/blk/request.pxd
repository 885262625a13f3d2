# SPDX-License-Identifier: Apache-2.0
"""Requests in flight, out of a fixed table for each vring: nothing is allocated on the way."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.counters cimport BlkCounters
from blk.layouts cimport BlkRange, RANGE_F_UNMAP, SECTOR_SHIFT
from blk.limits cimport MAX_RANGES
from blk.operation cimport Operation
from engine.engine cimport Io
from sys.uring cimport iovec
from virtio.guestmem cimport MemoryView, Region
from virtio.virtq cimport Chain
from worker.state cimport Worker, hold, let_go
from worker.vring cimport Vring


cdef enum:
    FEW_IOVECS = 4              # kept inside the request; most have fewer


cdef struct Request:
    Io io                       # what the engine is asked for; has to be the first
    MemoryView *pinned
    uint8_t *status_byte
    Vring *vring
    iovec *data                 # `data_count` of them, all that the guest gave
    BlkRange *range             # DISCARD, WRITE_ZEROES: the next one
    uint32_t ranges_left
    uint32_t data_count
    uint32_t type               # virtio-blk's
    bint durable                # is answered once the disk has it
    uint32_t free_in            # the round of `is_used` in which it was found to be free
    Chain chain
    iovec few[FEW_IOVECS]


cdef struct BlkVring:
    # The device's part of a vring, all of it the worker's; the control thread reads the counters.
    Request *requests           # one a descriptor
    uint32_t *free              # stack of the free requests' numbers
    uint32_t free_count
    iovec *iovecs               # `iov_room` for each request that needs more than a few
    BlkRange *ranges            # MAX_RANGES for each request
    uint32_t iov_room
    uint32_t round              # of `is_used`
    BlkCounters counters


cdef inline BlkVring *blk_vring(const Vring *r) noexcept nogil:
    return <BlkVring *>r.part


cdef inline void free_requests(Vring *r) noexcept nogil:
    """Have every request of a vring free, and a chain wanted for each."""
    cdef BlkVring *b = blk_vring(r)
    cdef uint32_t i
    r.wanted = b.free_count = r.vq.size
    for i in range(b.free_count):
        b.free[i] = b.free_count - 1 - i


cdef inline BlkRange *next_ranges(const Vring *r) noexcept nogil:
    """Room for the segments of the request that `take_request` will give next."""
    cdef const BlkVring *b = blk_vring(r)
    return b.ranges + <size_t>b.free[b.free_count - 1] * MAX_RANGES


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
    q.pinned = hold(w, r)
    q.vring = r
    q.chain = chain[0]
    q.type = op.type
    q.status_byte = op.status_byte
    q.range = b.ranges + <size_t>number * MAX_RANGES
    q.ranges_left = op.ranges
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
    q.io.may_unmap = (q.range.flags & RANGE_F_UNMAP) != 0
    q.range += 1
    q.ranges_left -= 1
    skip_empty_ranges(q)
    q.io.durable = q.durable and q.ranges_left == 0
    return True


cdef inline void give_request_back(Worker *w, Request *q) noexcept nogil:
    """Make an answered request free again and let its memory go."""
    cdef Vring *r = q.vring
    cdef BlkVring *b = blk_vring(r)
    b.free[b.free_count] = <uint32_t>(q - b.requests)
    b.free_count += 1
    r.wanted += 1
    let_go(w, r, q.pinned)


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
