# SPDX-License-Identifier: Apache-2.0
"""Live rings and their requests in flight: fixed tables, nothing allocated on the way.

Everything here belongs to the ring's worker; the counters are read by the control thread.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from atomics cimport load_relaxed_u64, store_relaxed_u64
from dirtylog cimport RingLog
from eventfds cimport Signal
from guestmem cimport MemoryView
from inflight cimport Inflight
from layouts cimport (
    BLK_S_OK, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES,
    BlkRange,
)
from uring cimport iovec
from virtio_blk cimport BlkLimits, MAX_RANGES, Operation, OperationKind
from virtq cimport Chain, UsedChain, Virtq


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


cdef struct Counters:
    uint64_t reads              # requests answered, by type, whatever their status
    uint64_t writes
    uint64_t flushes
    uint64_t discards
    uint64_t write_zeroes
    uint64_t get_ids
    uint64_t others
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t errors             # answered with a status other than OK
    uint64_t kicks
    uint64_t calls


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


cdef struct Vring:
    Virtq vq
    RingLog log                 # of its own areas
    Inflight inflight
    Request *requests           # one a descriptor
    uint32_t *free              # stack of the free requests' numbers
    iovec *iovecs               # `iov_room` for each request that needs more than a few
    BlkRange *ranges            # MAX_RANGES for each request
    UsedChain *used             # answered, and not shown to the driver yet
    uint32_t used_count
    uint32_t iov_room
    uint32_t free_count
    uint32_t in_flight
    uint32_t number             # the worker's own
    int kick                    # eventfds; -1 where there is none
    int next_kick               # takes its place once the old poll has ended
    int error
    uint64_t stop_ticket        # CMD_STOP to be answered, or 0
    uint64_t kick_ticket        # CMD_SET_KICK to be answered, or 0
    uint32_t base               # as the ring was started
    bint taken_over             # ... from who served it before, and knew where it was
    bint unrecovered            # it was not looked at yet
    bint started
    bint enabled
    bint broken                 # by the guest; serves again after stop and start
    bint lost                   # its memory was taken away; serves again once it is back
    bint wants_look             # the driver may have made more available
    bint kicks_wanted           # the driver has been told to kick
    bint kick_armed             # a poll is in the kernel
    bint kick_cancelled
    Counters counters
    Signal call                 # to the driver


cdef inline void bump(uint64_t *counter, uint64_t by) noexcept nogil:
    """Add to a counter of which this thread is the only writer."""
    store_relaxed_u64(counter, load_relaxed_u64(counter) + by)


cdef inline void count_answer(
    Counters *c, uint32_t type, uint64_t bytes, uint8_t status
) noexcept nogil:
    """Account one answered request of virtio-blk's `type` that moved `bytes` of data."""
    if type == BLK_T_IN:
        bump(&c.reads, 1)
        bump(&c.bytes_read, bytes)
    elif type == BLK_T_OUT:
        bump(&c.writes, 1)
        bump(&c.bytes_written, bytes)
    elif type == BLK_T_FLUSH:
        bump(&c.flushes, 1)
    elif type == BLK_T_DISCARD:
        bump(&c.discards, 1)
    elif type == BLK_T_WRITE_ZEROES:
        bump(&c.write_zeroes, 1)
    elif type == BLK_T_GET_ID:
        bump(&c.get_ids, 1)
    else:
        bump(&c.others, 1)
    if status != BLK_S_OK:
        bump(&c.errors, 1)


cdef inline void give_back(
    Vring *r, const Chain *chain, uint8_t *status_byte, uint8_t status, uint32_t written
) noexcept nogil:
    """Give a chain its status; the driver sees both when the ring is published."""
    cdef UsedChain *used = &r.used[r.used_count]
    status_byte[0] = status
    used.id, used.descriptors = chain.id, chain.descriptors
    used.written = written + 1  # the status
    used.entry = chain.entry
    r.used_count += 1


cdef inline void reset_requests(Vring *r) noexcept nogil:
    """Make every request of a ring free; none may be in flight."""
    cdef uint32_t i
    r.free_count = r.vq.size
    r.in_flight = r.used_count = 0
    for i in range(r.vq.size):
        r.free[i] = r.vq.size - 1 - i


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
    q = &r.requests[number]
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
    r.free[r.free_count] = <uint32_t>(q - r.requests)
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
