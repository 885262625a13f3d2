# SPDX-License-Identifier: Apache-2.0
"""The connections of a guest: taken, found by their addresses, given back."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from sys.atomics cimport store_relaxed_u64
from sys.pages cimport MADV_DONTNEED, madvise
from vsock.buffer cimport clear
from vsock.connection cimport (
    BUFFER_BYTES, CONNECTION_BYTES, Connection, FREE, STREAM_BYTES, State,
)
from vsock.fifo cimport CONNECTIONS
from vsock.layouts cimport CID_HOST, TYPE_SEQPACKET
from vsock.state cimport BUCKETS, Vsock

cdef enum:
    KEPT_BYTES = 1 << 14        # of a connection's pages, where it has used no more
    FIRST_PORT = 1 << 30        # of host programs, which have none of their own
    PORTS = 1 << 30


cdef inline uint32_t bucket_of(uint32_t cid, uint32_t port, uint32_t guest_port) noexcept nogil:
    """Where to look for a connection."""
    cdef uint64_t mixed = (<uint64_t>port << 32 | guest_port) * <uint64_t>0x9E3779B97F4A7C15
    mixed ^= <uint64_t>cid * <uint64_t>0xC2B2AE3D27D4EB4F
    return <uint32_t>(mixed >> 40) & (BUCKETS - 1)


cdef inline Connection *find(
    const Vsock *v, uint32_t cid, uint32_t port, uint32_t guest_port
) noexcept nogil:
    """The connection between this port of the guest and that address; or NULL."""
    cdef uint16_t at = v.buckets[bucket_of(cid, port, guest_port)]
    cdef Connection *c
    while at:
        c = &v.connections[at - 1]
        if c.peer_port == port and c.guest_port == guest_port and c.peer_cid == cid:
            return c
        at = c.next
    return NULL


cdef inline void enlist(Vsock *v, Connection *c) noexcept nogil:
    """Have a connection found; there is none with its addresses."""
    cdef uint16_t *bucket = &v.buckets[bucket_of(c.peer_cid, c.peer_port, c.guest_port)]
    c.next = bucket[0]
    bucket[0] = <uint16_t>(c.number + 1)
    c.is_listed = True


cdef inline void delist(Vsock *v, Connection *c) noexcept nogil:
    """Have a connection found no more: its addresses are free."""
    cdef uint16_t *at
    if not c.is_listed:
        return
    at = &v.buckets[bucket_of(c.peer_cid, c.peer_port, c.guest_port)]
    while at[0] != c.number + 1:
        at = &v.connections[at[0] - 1].next
    at[0] = c.next
    c.is_listed = False


cdef inline uint32_t free_port(Vsock *v, uint32_t guest_port) noexcept nogil:
    """A port of the host for a host program; fewer are in use than there are."""
    while True:
        v.next_port = FIRST_PORT + (v.next_port + 1) % PORTS
        if find(v, CID_HOST, v.next_port, guest_port) == NULL:
            return v.next_port


cdef inline Connection *take_connection(
    Vsock *v, State state, uint16_t type, int fd
) noexcept nogil:
    """A free connection, with nothing kept, which takes the socket; or NULL."""
    cdef Connection *c
    if v.free_count == 0:
        return NULL
    v.free_count -= 1
    c = &v.connections[v.free[v.free_count]]
    c.state, c.type, c.fd = state, type, fd
    c.due = c.guest_shut = c.host_shut = c.told_shut = c.shut = 0
    c.is_cancelled = c.of_sibling = c.may_bring = c.has_looked = False
    c.deadline = 0
    c.first_count = c.first_sent = c.sending = c.message_sent = 0
    memset(&c.credit, 0, sizeof(c.credit))
    c.credit.buf_alloc = BUFFER_BYTES
    c.outgoing.size = BUFFER_BYTES
    c.outgoing.ends = c.marks if type == TYPE_SEQPACKET else NULL
    c.outgoing.records = c.marks + BUFFER_BYTES // 64
    c.incoming.size = BUFFER_BYTES if type == TYPE_SEQPACKET else STREAM_BYTES
    store_relaxed_u64(&v.open_count, v.most - v.free_count)
    return c


cdef inline void give_connection_back(Vsock *v, Connection *c) noexcept nogil:
    """Let a connection be taken again; nothing of it is pending and its socket is closed."""
    delist(v, c)
    if c.credit.received > KEPT_BYTES or c.credit.sent > KEPT_BYTES:
        madvise(c.outgoing.base, CONNECTION_BYTES, MADV_DONTNEED)
        c.outgoing.head = c.outgoing.tail = c.incoming.head = c.incoming.tail = 0
    clear(&c.outgoing)
    clear(&c.incoming)
    c.state = FREE
    v.free[v.free_count] = <uint16_t>c.number
    v.free_count += 1
    store_relaxed_u64(&v.open_count, v.most - v.free_count)
