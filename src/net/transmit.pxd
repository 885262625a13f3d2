# SPDX-License-Identifier: Apache-2.0
"""Packets from the guest: written to the TAP out of the guest's buffers, behind a checked header.

What cannot be sent is dropped and counted, as a network may do; its chain is given back all the
same.  A TAP that takes no more is waited for with the chain back in its vring.
"""

from libc.errno cimport EAGAIN, EFAULT
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from net.header cimport accept_header
from net.layouts cimport NetHeader
from net.state cimport LONGEST_PACKET, MAX_IOVECS, NetParameters, NetVring, net_of, net_vring
from net.tap cimport EBADFD, await_tap, lose_tap, write_packet
from sys.uring cimport iovec
from virtio.segments cimport readable_of, take_bytes
from virtio.virtq cimport Chain, Position, Segment
from worker.fetching cimport put_back, take
from worker.notify cimport report_fault
from worker.state cimport FETCH_BUDGET, Worker
from worker.vring cimport Vring, bump, give_back

cdef extern from "<poll.h>" nogil:
    enum:
        POLLOUT

cdef enum:
    TURN_BYTES = 1 << 19        # of one vring before the others have their turn


cdef inline uint32_t add_packet(
    NetVring *v, Segment *segments, uint32_t count, uint64_t *length
) noexcept nogil:
    """Lay out a packet behind the first iovec, which its header has: the number of iovecs.

    One that is cut into more pieces than a call can take is copied.
    """
    cdef uint32_t i, pieces = min(count, <uint32_t>MAX_IOVECS)
    length[0] = 0
    for i in range(count):
        length[0] += segments[i].len
    if count >= MAX_IOVECS and length[0] <= LONGEST_PACKET:
        v.iov[1].iov_base = v.spill
        v.iov[1].iov_len = take_bytes(&segments, &count, v.spill, LONGEST_PACKET)
        return 2
    for i in range(pieces):
        v.iov[1 + i].iov_base = segments[i].base
        v.iov[1 + i].iov_len = segments[i].len
    return 1 + pieces


cdef inline bint send_chain(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Write the packet of a chain to the TAP, or drop it: False if there is no room at present."""
    cdef NetVring *v = net_vring(r)
    cdef const NetParameters *p = &net_of(w).parameters
    cdef Segment *segments = w.segments
    cdef uint32_t count = readable_of(segments, chain.segments), iovecs
    cdef uint64_t length = 0
    cdef NetHeader header
    cdef ssize_t n
    memset(&header, 0, sizeof(header))
    if take_bytes(&segments, &count, <uint8_t *>&header, p.header_bytes) < p.header_bytes:
        bump(&v.counters.malformed, 1)
        return True
    v.iov[0].iov_base, v.iov[0].iov_len = &header, p.header_bytes
    iovecs = add_packet(v, segments, count, &length)
    if length > LONGEST_PACKET or not accept_header(p, &header, <uint32_t>length):
        bump(&v.counters.malformed, 1)
        return True
    n = write_packet(v, v.iov, <int>iovecs)
    if n >= 0:
        bump(&v.counters.packets, 1)
        bump(&v.counters.bytes, length)
        return True
    if n == -EAGAIN:
        return False
    bump(&v.counters.refused, 1)
    if n == -EFAULT:
        report_fault(w)         # the guest's memory has gone
    elif n == -EBADFD:
        lose_tap(w, v)
    return True


cdef inline int send_again(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Send what a back end had fetched before it died, perhaps a second time: 1."""
    if not send_chain(w, r, chain):
        bump(&net_vring(r).counters.refused, 1)
    give_back(r, chain, 0)
    return 1


cdef inline int transmit(Worker *w, Vring *r) noexcept nogil:
    """Send what the guest has made available, up to this vring's turn.

    Returns 1 if there may be more, 0, or -errno, which breaks the vring.
    """
    cdef NetVring *v = net_vring(r)
    cdef uint64_t before = v.counters.bytes
    cdef int packets = 0, rc = 1
    cdef Position at
    cdef Chain chain
    if not v.is_ready:
        r.wanted = 0
        return 1
    r.wanted = 1
    while packets < FETCH_BUDGET and v.counters.bytes - before < TURN_BYTES:
        at = r.vq.avail
        rc = take(w, r, &chain)
        if rc <= 0:
            return rc
        if not send_chain(w, r, &chain):
            put_back(r, &chain, at)
            await_tap(w, v, POLLOUT)
            r.wanted = 0
            return 1
        give_back(r, &chain, 0)
        packets += 1
    return 1
