# SPDX-License-Identifier: Apache-2.0
"""Credit: how much either side of a connection may send (virtio 1.3, 5.10.6.3).

All counters are free-running and wrap; only payload counts.
"""

from libc.stdint cimport uint32_t

from vsock.layouts cimport Header, MOST_PAYLOAD


cdef struct Credit:
    # What the guest may send us.
    uint32_t buf_alloc          # room that we have
    uint32_t received           # bytes
    uint32_t fwd_cnt            # ... of them those that have left our buffer
    uint32_t told               # fwd_cnt as the guest was last told
    # What we may send the guest.
    uint32_t peer_buf_alloc     # as it said last
    uint32_t peer_fwd_cnt
    uint32_t sent               # bytes
    bint asked                  # it was asked for more, and has not given any


cdef inline uint32_t peer_free(const Credit *c) noexcept nogil:
    """How much we may send now.  A guest that counts more than was sent, or takes room away, gets
    nothing.
    """
    cdef uint32_t on_the_way = c.sent - c.peer_fwd_cnt
    return 0 if on_the_way >= c.peer_buf_alloc else c.peer_buf_alloc - on_the_way


cdef inline bint may_receive(const Credit *c, uint32_t length) noexcept nogil:
    """Whether the guest was allowed to send this much."""
    cdef uint32_t kept = c.received - c.fwd_cnt
    return length <= c.buf_alloc and kept <= c.buf_alloc - length


cdef inline void learn(Credit *c, const Header *h) noexcept nogil:
    """Take what a packet of the guest says of its room."""
    if c.peer_buf_alloc != h.buf_alloc or c.peer_fwd_cnt != h.fwd_cnt:
        c.asked = False
    c.peer_buf_alloc, c.peer_fwd_cnt = h.buf_alloc, h.fwd_cnt


cdef inline void tell(Credit *c, Header *h) noexcept nogil:
    """Say in a packet to the guest what room we have."""
    h.buf_alloc = c.buf_alloc
    h.fwd_cnt = c.told = c.fwd_cnt


cdef inline bint is_update_due(const Credit *c) noexcept nogil:
    """Whether the guest should be told of room that it does not know of, before it has to stop."""
    cdef uint32_t unknown = c.fwd_cnt - c.told
    cdef uint32_t taken = c.received - c.told       # as the guest sees it
    return unknown != 0 and (
        unknown >= c.buf_alloc // 4 or taken + MOST_PAYLOAD > c.buf_alloc
    )
