# SPDX-License-Identifier: Apache-2.0
"""A worker's clock, and what its time goes to.

The clock is read once a turn, and once more for each further vring that has its own in it.
"""

from libc.stdint cimport uint64_t

from figures.slot cimport add
from sys.clock cimport now, thread_cpu
from worker.state cimport Worker


cdef enum:
    CPU_PERIOD = 10000000       # nanoseconds between two system calls for the CPU time


cdef inline uint64_t look_at_clock(Worker *w) noexcept nogil:
    """The time, for what begins now: `w.now`."""
    if w.clock_is_read:
        w.clock_is_read = False
    else:
        w.now = now()
    return w.now


cdef inline void tell_cpu_time(Worker *w) noexcept nogil:
    """Count the CPU time of this thread up to now."""
    cdef uint64_t used = thread_cpu()
    add(&w.slot.cpu_ns, used - w.cpu_at)
    w.cpu_at = used
    w.cpu_due = w.now + CPU_PERIOD


cdef inline void begin_timing(Worker *w) noexcept nogil:
    """The worker's thread begins."""
    w.cpu_at = thread_cpu()
    w.now = w.turn_at = w.seen_at = now()
    w.cpu_due = w.now + CPU_PERIOD


cdef inline void time_turn(Worker *w) noexcept nogil:
    """A turn begins, the wait for it is over: account the one before."""
    w.now = now()
    if w.has_begun:
        if w.in_flight or w.has_served:
            add(&w.slot.busy_ns, (w.idle_at if w.idle_at else w.now) - w.turn_at)
        if w.now >= w.cpu_due:
            tell_cpu_time(w)
    w.turn_at = w.seen_at = w.now
    w.clock_is_read, w.has_served, w.idle_at = True, False, 0


cdef inline void tell_load(Worker *w) noexcept nogil:
    """A turn ends: say what is in flight.

    A worker that has never been to serve says nothing: what it takes over is still served.
    """
    w.has_begun = w.has_begun or not w.paused
    if w.has_begun:
        w.slot.in_flight = w.in_flight + w.put_off


cdef inline void note_idle(Worker *w, uint64_t at) noexcept nogil:
    """Nothing is left to do in this turn since that time, but to wait for the next."""
    if not (w.in_flight or w.idle_at):
        w.idle_at = at
