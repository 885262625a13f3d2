# SPDX-License-Identifier: Apache-2.0
"""Live vrings: where each is, who is to be notified, and what was given back and not shown yet.

Everything here belongs to the vring's worker; the counters are read by the control thread.
"""

from libc.stdint cimport uint32_t, uint64_t

from inflight.region cimport Again, Inflight
from sys.atomics cimport load_relaxed_u64, store_relaxed_u64
from sys.eventfds cimport Signal
from virtio.dirtylog cimport RingLog
from virtio.iotlb cimport Missing
from virtio.virtq cimport Chain, UsedChain, Virtq
from worker.states cimport STOPPED, VringEvent, VringState, state_after


cdef struct Kick:
    # By which the driver says that it has made chains available.
    int fd                      # eventfd, or -1
    int next_fd                 # takes its place once the old poll has ended
    uint64_t ticket             # CMD_SET_KICK to be answered then, or 0
    bint wanted                 # the driver has been asked to kick
    bint is_watched             # a poll is in the kernel
    bint is_cancelled           # ... and is to end
    uint64_t count


cdef struct Call:
    # By which the driver is called.
    Signal signal
    uint64_t count


cdef struct Parked:
    # A chain that was fetched and recorded, and is walked again when what it lacks has come.
    Missing missing
    Again chain


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
    uint32_t index              # the device's
    VringState state
    bint is_placed              # in the present memory; else its place is in an older map
    bint enabled
    bint is_barred              # the device has nothing fetched from it for now
    bint wants_look             # the driver may have made more available
    bint has_earlier            # chains that were fetched earlier are to begin before any other
    bint unrecovered            # it was not looked at since it started
    Parked *parked              # `parked_count` of them, in the order in which they came
    uint32_t parked_count
    Missing awaited             # while it is WAITING in its place: by its next chain
    bint has_lost_patience      # its next chain is parked if it still lacks something
    bint taken_over             # `base` is from who served it before, and knew where it was
    uint32_t base               # as it was started
    uint64_t stop_ticket        # CMD_STOP to be answered, while it is STOPPING
    Kick kick
    Call call
    int error                   # eventfd, or -1


cdef inline void bump(uint64_t *counter, uint64_t by) noexcept nogil:
    """Add to a counter of which this thread is the only writer."""
    store_relaxed_u64(counter, load_relaxed_u64(counter) + by)


cdef inline bint change(Vring *r, VringEvent event) noexcept nogil:
    """Let an event change the state of a vring: whether it does."""
    cdef VringState before = r.state
    r.state = state_after(before, event)
    return r.state != before


cdef inline bint is_started(const Vring *r) noexcept nogil:
    """Whether the vring is the worker's, served or not."""
    return r.state != STOPPED


cdef inline void give_back(Vring *r, const Chain *chain, uint32_t written) noexcept nogil:
    """Give a chain back, `written` bytes of its buffers written; the driver sees it when the ring
    is published.
    """
    cdef UsedChain *used = &r.used[r.used_count]
    used.id, used.descriptors = chain.id, chain.descriptors
    used.written = written
    used.entry = chain.entry
    r.used_count += 1
