# SPDX-License-Identifier: Apache-2.0
"""Waiting: a worker polls for a moment, as long as that has paid of late, then sleeps."""

from libc.errno cimport EAGAIN, EBUSY, EINTR
from libc.stdint cimport uint64_t

from figures.slot cimport add
from sys.atomics cimport pause
from sys.clock cimport now
from sys.hints cimport unlikely
from sys.uring cimport uring_has_news
from worker.completions cimport has_completions
from worker.mailbox cimport has_command
from worker.serving cimport look_again, want_kicks
from worker.state cimport Patience, Worker, submit_and_sleep, submit_and_sleep_for, submit_queued
from worker.timing cimport note_idle


cdef enum:
    SHORTEST_POLL = 2000        # nanoseconds; what is less is not worth a look at the clock
    LOOKS_PER_CLOCK = 16
    SHORTEST_WAIT = 50000       # nanoseconds: what is due sooner than that is done together


cdef inline bint spin(Worker *w, uint64_t limit) noexcept nogil:
    """Poll for up to `limit` nanoseconds: whether something has come.

    The clock is read only behind the first looks: what comes at once is not held up by it.
    """
    cdef uint64_t end = 0
    cdef int _
    while True:
        for _ in range(<int>LOOKS_PER_CLOCK):
            if look_again(w) or uring_has_news(&w.uring) or has_command(&w.mailbox):
                return True
            if has_completions(&w.completions):
                return True
            pause()
        if end == 0:
            end = now() + limit
            note_idle(w, end - limit)
        elif now() >= end:
            return False


cdef inline void adapt(Patience *p, uint64_t waited) noexcept nogil:
    """Poll longer where that would have spared a sleep, else less, down to not at all."""
    if waited <= p.longest:
        p.now = min(max(p.now * 2, <uint64_t>SHORTEST_POLL), p.longest)
    else:
        p.now = p.now // 2 if p.now >= 2 * SHORTEST_POLL else 0


cdef inline int sleep(Worker *w, Patience *p) noexcept nogil:
    """Submit what is queued and sleep until something arrives: -errno on failure."""
    cdef uint64_t began = now()
    cdef int rc
    note_idle(w, began)
    add(&w.slot.events.sleeps, 1)
    rc = submit_and_sleep(w)
    if p.longest:
        adapt(p, now() - (began - p.now))   # that long was polled before
    return rc


cdef inline int sleep_until(Worker *w, uint64_t when) noexcept nogil:
    """Submit what is queued and sleep until something arrives, or until then: -errno on failure."""
    cdef uint64_t present = now()
    cdef uint64_t limit = when - present if when > present else 0
    return submit_and_sleep_for(w, max(limit, <uint64_t>SHORTEST_WAIT))


cdef inline int wait(Worker *w) noexcept nogil:
    """Submit what is queued; unless there is more to do, wait for something: 0, or -errno."""
    # What is in flight takes its time and a driver its own: each is waited for as long as it pays.
    cdef Patience *p = &w.when_busy if w.in_flight else &w.when_idle
    cdef int rc = 0
    if w.unfinished:
        look_again(w)           # the others' drivers may have been asked not to kick
        rc = submit_queued(w)
    elif unlikely(w.wake_at):
        rc = submit_queued(w) if want_kicks(w) else sleep_until(w, w.wake_at)
    elif p.now:
        rc = submit_queued(w)
        if rc >= 0 and spin(w, p.now):
            add(&w.slot.events.sleeps_spared, 1)
        elif rc >= 0 and not want_kicks(w):
            rc = sleep(w, p)
    elif want_kicks(w):
        rc = submit_queued(w)   # calls do not wait for a driver that has more to do
    else:
        rc = sleep(w, p)
    return 0 if rc >= 0 or rc == -EINTR or rc == -EBUSY or rc == -EAGAIN else rc
