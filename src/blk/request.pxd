# SPDX-License-Identifier: Apache-2.0
"""A request in flight, out of its ring's fixed table: nothing is allocated on the way."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from blk.limits cimport BlkLimits, MAX_RANGES
from blk.operation cimport Operation, OperationKind
from sys.uring cimport iovec
from virtio.guestmem cimport MemoryView
from virtio.layouts cimport BlkRange
from virtio.virtq cimport Chain
from worker.vring cimport Vring


cdef enum:
    FEW_IOVECS = 4              # kept inside the request; most have fewer
    CACHE_LINE = 64


cdef enum Step:
    STEP_TRANSFER               # data between the file and the guest
    STEP_RANGE                  # fallocate, for DISCARD and WRITE_ZEROES
    STEP_ZEROES                 # zeroes written where fallocate cannot do it
    STEP_SYNC                   # all that came before made durable
    STEP_DELAY                  # nothing yet: a faulty image has it wait
    STEP_PAUSE                  # nothing for a moment: the kernel wanted to be asked again


cdef struct Request:
    MemoryView *pinned
    uint8_t *status_byte
    iovec *iov                  # what is left to transfer
    uint8_t *bounce             # an aligned buffer in its place, or NULL
    BlkRange *range             # DISCARD, WRITE_ZEROES: the one being done
    Request *next_waiting       # for a bounce buffer, or for a sync
    Vring *vring
    uint64_t offset             # bytes; of what is left
    uint64_t left               # bytes
    uint64_t length             # bytes of data asked for
    uint32_t iov_count
    uint32_t ranges_left        # the present one included
    uint32_t written            # data bytes given to the guest
    uint32_t type               # virtio-blk's
    Chain chain
    OperationKind kind
    Step step                   # what the kernel is doing
    Step paused_step            # ... and will again after STEP_PAUSE
    uint32_t repeats            # of the present step, since it last did anything
    bint durable                # is answered once the disk has it
    bint unfit                  # for direct I/O: goes through a bounce buffer
    bint shorten                # a faulty image has the kernel asked for a part first
    bint fixed                  # its last entry named a registered chunk
    bint plain                  # its entries are to name none
    bint unmarked               # it has written where the dirty log has no bit
    iovec few[FEW_IOVECS]


cdef inline Request *requests_of(const Vring *r) noexcept nogil:
    return <Request *>r.requests


cdef inline BlkRange *next_ranges(const Vring *r) noexcept nogil:
    """Room for the segments of the request that `take_request` will give next."""
    return r.ranges + <size_t>r.free[r.free_count - 1] * MAX_RANGES


cdef inline Request *take_request(
    Vring *r, MemoryView *view, const Operation *op, const Chain *chain, bint unfit
) noexcept nogil:
    """Fill a free request from a parsed operation and pin the memory it points to."""
    cdef uint32_t number, i
    cdef Request *q
    r.free_count -= 1
    r.in_flight += 1
    number = r.free[r.free_count]
    q = requests_of(r) + number
    q.pinned = view
    view.pins += 1
    q.vring = r
    q.chain = chain[0]
    q.unfit = unfit
    q.kind = op.kind
    q.type = op.type
    q.status_byte = op.status_byte
    q.offset = op.offset
    q.left = q.length = op.length
    q.written = op.written
    q.bounce = NULL
    q.shorten = q.unmarked = q.fixed = q.plain = False
    q.range = r.ranges + <size_t>number * MAX_RANGES
    q.ranges_left = <uint32_t>op.length
    q.iov = &q.few[0]
    if op.data_count > FEW_IOVECS:
        q.iov = r.iovecs + <size_t>number * r.iov_room
    q.iov_count = op.data_count
    for i in range(op.data_count):
        q.iov[i].iov_base = op.data[i].base
        q.iov[i].iov_len = op.data[i].len
    return q


cdef inline void give_request_back(Request *q) noexcept nogil:
    """Make an answered request free again and let its memory go."""
    cdef Vring *r = q.vring
    r.free[r.free_count] = <uint32_t>(q - requests_of(r))
    r.free_count += 1
    r.in_flight -= 1
    q.pinned.pins -= 1


cdef inline bint unfit_for_direct(const Operation *op, const BlkLimits *limits) noexcept nogil:
    """Whether some buffer is not fit for direct I/O as it stands.

    Up to Linux 6.17 each buffer has to be whole blocks, not just all of them together.
    """
    cdef size_t addresses = 0, lengths = 0
    cdef uint32_t i
    if limits.memory_mask == 0:
        return False            # not direct at all
    for i in range(op.data_count):
        addresses |= <size_t>op.data[i].base
        lengths |= op.data[i].len
    return (addresses & limits.memory_mask) != 0 or (lengths & limits.block_mask) != 0


cdef inline void advance(Request *q, uint64_t n) noexcept nogil:
    """Step over `n` bytes that were transferred."""
    cdef size_t piece
    q.offset += n
    q.left -= n
    while n:
        piece = min(n, q.iov.iov_len)
        q.iov.iov_base = <uint8_t *>q.iov.iov_base + piece
        q.iov.iov_len -= piece
        n -= piece
        if q.iov.iov_len == 0:
            q.iov += 1
            q.iov_count -= 1


cdef inline void copy_bounced(Request *q, uint64_t n, bint to_guest) noexcept nogil:
    """Copy the next `n` bytes between the bounce buffer and the guest's buffers."""
    cdef uint64_t done = 0, piece
    cdef uint32_t i = 0
    while done < n:
        piece = min(n - done, <uint64_t>q.iov[i].iov_len)
        if to_guest:
            memcpy(q.iov[i].iov_base, q.bounce + done, piece)
        else:
            memcpy(q.bounce + done, q.iov[i].iov_base, piece)
        done += piece
        i += 1
