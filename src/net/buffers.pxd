# SPDX-License-Identifier: Apache-2.0
"""Buffers to receive into: gathered before it is known how long a packet is, and put back.

Buffers are fetched only while the TAP has packets, and those that are not used are put back when
the turn ends: between two turns nothing is in flight, unless more buffers are waited for.
"""

from libc.errno cimport EINVAL
from libc.stdint cimport uint32_t, uint64_t

from net.state cimport (
    Buffer, LONGEST_PACKET, MAX_IOVECS, NET_FLAW_READABLE, NET_FLAW_SHORT, NetVring, net_of,
    net_vring,
)
from virtio.flaw cimport FLAW_NONE, found_flaw
from virtio.segments cimport readable_of
from virtio.virtq cimport Chain
from worker.fetching cimport put_back, take
from worker.serving cimport served
from worker.state cimport Worker, keep, let_go
from worker.vring cimport Vring

cdef enum:
    # What gathering comes to, beside 1 where there is room.
    EMPTY = 0                   # the driver has made no more available
    NO_MORE = 2                 # what comes next cannot be gathered now


cdef inline int add_buffer(Worker *w, NetVring *v, const Chain *chain) noexcept nogil:
    """Gather a chain that was just fetched: 0, or -errno, which breaks the vring."""
    cdef Buffer *b = &v.buffers[v.buffer_count]
    cdef uint32_t header = net_of(w).parameters.header_bytes
    cdef uint32_t i, readable = readable_of(w.segments, chain.segments)
    if readable:
        return found_flaw(&v.vring.vq.flaw, NET_FLAW_READABLE, 0, readable, 0, EINVAL)
    b.chain = chain[0]
    b.iovecs = min(chain.segments, MAX_IOVECS - v.iov_count)
    b.bytes = 0
    for i in range(b.iovecs):
        v.iov[v.iov_count + i].iov_base = w.segments[i].base
        v.iov[v.iov_count + i].iov_len = w.segments[i].len
        b.bytes = <uint32_t>min(b.bytes + <uint64_t>w.segments[i].len, <uint64_t>LONGEST_PACKET)
    if b.bytes < header:
        return found_flaw(&v.vring.vq.flaw, NET_FLAW_SHORT, 0, b.bytes, header, EINVAL)
    v.iov_count += b.iovecs
    v.buffer_count += 1
    v.room += b.bytes
    return 0


cdef inline bint has_place(const Worker *w, const NetVring *v, uint32_t bytes) noexcept nogil:
    """Whether the buffers gathered take a packet of `bytes`, or all that may be gathered."""
    if v.buffer_count and not net_of(w).parameters.mergeable:
        return True             # each packet has one chain
    return v.room >= bytes


cdef inline int gather_one(Worker *w, Vring *r) noexcept nogil:
    """Gather the next chain: 1, EMPTY where there is none, NO_MORE, or -errno.

    What is wrong with a chain counts once all before it are used: NO_MORE until then.
    """
    cdef NetVring *v = net_vring(r)
    cdef Buffer *b = &v.buffers[v.buffer_count]
    cdef Chain chain
    cdef int rc
    # No driver can have given more than it has descriptors; a record would not end either.
    if r.used_count + v.buffer_count >= r.vq.size:
        return NO_MORE
    b.before = r.vq.avail
    rc = take(w, r, &chain)
    if rc == 0:
        return EMPTY
    if rc > 0:
        if v.buffer_count and chain.segments > MAX_IOVECS - v.iov_count:
            put_back(r, &chain, b.before)
            return NO_MORE
        rc = add_buffer(w, v, &chain)
        if rc == 0:
            return 1
        put_back(r, &chain, r.vq.avail)     # it is recorded no more
    if v.buffer_count == 0:
        return rc
    r.vq.avail = b.before
    v.flaw, v.error = r.vq.flaw, rc
    r.vq.flaw.kind = FLAW_NONE
    return NO_MORE


cdef inline int gather(Worker *w, Vring *r, uint32_t bytes) noexcept nogil:
    """Gather buffers for a packet of `bytes`: 1, EMPTY, NO_MORE, or -errno if there is not one."""
    cdef NetVring *v = net_vring(r)
    cdef int rc = 1
    v.error = 0
    while rc == 1 and not has_place(w, v, bytes):
        rc = gather_one(w, r)
    return rc


cdef inline int refuse_behind(Vring *r) noexcept nogil:
    """Break a vring for the chain behind those gathered, which go unused: -errno."""
    cdef NetVring *v = net_vring(r)
    r.vq.flaw = v.flaw
    return v.error


cdef inline void put_buffers_back(Vring *r) noexcept nogil:
    """Have the buffers that were not used available again, the last one first."""
    cdef NetVring *v = net_vring(r)
    while v.buffer_count:
        v.buffer_count -= 1
        put_back(r, &v.buffers[v.buffer_count].chain, v.buffers[v.buffer_count].before)
    v.iov_count = v.room = 0


cdef inline void keep_buffers(Worker *w, Vring *r) noexcept nogil:
    """Keep what is gathered until the driver has made more available."""
    cdef NetVring *v = net_vring(r)
    cdef uint32_t _
    for _ in range(v.buffer_count):
        v.pinned = keep(w, r)


cdef inline void resume_gathering(Worker *w, Vring *r) noexcept nogil:
    """Go on with the buffers that were kept."""
    cdef NetVring *v = net_vring(r)
    cdef uint32_t _
    if v.pinned != NULL:
        for _ in range(v.buffer_count):
            let_go(w, r, v.pinned)
        v.pinned = NULL


cdef inline void give_up_buffers(Worker *w, Vring *r) noexcept nogil:
    """Have buffers that were kept available again where the vring is to rest, or its memory to go.
    """
    cdef NetVring *v = net_vring(r)
    if v.pinned != NULL and not (served(w, r) and v.pinned == w.view):
        resume_gathering(w, r)
        put_buffers_back(r)


cdef inline bint are_all_gathered(const Vring *r) noexcept nogil:
    """Whether every descriptor of a vring is in the buffers gathered: there will be no more."""
    cdef const NetVring *v = net_vring(r)
    cdef uint32_t i, descriptors = 0
    for i in range(v.buffer_count):
        descriptors += v.buffers[i].chain.descriptors
    return descriptors >= r.vq.size
