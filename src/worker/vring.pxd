# SPDX-License-Identifier: Apache-2.0
"""Live rings: where each is, who is to be notified, and the fixed tables behind it.

Everything here belongs to the ring's worker; the counters are read by the control thread.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from inflight.region cimport Inflight
from sys.atomics cimport load_relaxed_u64, store_relaxed_u64
from sys.eventfds cimport Signal
from sys.uring cimport iovec
from virtio.dirtylog cimport RingLog
from virtio.layouts cimport (
    BLK_S_OK, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES,
    BlkRange,
)
from virtio.virtq cimport Chain, UsedChain, Virtq


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


cdef struct Vring:
    Virtq vq
    RingLog log                 # of its own areas
    Inflight inflight
    void *requests              # of the device, one a descriptor
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
