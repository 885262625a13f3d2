# SPDX-License-Identifier: Apache-2.0
"""A socket device as a worker calls it (`worker.state.Device`)."""

from libc.stdint cimport uint32_t, uint64_t

from sys.atomics cimport store_release_u32
from sys.clock cimport now
from sys.uring cimport (
    IORING_OP_ACCEPT, IORING_OP_CLOSE, IORING_OP_CONNECT, IORING_OP_RECV, IORING_OP_RECVMSG,
    IORING_OP_SEND, IORING_OP_SENDMSG, IORING_OP_TIMEOUT, io_uring_cqe, operation,
)
from virtio.packed cimport is_untouched
from virtio.virtq cimport Chain, Virtq
from vsock.changes cimport finish, reset, start_tick
from vsock.connection cimport (
    ACCEPT, ACTIONS, ARRIVAL, CONNECT, Connection, FREE, LINE, Operation, RECEIVE, SEND,
    TICK,
)
from vsock.fifo cimport CONNECTIONS, add, is_empty, take
from vsock.from_guest cimport receive
from vsock.group cimport Handover, release, take_handovers
from vsock.layouts cimport EVENT, RX, TX
from vsock.opening cimport listen, read_line, receive_siblings, welcome
from vsock.replies cimport FETCHED_REPLIES, reply_count
from vsock.sockets cimport (
    close, drive, end_connecting, end_receiving, end_sending, look_for_hangup,
)
from vsock.state cimport Choices, LISTENERS, Vsock, vsock_of
from vsock.table cimport delist
from vsock.to_guest cimport announce_reset, deliver, has_packets
from worker.fetching cimport fetch
from worker.notify cimport watch
from worker.state cimport Device, TAG_DEVICE, Worker, pointer_of, tag_of
from worker.vring cimport Vring

cdef enum:
    TICK_NANOSECONDS = 250000000
    RINGS_OF_PACKETS = 1 << RX | 1 << TX


# ---- connections as a whole ----

cdef inline void forget_all(Worker *w) noexcept nogil:
    """End every connection without a word to the guest, whose driver knows of none."""
    cdef Vsock *v = vsock_of(w)
    cdef Vring *tx = &w.vrings[<int>TX]
    cdef Connection *c
    cdef uint32_t i
    v.replies.head = v.replies.tail
    v.owes_reset = False
    tx.wanted = FETCHED_REPLIES
    tx.wants_look = w.unfinished = True
    for i in range(<uint32_t>CONNECTIONS):
        c = &v.connections[i]
        if c.state != FREE and c.state != LINE:
            delist(v, c)
            c.due = 0
            finish(w, c)


cdef inline bint is_in_time(Worker *w, Connection *c, uint64_t time) noexcept nogil:
    """End a connection whose deadline is over: whether it is to be looked at again."""
    cdef bint has_deadline = c.deadline != 0
    if c.state == FREE:
        return False
    if has_deadline and c.deadline <= time:
        c.deadline = 0
        reset(w, c)
        return False
    return look_for_hangup(w, c) or has_deadline


cdef inline void end_late(Worker *w) noexcept nogil:
    """End what takes too long, and listen where that had failed; again in a moment, if need be."""
    cdef Vsock *v = vsock_of(w)
    cdef uint32_t i, number, waiting = v.timed.tail - v.timed.head
    cdef uint64_t time = now()
    for _ in range(waiting):
        number = take(&v.timed)
        if is_in_time(w, &v.connections[number], time):
            add(&v.timed, number)
    for i in range(<uint32_t>LISTENERS):
        listen(w, i)
    if not is_empty(&v.timed):
        start_tick(w)


# ---- what a worker calls ----

cdef inline void open_vsock(Worker *w) noexcept nogil:
    """Listen, for host programs and for siblings."""
    cdef Vsock *v = vsock_of(w)
    cdef uint32_t i
    v.tick_length.tv_nsec = TICK_NANOSECONDS
    v.unknown = RINGS_OF_PACKETS
    for i in range(<uint32_t>LISTENERS):
        v.accepts[i].action, v.accepts[i].number = ACCEPT, i
        listen(w, i)
    v.arrival.action, v.tick.action = ARRIVAL, TICK
    if v.member != NULL:
        watch(w, v.member.arrivals.fd, &v.arrival, TAG_DEVICE)
        store_release_u32(&v.member.is_open, True)


cdef inline void configure_vsock(Worker *w, const void *choices) noexcept nogil:
    """Take what the driver has chosen; the connections of another front end end here."""
    cdef Vsock *v = vsock_of(w)
    cdef uint64_t before = v.choices.epoch
    v.choices = (<const Choices *>choices)[0]
    if v.choices.epoch != before:
        forget_all(w)
        v.unknown, v.unused = RINGS_OF_PACKETS, 0


cdef inline bint is_used(const Virtq *vq) noexcept nogil:
    """Whether a ring that starts was served before, in its driver's eyes."""
    if vq.packed:
        return vq.avail.index != 0 or not vq.avail.wrap or not is_untouched(vq)
    return vq.avail.index != 0


cdef inline void look_at_driver(Worker *w, const Vring *r) noexcept nogil:
    """Find out from rx or tx, whichever starts first, what its driver knows of connections.

    One that has used neither is new, and knows of none: ours end.  One that has used either at
    another back end may know of some that are not here: it is to be told.
    """
    cdef Vsock *v = vsock_of(w)
    cdef uint32_t bit = 1 << r.number
    if is_used(&r.vq):
        v.owes_reset = v.owes_reset or (v.unknown & bit) != 0
        v.unknown = v.unused = 0        # once is enough
    else:
        v.unused |= bit
        v.unknown &= ~bit
    if v.unused == RINGS_OF_PACKETS:
        v.unused = 0
        forget_all(w)


cdef inline void start_vsock(Worker *w, Vring *r) noexcept nogil:
    """Find out whom a vring belongs to, and what it is to be served for."""
    cdef Vsock *v = vsock_of(w)
    if r.number != EVENT:
        look_at_driver(w, r)
    if r.number == RX:
        r.wanted = 1 if has_packets(v) else 0
    elif r.number == TX:
        r.wanted = FETCHED_REPLIES - min(reply_count(&v.replies), <uint32_t>FETCHED_REPLIES)
    if w.count > EVENT:
        w.vrings[<int>EVENT].wanted = 1 if v.owes_reset else 0
        w.vrings[<int>EVENT].wants_look = True


cdef inline int begin_packet(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Serve one chain of any vring."""
    if r.number == TX:
        return receive(w, r, chain)
    if r.number == RX:
        return deliver(w, r, chain)
    return announce_reset(w, r, chain)


cdef inline int serve_vsock(Worker *w, Vring *r) noexcept nogil:
    """Fetch what the driver sends, and as many buffers as there are packets for it."""
    if r.number == TX:
        return fetch(w, r, receive)
    if r.number == RX:
        r.wanted = 1 if has_packets(vsock_of(w)) else 0
        return fetch(w, r, deliver)
    return fetch(w, r, announce_reset)


cdef inline void complete_one(Worker *w, Operation *o, int result, uint32_t flags) noexcept nogil:
    """Bring what io_uring says to whom it is for."""
    cdef Connection *c = NULL
    if o.action < ACTIONS:
        c = &vsock_of(w).connections[o.number]
        o.is_pending = False
    if o.action == RECEIVE:
        if end_receiving(w, c, result) and c.state == LINE:
            read_line(w, c)
    elif o.action == SEND:
        end_sending(w, c, result)
    elif o.action == CONNECT:
        end_connecting(w, c, result)
    elif o.action == ACCEPT:
        welcome(w, o, result, flags)
    elif o.action == ARRIVAL:
        receive_siblings(w)
    else:
        o.is_pending = False
        end_late(w)


cdef inline void complete_vsock(Worker *w, io_uring_cqe **cqes, unsigned count) noexcept nogil:
    """Take what the sockets have done."""
    cdef unsigned i
    for i in range(count):
        if tag_of(cqes[i].user_data) == TAG_DEVICE:
            complete_one(
                w, <Operation *>pointer_of(cqes[i].user_data), cqes[i].res, cqes[i].flags
            )


cdef inline void begin_turn_vsock(Worker *w) noexcept nogil:
    """Nothing: what ends is for the guest's buffers, which have their turn."""


cdef inline void end_turn_vsock(Worker *w) noexcept nogil:
    """See to every socket on which something has changed: what came in one turn goes in one."""
    cdef Vsock *v = vsock_of(w)
    while not is_empty(&v.touched):
        drive(w, &v.connections[take(&v.touched)])


cdef inline bint quit_vsock(Worker *w) noexcept nogil:
    """Close every socket, so that the other sides see the end: nobody is at the guest's memory.

    Those in which descriptors may lie are left to the control thread.
    """
    cdef Vsock *v = vsock_of(w)
    cdef Handover *h
    cdef Handover *next
    cdef uint32_t i
    if v.member != NULL:
        store_release_u32(&v.member.is_open, False)
        h = take_handovers(v.member)
        while h != NULL:
            next = <Handover *>h.link.next
            if h.fd >= 0:
                close(h.fd)
            release(h)
            h = next
    if v.looks_ahead:
        store_release_u32(&v.has_left, True)
        return False
    for i in range(<uint32_t>CONNECTIONS):
        if v.connections[i].state != FREE and v.connections[i].fd >= 0:
            close(v.connections[i].fd)
            v.connections[i].fd = -1
    return False


cdef inline void be_vsock(Device *d) noexcept nogil:
    """Fill in the role."""
    d.device_size, d.worker_size, d.vring_size = sizeof(Device), sizeof(Worker), sizeof(Vring)
    d.operations = (
        operation(IORING_OP_ACCEPT) | operation(IORING_OP_CONNECT) | operation(IORING_OP_CLOSE)
        | operation(IORING_OP_RECV) | operation(IORING_OP_RECVMSG) | operation(IORING_OP_SEND)
        | operation(IORING_OP_SENDMSG) | operation(IORING_OP_TIMEOUT)
    )
    d.open, d.configure, d.start, d.quit = open_vsock, configure_vsock, start_vsock, quit_vsock
    d.begin_turn, d.end_turn, d.complete = begin_turn_vsock, end_turn_vsock, complete_vsock
    d.serve, d.begin = serve_vsock, begin_packet
