# SPDX-License-Identifier: Apache-2.0
"""Live vrings: where each is, who is to be notified, and what was given back and not shown yet.

Everything here belongs to the vring's worker; the counters are read by the control thread.
"""

from libc.stdint cimport uint32_t, uint64_t

from inflight.region cimport Inflight
from sys.atomics cimport load_relaxed_u64, store_relaxed_u64
from sys.eventfds cimport Signal
from virtio.dirtylog cimport RingLog
from virtio.virtq cimport Chain, UsedChain, Virtq


cdef struct Vring:
    Virtq vq
    RingLog log                 # of its own areas
    Inflight inflight
    void *part                  # the device's part of it
    uint32_t wanted             # chains that the device can use now: see `Device`
    uint32_t in_flight          # chains that the device has taken and not given back
    UsedChain *used             # given back, and not shown to the driver yet
    uint32_t used_count
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
    uint64_t kicks              # counted
    uint64_t calls
    Signal call                 # to the driver


cdef inline void bump(uint64_t *counter, uint64_t by) noexcept nogil:
    """Add to a counter of which this thread is the only writer."""
    store_relaxed_u64(counter, load_relaxed_u64(counter) + by)


cdef inline void give_back(Vring *r, const Chain *chain, uint32_t written) noexcept nogil:
    """Give a chain back, `written` bytes of its buffers written; the driver sees it when the ring
    is published.
    """
    cdef UsedChain *used = &r.used[r.used_count]
    used.id, used.descriptors = chain.id, chain.descriptors
    used.written = written
    used.entry = chain.entry
    r.used_count += 1
