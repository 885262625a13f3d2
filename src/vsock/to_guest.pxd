# SPDX-License-Identifier: Apache-2.0
"""Packets to the guest: into each of its buffers the next one that is due."""

from libc.errno cimport EINVAL
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from virtio.dirtylog cimport mark_segments
from virtio.flaw cimport FLAW_OF_DEVICE, found_flaw
from virtio.segments cimport put_bytes, readable_of
from virtio.virtq cimport Chain, Segment
from vsock.buffer cimport give_to, kept
from vsock.changes cimport CLOSE_SECONDS, set_deadline, touch
from vsock.connection cimport (
    Connection, DUE_REQUEST, DUE_RESPONSE, DUE_RST, ENDING, OPEN, RESETTING, has_data, has_packet,
    shut_due,
)
from vsock.credit cimport peer_free, tell
from vsock.fifo cimport Fifo, add, first, is_empty, take
from vsock.layouts cimport (
    BOTH, EVENT_TRANSPORT_RESET, Event, Header, MOST_PAYLOAD, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE,
    OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW, OP_SHUTDOWN, RX, SEQ_EOM, SEQ_EOR, TX,
    TYPE_SEQPACKET,
)
from vsock.replies cimport reply_count, take_reply
from vsock.state cimport Counters, Vsock, vsock_of
from vsock.table cimport delist
from worker.logged cimport outrun_log
from worker.state cimport Worker, want
from worker.vring cimport Vring, bump, give_back

cdef enum:
    FLAW_RX_SHORT = FLAW_OF_DEVICE      # value: bytes to be written; limit: of a header


cdef inline Connection *next_ready(Vsock *v) noexcept nogil:
    """The connection whose packet is next, which stays where it is; or NULL."""
    cdef Connection *c
    while not is_empty(&v.ready):
        c = &v.connections[first(&v.ready)]
        if has_packet(c):
            return c
        take(&v.ready)
    return NULL


cdef inline bint has_packets(Vsock *v) noexcept nogil:
    """Whether there is a packet for the guest."""
    return reply_count(&v.replies) != 0 or next_ready(v) != NULL


cdef inline void say_data(Connection *c, uint32_t most, Header *h) noexcept nogil:
    """Say how much of what is kept goes into this packet, and whether a message ends with it."""
    h.op = OP_RW
    h.len = min(min(kept(&c.incoming), peer_free(&c.credit)), min(most, <uint32_t>MOST_PAYLOAD))
    c.credit.sent += h.len
    if c.type != TYPE_SEQPACKET:
        return
    c.message_sent += h.len
    if h.len == kept(&c.incoming):
        h.flags = SEQ_EOM | (SEQ_EOR if c.is_record else 0)
        c.message_sent = 0


cdef inline void end_for_guest(Worker *w, Connection *c) noexcept nogil:
    """The guest has seen OP_RST: the addresses are free, and what is left is the socket's."""
    c.due = 0
    delist(vsock_of(w), c)
    if c.state == RESETTING:
        c.state = ENDING


cdef inline void say_shut(Worker *w, Connection *c, Header *h) noexcept nogil:
    """Say what the other side will not do any more; once that is everything, the guest is to
    answer.
    """
    h.op, h.flags = OP_SHUTDOWN, shut_due(c)
    c.told_shut = <uint8_t>h.flags
    if c.told_shut == BOTH:
        set_deadline(w, c, CLOSE_SECONDS)


cdef inline void choose_packet(
    Worker *w, Connection *c, uint32_t most, Header *h
) noexcept nogil:
    """Fill in what is due first; `has_packet` was true.  Payload is up to `most` bytes."""
    if c.due & DUE_RST:
        h.op = OP_RST
        end_for_guest(w, c)
    elif c.due & DUE_REQUEST:
        h.op = OP_REQUEST
        c.due &= ~DUE_REQUEST
    elif c.due & DUE_RESPONSE:
        h.op = OP_RESPONSE
        c.due &= ~DUE_RESPONSE
    elif c.state == OPEN and has_data(c) and peer_free(&c.credit):
        say_data(c, most, h)
    elif c.state == OPEN and shut_due(c):
        say_shut(w, c, h)
    elif c.state == OPEN and has_data(c) and not c.credit.asked and not c.due:
        h.op = OP_CREDIT_REQUEST
        c.credit.asked = True
    else:
        h.op = OP_CREDIT_UPDATE
        c.due = 0               # another packet says as much: only this was


cdef inline void write_packet(
    Worker *w, Connection *c, Segment *at, uint32_t count, uint32_t most, Header *h
) noexcept nogil:
    """Write a connection's next packet into a buffer with room for `most` bytes of payload."""
    cdef Vsock *v = vsock_of(w)
    h.src_cid, h.src_port, h.dst_port, h.type = c.peer_cid, c.peer_port, c.guest_port, c.type
    choose_packet(w, c, most, h)
    tell(&c.credit, h)
    put_bytes(&at, &count, <const uint8_t *>h, sizeof(Header))
    give_to(&c.incoming, &at, &count, h.len)
    take(&v.ready)
    touch(w, c)                 # behind the others, if there is more


cdef inline uint32_t write_next(
    Worker *w, Segment *at, uint32_t count, uint32_t most
) noexcept nogil:
    """Write the next packet that is due into a buffer: bytes of it, 0 if none is."""
    cdef Vsock *v = vsock_of(w)
    cdef Counters *counters = &v.counters[<int>RX]
    cdef Connection *c
    cdef Header h
    memset(&h, 0, sizeof(h))
    h.dst_cid = v.cid
    if reply_count(&v.replies):
        take_reply(&v.replies, &h)
        put_bytes(&at, &count, <const uint8_t *>&h, sizeof(h))
        want(w, &w.vrings[<int>TX], 1)
    else:
        c = next_ready(v)
        if c == NULL:
            return 0
        write_packet(w, c, at, count, most, &h)
    bump(&counters.packets, 1)
    bump(&counters.bytes, h.len)
    return sizeof(h) + h.len


cdef inline uint32_t bytes_of(const Segment *segments, uint32_t count) noexcept nogil:
    """Bytes of all segments, as far as a packet can use them."""
    cdef uint32_t i, total = 0
    for i in range(count):
        total += min(segments[i].len, sizeof(Header) + MOST_PAYLOAD - total)
    return total


cdef inline int deliver(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Write the next packet into a buffer of the guest's: 1, 0 if the vring is broken now, or
    -errno if it holds none.

    One that a back end had fetched before it died, and for which there is no packet, goes back
    empty: a driver drops what is shorter than a header.
    """
    cdef uint32_t readable = readable_of(w.segments, chain.segments), written
    cdef Segment *at = w.segments + readable
    cdef uint32_t count = chain.segments - readable
    cdef uint32_t space = bytes_of(at, count)
    if space <= sizeof(Header):
        return found_flaw(&r.vq.flaw, FLAW_RX_SHORT, 0, space, sizeof(Header), EINVAL)
    if w.log.of_data and not mark_segments(&w.log, w.view.memory, at, count):
        outrun_log(w, r)
        return 0
    written = write_next(w, at, count, space - sizeof(Header))
    if not has_packets(vsock_of(w)):
        r.wanted = 0
    give_back(r, chain, written)
    return 1


cdef inline int announce_reset(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Write into a buffer for events that the connections which the guest knows are no more: 1, or
    0 if the vring is broken now.
    """
    cdef Vsock *v = vsock_of(w)
    cdef uint32_t readable = readable_of(w.segments, chain.segments), written = 0
    cdef Segment *at = w.segments + readable
    cdef uint32_t count = chain.segments - readable
    cdef Event event
    event.id = EVENT_TRANSPORT_RESET
    if w.log.of_data and not mark_segments(&w.log, w.view.memory, at, count):
        outrun_log(w, r)
        return 0
    if v.owes_reset:
        written = put_bytes(&at, &count, <const uint8_t *>&event, sizeof(event))
        v.owes_reset = False
    r.wanted = 0
    give_back(r, chain, written)
    return 1
