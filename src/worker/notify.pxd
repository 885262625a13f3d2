# SPDX-License-Identifier: Apache-2.0
"""Kicks, calls and errors: eventfds, none of which can make the worker wait."""

from libc.errno cimport EAGAIN, EBUSY, ENXIO
from libc.stdint cimport uint64_t

from figures.slot cimport add
from sys.eventfds cimport Signal, bind_signal, prepare_signal
from sys.uring cimport io_uring_prep_cancel64, io_uring_prep_poll_multishot, io_uring_sqe
from sys.usdt cimport probe_call
from virtio.flaw cimport FLAW_KICK, FLAW_MEMORY, found_flaw
from worker.mailbox cimport stage_answer
from worker.state cimport (
    TAG_KICK, TAG_NOBODY, Worker, next_entry, next_sqe, submit_queued, tagged,
)
from worker.states cimport BREAK, LOSE, STOPPING
from worker.vring cimport Vring, bump, change, is_started

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buffer, size_t count)


cdef enum:
    SUBMIT_TRIES = 1024         # entries that can be queued: each is taken, if there is memory


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


cdef inline bint is_queued(const Worker *w, const Signal *s) noexcept nogil:
    """Whether a signal waits to be submitted."""
    return s.entry >= w.submitted


cdef inline void send_signal(Worker *w, Signal *s) noexcept nogil:
    """Signal an eventfd with the next submission, once however often that is asked before it."""
    cdef io_uring_sqe *sqe
    if s.is_bound and not is_queued(w, s):
        sqe = next_sqe(w)
        s.entry = next_entry(w) - 1
        prepare_signal(sqe, s, tagged(NULL, TAG_NOBODY))


cdef inline void call_driver(Worker *w, Vring *r) noexcept nogil:
    """Notify the driver with the next submission."""
    if r.call.signal.is_bound and not is_queued(w, &r.call.signal):
        bump(&r.call.count, 1)
        probe_call(r.index)
        add(&w.slot.events.calls, 1)
        send_signal(w, &r.call.signal)


cdef inline void submit_signal(Worker *w, const Signal *s) noexcept nogil:
    """Have a signal that is queued reach the kernel, which may take only some entries at a time.

    Where the kernel has no memory for it, it stays queued after some tries, and goes out later.
    """
    cdef int rc = 0, tries = SUBMIT_TRIES
    while is_queued(w, s) and tries and (rc >= 0 or rc == -EAGAIN or rc == -EBUSY):
        rc = submit_queued(w)
        tries -= 1


cdef inline void leave_call(Worker *w, Vring *r) noexcept nogil:
    """Have no more to do with the present call eventfd; what is due to it comes first."""
    submit_signal(w, &r.call.signal)
    bind_signal(&r.call.signal, -1)


cdef inline void arm_kick(Worker *w, Vring *r) noexcept nogil:
    """Watch the kick eventfd of a ring that runs."""
    if r.kick.fd >= 0 and is_started(r) and not (r.state == STOPPING or r.kick.is_watched):
        r.kick.is_watched = True
        watch(w, r.kick.fd, r, TAG_KICK)


cdef inline void signal_error(Worker *w, Vring *r) noexcept nogil:
    """Signal to the front end that a ring stands still, where it can be: it is logged, too."""
    if r.error >= 0 and bind_signal(&w.error, r.error) == 0:
        send_signal(w, &w.error)
        submit_signal(w, &w.error)
        bind_signal(&w.error, -1)


cdef inline void break_ring(Worker *w, Vring *r, int reason) noexcept nogil:
    """Stop fetching from a ring that the driver broke, and say so; the others go on."""
    change(r, BREAK)
    signal_error(w, r)
    stage_answer(&w.mailbox, 0, r.number, reason)


cdef inline void lose_ring(Worker *w, Vring *r) noexcept nogil:
    """Stop fetching from a ring, if it runs, whose memory was taken away, until that is back."""
    if change(r, LOSE):
        signal_error(w, r)
        stage_answer(
            &w.mailbox, 0, r.number, found_flaw(&r.vq.flaw, FLAW_MEMORY, 0, 0, 0, ENXIO)
        )


cdef inline void leave_kick(Worker *w, Vring *r) noexcept nogil:
    """End the poll of the kick eventfd; `end_kick_poll` follows."""
    if not r.kick.is_cancelled:
        r.kick.is_cancelled = True
        cancel(w, tagged(r, TAG_KICK))


cdef inline void end_kick_poll(Worker *w, Vring *r, int result) noexcept nogil:
    """The poll of the kick eventfd has ended: watch its successor, or the same again."""
    if result < 0 and not r.kick.is_cancelled:
        # No kick will be seen any more.
        break_ring(w, r, found_flaw(&r.vq.flaw, FLAW_KICK, 0, -result, 0, -result))
        r.kick.fd = -1
    r.kick.is_watched = r.kick.is_cancelled = False
    if r.kick.ticket:
        r.kick.fd = r.kick.next_fd
        stage_answer(&w.mailbox, r.kick.ticket, r.number, 0)
        r.kick.ticket = 0
        r.wants_look = True
    arm_kick(w, r)


cdef inline void report_fault(Worker *w) noexcept nogil:
    """Have it known that what the front end has mapped is memory no more: the kernel found that."""
    cdef uint64_t one = 1
    write(w.fault_fd, &one, sizeof(one))
