# SPDX-License-Identifier: Apache-2.0
"""Packets from the guest: checked, and carried out on the connection that they name."""

from libc.stdint cimport uint8_t, uint32_t

from virtio.segments cimport readable_of, take_bytes
from virtio.virtq cimport Chain, Segment
from vsock.buffer cimport add_from, clear, mark_end
from vsock.changes cimport establish, leave_guest, reset, touch, wake_guest
from vsock.connection cimport (
    ASKED, Connection, DRAINING, DUE_CREDIT, OPEN, RESETTING,
)
from vsock.credit cimport Credit, learn, may_receive, peer_free
from vsock.layouts cimport (
    BOTH, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW,
    OP_SHUTDOWN, RX, SEQ_EOM, SEQ_EOR, TX, TYPE_SEQPACKET, WILL_NOT_RECEIVE, WILL_NOT_SEND,
)
from vsock.opening cimport ask_other, has_type
from vsock.replies cimport add_reply
from vsock.state cimport Counters, Vsock, vsock_of
from vsock.table cimport find
from worker.state cimport Worker
from worker.vring cimport Vring, bump, give_back


cdef inline bint is_for_us(const Vsock *v, const Header *h) noexcept nogil:
    """Whether a packet says truly who has sent it, and to one who can be."""
    return h.src_cid == v.cid and h.dst_cid >> 32 == 0


cdef inline void refuse(Worker *w, const Header *h) noexcept nogil:
    """Answer a packet of no connection with OP_RST, unless it is one."""
    cdef Vsock *v = vsock_of(w)
    cdef Vring *tx = &w.vrings[<int>TX]
    if h.op == OP_RST or not add_reply(&v.replies, h):
        return
    bump(&v.counters[<int>RX].resets, 1)
    if tx.wanted:
        tx.wanted -= 1          # it is again once the answer is given
    wake_guest(w)


cdef inline void take_payload(
    Worker *w, Connection *c, const Header *h, Segment *at, uint32_t count
) noexcept nogil:
    """Keep what the guest sends, for the other side."""
    cdef Credit *credit = &c.credit
    if c.guest_shut & WILL_NOT_SEND or not may_receive(credit, h.len):
        reset(w, c)
        return
    credit.received += h.len
    if c.host_shut & WILL_NOT_RECEIVE:
        credit.fwd_cnt += h.len     # nobody takes it, and the guest is to know soon
        return
    add_from(&c.outgoing, &at, &count, h.len)
    if c.type == TYPE_SEQPACKET and h.flags & SEQ_EOM:
        mark_end(&c.outgoing, h.flags & SEQ_EOR)


cdef inline void take_shutdown(Worker *w, Connection *c, const Header *h) noexcept nogil:
    """Note what the guest will not do any more; once that is everything, it is answered."""
    c.guest_shut |= h.flags & BOTH
    if c.guest_shut == BOTH:
        leave_guest(w, c, True)
    elif c.guest_shut & WILL_NOT_RECEIVE:
        clear(&c.incoming)


cdef inline bint is_stuck(const Connection *c) noexcept nogil:
    """Whether the guest has all its room full of one message, and waits for the end of it."""
    return (
        c.message_sent != 0 and peer_free(&c.credit) == 0
        and c.credit.sent - c.credit.peer_fwd_cnt == c.message_sent
    )


cdef inline void take_open(
    Worker *w, Connection *c, const Header *h, Segment *at, uint32_t count
) noexcept nogil:
    """Carry out a packet of a connection that both sides have agreed to."""
    if h.op == OP_RW:
        take_payload(w, c, h, at, count)
    elif h.op == OP_SHUTDOWN:
        take_shutdown(w, c, h)
    elif h.op == OP_CREDIT_REQUEST:
        c.due |= DUE_CREDIT
    elif h.op != OP_CREDIT_UPDATE or is_stuck(c):
        reset(w, c)


cdef inline void take_known(
    Worker *w, Connection *c, const Header *h, Segment *at, uint32_t count
) noexcept nogil:
    """Carry out a packet of a connection."""
    if h.op == OP_RST:
        leave_guest(w, c, False)
        return
    if c.state == RESETTING or c.state == DRAINING:
        return                  # OP_RST is on its way
    if h.type != c.type:
        reset(w, c)
        return
    learn(&c.credit, h)
    if c.state == OPEN:
        take_open(w, c, h, at, count)
    elif c.state == ASKED and h.op == OP_RESPONSE:
        establish(w, c)
    elif h.op == OP_SHUTDOWN:
        leave_guest(w, c, True)
    elif h.op != OP_CREDIT_UPDATE and h.op != OP_CREDIT_REQUEST:
        reset(w, c)
    touch(w, c)


cdef inline void carry_out(
    Worker *w, const Header *h, Segment *at, uint32_t count
) noexcept nogil:
    """Carry out a packet whose payload, as long as it says, is what is left of the buffers."""
    cdef Vsock *v = vsock_of(w)
    cdef Connection *c = find(v, <uint32_t>h.dst_cid, h.dst_port, h.src_port)
    if c != NULL:
        take_known(w, c, h, at, count)
    elif h.op != OP_REQUEST or not has_type(v, h.type) or not ask_other(w, h):
        refuse(w, h)


cdef inline bint has_bytes(const Segment *at, uint32_t count, uint32_t length) noexcept nogil:
    """Whether the segments have at least as many."""
    cdef uint32_t i
    for i in range(count):
        if at[i].len >= length:
            return True
        length -= at[i].len
    return length == 0


cdef inline int receive(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Take one packet: 1.  One that cannot be read is dropped, as Linux drops it."""
    cdef Vsock *v = vsock_of(w)
    cdef Counters *counters = &v.counters[<int>TX]
    cdef Segment *at = w.segments
    cdef uint32_t count = readable_of(at, chain.segments)
    cdef Header h
    if (
        take_bytes(&at, &count, <uint8_t *>&h, sizeof(h)) < sizeof(h) or not is_for_us(v, &h)
        or not has_bytes(at, count, h.len)
    ):
        bump(&counters.malformed, 1)
    else:
        bump(&counters.packets, 1)
        bump(&counters.bytes, h.len)
        carry_out(w, &h, at, count)
    give_back(r, chain, 0)
    return 1
