# SPDX-License-Identifier: Apache-2.0
"""Answers to packets of no connection: OP_RST, kept until the guest has a buffer for each."""

from libc.stdint cimport uint16_t, uint32_t

from vsock.layouts cimport Header, OP_RST

cdef enum:
    REPLIES = 2048              # a power of two
    FETCHED_REPLIES = 512       # packets fetched, each of which may need one


cdef struct Reply:
    uint32_t cid                # of the side that the guest has written to
    uint32_t port
    uint32_t guest_port
    uint16_t type


cdef struct Replies:
    # All fields are the worker's.  What was in flight at the death of another back end is begun
    # whatever room there is: up to a vring's 1024 packets, for which there is room beside the rest.
    Reply kept[REPLIES]
    uint32_t head               # free-running
    uint32_t tail


cdef inline uint32_t reply_count(const Replies *r) noexcept nogil:
    return r.tail - r.head


cdef inline bint add_reply(Replies *r, const Header *to) noexcept nogil:
    """Answer a packet with OP_RST, if there is room: whether there is."""
    cdef Reply *reply = &r.kept[r.tail & (REPLIES - 1)]
    if reply_count(r) == REPLIES:
        return False
    reply.cid, reply.port = <uint32_t>to.dst_cid, to.dst_port
    reply.guest_port, reply.type = to.src_port, to.type
    r.tail += 1
    return True


cdef inline void take_reply(Replies *r, Header *out) noexcept nogil:
    """Write the oldest answer, of which there is one; who the guest is remains to be said."""
    cdef const Reply *reply = &r.kept[r.head & (REPLIES - 1)]
    out.src_cid, out.src_port = reply.cid, reply.port
    out.dst_port, out.type, out.op = reply.guest_port, reply.type, OP_RST
    r.head += 1
