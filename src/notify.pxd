# SPDX-License-Identifier: Apache-2.0
"""Kicks, calls and errors: eventfds through io_uring, so that none can ever block a worker."""

from libc.stdint cimport uint64_t

from mailbox cimport stage_answer
from requests cimport Vring, bump
from uring cimport (
    io_uring_prep_cancel64, io_uring_prep_poll_multishot, io_uring_prep_write, io_uring_sqe,
)
from worker cimport TAG_CALL, TAG_KICK, TAG_NOBODY, Worker, next_sqe, tagged

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN


cdef inline void watch(Worker *w, int fd, void *owner, uint64_t tag) noexcept nogil:
    """Have every write to an eventfd arrive as a completion; its count is never read."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_poll_multishot(sqe, fd, POLLIN)
    sqe.user_data = tagged(owner, tag)


cdef inline void cancel(Worker *w, void *owner, uint64_t tag) noexcept nogil:
    """Have the kernel end what goes under this user_data; it completes all the same."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_cancel64(sqe, tagged(owner, tag), 0)
    sqe.user_data = tagged(NULL, TAG_NOBODY)


cdef inline void signal_eventfd(Worker *w, int fd, void *owner, uint64_t tag) noexcept nogil:
    """Add one to an eventfd, through the kernel's queue: a full one never blocks us."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_write(sqe, fd, &w.one, sizeof(w.one), 0)
    sqe.user_data = tagged(owner, tag)


cdef inline void call_driver(Worker *w, Vring *r) noexcept nogil:
    """Notify the driver; while one write is under way, another is remembered."""
    if r.call < 0:
        return
    if r.call_pending:
        r.call_again = True
        return
    r.call_pending = True
    bump(&r.counters.calls, 1)
    signal_eventfd(w, r.call, r, TAG_CALL)


cdef inline void end_call(Worker *w, Vring *r) noexcept nogil:
    """A write to the call eventfd is done; do the one that came due meanwhile."""
    r.call_pending = r.call_cancelled = False
    if r.call_again:
        r.call_again = False
        if not r.stop_ticket:
            call_driver(w, r)


cdef inline void arm_kick(Worker *w, Vring *r) noexcept nogil:
    """Watch the kick eventfd of a ring that runs."""
    if r.kick >= 0 and r.started and not (r.stop_ticket or r.kick_armed):
        r.kick_armed = True
        watch(w, r.kick, r, TAG_KICK)


cdef inline void end_kick_poll(Worker *w, Vring *r) noexcept nogil:
    """The poll of the kick eventfd has ended: watch its successor, or the same again."""
    r.kick_armed = r.kick_cancelled = False
    if r.kick_ticket:
        r.kick = r.next_kick
        stage_answer(&w.mailbox, r.kick_ticket, r.number, 0)
        r.kick_ticket = 0
        r.wants_look = True
    arm_kick(w, r)


cdef inline void break_ring(Worker *w, Vring *r, int reason) noexcept nogil:
    """Stop fetching from a ring that the driver broke, and say so; the others go on."""
    r.broken = True
    if r.error >= 0:
        signal_eventfd(w, r.error, NULL, TAG_NOBODY)
    stage_answer(&w.mailbox, 0, r.number, reason)
