# SPDX-License-Identifier: Apache-2.0
"""Guests of one process that reach each other: how a worker hands a connection to another.

The one whose guest asks makes a pair of sockets, keeps one end and hands the other over; from then
on either worker serves its end as one of any host program.  Only that a guest receives no more goes
the same way as the socket had: the other end of a pair does not see it before it sends.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from sys.atomics cimport load_acquire_u32, store_release_u32
from vsock.fifo cimport CONNECTIONS
from worker.completions cimport Completion, Completions, push_completion, take_completions

cdef enum:
    MEMBERS = 64                # of a group


cdef struct Handover:
    Completion link             # has to be the first
    uint32_t is_out             # who asks sets it, who is asked clears it
    # Written by who asks while it is not out.
    int fd                      # the other worker's; -1: the guest receives no more
    uint16_t type
    uint32_t cid                # of who asks
    uint32_t port
    uint32_t to_port
    uint64_t pair               # number of the pair of sockets


cdef struct Member:
    uint32_t cid                # set before any worker runs
    Member *others              # all members, this one included
    uint32_t count
    uint32_t is_open            # its own worker: it takes what arrives
    Completions arrivals        # the others push
    Handover handovers[CONNECTIONS]     # its own worker: one a connection
    Handover shuts[CONNECTIONS]         # likewise, so that none holds up the next connection


cdef inline Member *sibling(const Member *m, uint32_t cid) noexcept nogil:
    """The other member with this CID, whose worker runs; or NULL."""
    cdef uint32_t i
    if m == NULL:
        return NULL
    for i in range(m.count):
        if m.others[i].cid == cid and &m.others[i] != m:
            return &m.others[i] if load_acquire_u32(&m.others[i].is_open) else NULL
    return NULL


cdef inline bint is_free(const Handover *h) noexcept nogil:
    """Whether what was handed over with it before was taken."""
    return load_acquire_u32(&h.is_out) == 0


cdef inline void hand_over(Member *to, Handover *h) noexcept nogil:
    """Give the other worker a connection, filled in; it is free again once that has taken it."""
    h.is_out = 1
    push_completion(&to.arrivals, &h.link)


cdef inline Handover *take_handovers(Member *m) noexcept nogil:
    """What has arrived, oldest first, chained by `link.next`; or NULL."""
    return <Handover *>take_completions(&m.arrivals)


cdef inline void release(Handover *h) noexcept nogil:
    """Let who has handed it over use it again."""
    store_release_u32(&h.is_out, 0)
