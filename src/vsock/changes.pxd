# SPDX-License-Identifier: Apache-2.0
"""What brings a connection from one state to another; none of this touches its socket."""

from libc.stdint cimport uint64_t

from sys.clock cimport now
from sys.uring cimport io_uring_prep_timeout, io_uring_sqe
from vsock.buffer cimport clear, kept
from vsock.connection cimport (
    ASKED, Connection, DRAINING, DUE_REQUEST, DUE_RESPONSE, DUE_RST, ENDING, FREE, LINE, OPEN,
    RESETTING, has_packet, is_drained,
)
from vsock.credit cimport Credit
from vsock.fifo cimport add, is_empty
from vsock.layouts cimport BOTH, RX, WILL_NOT_RECEIVE
from vsock.line cimport write_ok
from vsock.state cimport Vsock, vsock_of
from vsock.table cimport delist
from worker.state cimport TAG_DEVICE, Worker, next_sqe, tagged
from worker.vring cimport Vring, bump

cdef enum:
    CLOSE_SECONDS = 8           # as Linux: for the guest to answer
    CONNECT_SECONDS = 2         # as Linux
    LINE_SECONDS = 5            # for a host program to have written its CONNECT


cdef inline void wake_guest(Worker *w) noexcept nogil:
    """Have buffers fetched from the guest: there is a packet for it."""
    cdef Vring *r = &w.vrings[<int>RX]
    if r.wanted == 0:
        r.wanted = 1
        r.wants_look = w.unfinished = True


cdef inline void touch(Worker *w, Connection *c) noexcept nogil:
    """Something has changed: see to the socket at the end of the turn, and to the guest."""
    cdef Vsock *v = vsock_of(w)
    add(&v.touched, c.number)
    if has_packet(c):
        add(&v.ready, c.number)
        wake_guest(w)


cdef inline void start_tick(Worker *w) noexcept nogil:
    """Look at the deadlines in a moment."""
    cdef Vsock *v = vsock_of(w)
    cdef io_uring_sqe *sqe
    if not v.tick.is_pending:
        v.tick.is_pending = True
        sqe = next_sqe(w)
        io_uring_prep_timeout(sqe, &v.tick_length, 0, 0)
        sqe.user_data = tagged(&v.tick, TAG_DEVICE)


cdef inline void set_deadline(Worker *w, Connection *c, uint64_t seconds) noexcept nogil:
    """Have a connection end unless it comes on by then."""
    c.deadline = now() + seconds * 1000000000
    add(&vsock_of(w).timed, c.number)
    start_tick(w)


cdef inline void end_arrival(Vsock *v, const Connection *c) noexcept nogil:
    """Count one that waits for its line or its answer no more, if it did."""
    if c.state == LINE or c.state == ASKED:
        v.unanswered[1 if c.of_sibling else 0] -= 1


cdef inline void finish(Worker *w, Connection *c) noexcept nogil:
    """End the socket's side; of the guest's, what is due comes first."""
    end_arrival(vsock_of(w), c)
    c.state = RESETTING if c.due & DUE_RST else ENDING
    c.deadline = 0
    clear(&c.incoming)
    touch(w, c)


cdef inline void reset(Worker *w, Connection *c) noexcept nogil:
    """End a connection at once: the guest sees OP_RST, if it knows of it."""
    if c.state == FREE or c.state == RESETTING or c.state == ENDING:
        return
    if c.due & DUE_REQUEST:
        delist(vsock_of(w), c)  # the guest has not even seen it
    c.due = DUE_RST if c.is_listed and c.state != DRAINING else c.due & DUE_RST
    bump(&vsock_of(w).counters[<int>RX].resets, 1)
    finish(w, c)


cdef inline void establish(Worker *w, Connection *c) noexcept nogil:
    """Both sides have agreed; the one that has asked is to see it."""
    end_arrival(vsock_of(w), c)
    if c.state != ASKED:
        c.due |= DUE_RESPONSE
    elif c.of_sibling:
        c.first_count = 1       # any byte will do
    else:
        c.first_count = write_ok(c.first, c.peer_port)
    c.state = OPEN
    c.deadline = 0
    touch(w, c)


cdef inline void leave_guest(Worker *w, Connection *c, bint answer) noexcept nogil:
    """The guest has done with a connection, and sees OP_RST if that is the answer.

    What it has sent still goes to the other side.
    """
    cdef Vsock *v = vsock_of(w)
    clear(&c.incoming)
    c.due = DUE_RST if answer else 0
    c.guest_shut = BOTH
    if not answer:
        delist(v, c)
    if (c.state == OPEN or c.state == DRAINING) and not is_drained(c):
        c.state = DRAINING
        c.deadline = 0          # however long it takes: see `room_for`
        touch(w, c)
    elif c.state != ENDING:
        finish(w, c)


cdef inline void lose_receiver(Connection *c) noexcept nogil:
    """The other side takes no more: what is kept for it goes, and gives credit back."""
    cdef Credit *credit = &c.credit
    c.host_shut |= WILL_NOT_RECEIVE
    credit.fwd_cnt += kept(&c.outgoing)
    clear(&c.outgoing)
    c.first_sent = c.first_count
