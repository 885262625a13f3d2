# SPDX-License-Identifier: Apache-2.0
"""Kicks, calls and errors: eventfds, through io_uring where a write might block the worker."""

from libc.errno cimport ENXIO
from libc.stdint cimport uint64_t

from mailbox cimport stage_answer
from requests cimport Vring, bump
from uring cimport (
    io_uring_prep_cancel64, io_uring_prep_poll_multishot, io_uring_prep_write, io_uring_sqe,
)
from worker cimport TAG_ERROR, TAG_KICK, TAG_NOBODY, Worker, call_tag, next_sqe, tagged

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN


cdef extern from "<fcntl.h>" nogil:
    enum:
        F_GETFL
        O_NONBLOCK
    int fcntl(int fd, int command)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buffer, size_t count)


cdef inline void watch(Worker *w, int fd, void *owner, uint64_t tag) noexcept nogil:
    """Have every write to an eventfd arrive as a completion; its count is never read."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_poll_multishot(sqe, fd, POLLIN)
    sqe.user_data = tagged(owner, tag)


cdef inline void cancel(Worker *w, uint64_t user_data) noexcept nogil:
    """Have the kernel end what goes under this user_data; it completes all the same."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_cancel64(sqe, user_data, 0)
    sqe.user_data = tagged(NULL, TAG_NOBODY)


cdef inline void signal_eventfd(Worker *w, int fd, uint64_t user_data) noexcept nogil:
    """Add one to an eventfd, through the kernel's queue: a full one never blocks us."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_write(sqe, fd, &w.one, sizeof(w.one), 0)
    sqe.user_data = user_data


cdef inline void call_driver(Worker *w, Vring *r) noexcept nogil:
    """Notify the driver; while one write is under way, another is remembered."""
    if r.call < 0:
        return
    if r.call_never_blocks:
        bump(&r.counters.calls, 1)
        write(r.call, &w.one, sizeof(w.one))    # a full one is signalled already
        return
    if r.call_pending:
        r.call_again = True
        return
    r.call_pending = True
    bump(&r.counters.calls, 1)
    signal_eventfd(w, r.call, call_tag(r, r.call_round))


cdef inline void end_call(Worker *w, Vring *r, uint64_t user_data) noexcept nogil:
    """A write to the call eventfd is done; do the one that came due meanwhile."""
    if user_data != call_tag(r, r.call_round):
        return                  # to an eventfd that is none of ours any more
    r.call_pending = False
    if r.call_again:
        r.call_again = False
        call_driver(w, r)


cdef inline void leave_call(Worker *w, Vring *r) noexcept nogil:
    """Have no more to do with the present call eventfd, which may never take our write.

    A write under way is left to itself, since a blocking eventfd takes it a moment later;
    only when the next one is left is it cancelled, so that no more than one can linger.
    """
    if r.call_orphaned:
        cancel(w, call_tag(r, r.call_round - 1))
    r.call_orphaned = r.call_pending
    r.call_pending = r.call_again = False
    r.call_round += 1


cdef inline void use_call(Vring *r, int fd) noexcept nogil:
    """Notify the driver by this eventfd from now on, -1 for none."""
    r.call = fd
    r.call_never_blocks = fd >= 0 and (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0


cdef inline void arm_kick(Worker *w, Vring *r) noexcept nogil:
    """Watch the kick eventfd of a ring that runs."""
    if r.kick >= 0 and r.started and not (r.stop_ticket or r.kick_armed):
        r.kick_armed = True
        watch(w, r.kick, r, TAG_KICK)


cdef inline void signal_error(Worker *w, Vring *r) noexcept nogil:
    """Tell the front end that a ring stands still; once is enough while it has not heard."""
    if r.error >= 0 and not r.error_pending:
        r.error_pending = True
        signal_eventfd(w, r.error, tagged(r, TAG_ERROR))


cdef inline void break_ring(Worker *w, Vring *r, int reason) noexcept nogil:
    """Stop fetching from a ring that the driver broke, and say so; the others go on."""
    r.broken = True
    signal_error(w, r)
    stage_answer(&w.mailbox, 0, r.number, reason)


cdef inline void lose_ring(Worker *w, Vring *r) noexcept nogil:
    """Stop fetching from a ring whose memory was taken away, until it is mapped again."""
    r.lost = True
    signal_error(w, r)
    stage_answer(&w.mailbox, 0, r.number, -ENXIO)


cdef inline void leave_kick(Worker *w, Vring *r) noexcept nogil:
    """End the poll of the kick eventfd; `end_kick_poll` follows."""
    if not r.kick_cancelled:
        r.kick_cancelled = True
        cancel(w, tagged(r, TAG_KICK))


cdef inline void end_kick_poll(Worker *w, Vring *r, int result) noexcept nogil:
    """The poll of the kick eventfd has ended: watch its successor, or the same again."""
    if result < 0 and not r.kick_cancelled:
        break_ring(w, r, result)        # it can never be heard again
        r.kick = -1
    r.kick_armed = r.kick_cancelled = False
    if r.kick_ticket:
        r.kick = r.next_kick
        stage_answer(&w.mailbox, r.kick_ticket, r.number, 0)
        r.kick_ticket = 0
        r.wants_look = True
    arm_kick(w, r)
