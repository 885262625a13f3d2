# SPDX-License-Identifier: Apache-2.0
"""What a vring owes the rates: requests that were begun before their time, since none could wait.

Who has a vring stopped, or what it names taken away, over and over would so get a whole queue
through each time.  So from a vring that owes much nothing more is begun early if it can stay
recorded (`blk.throttle`).  Else the vring is barred: nothing is fetched from it until it owes
little.
"""

from libc.stdint cimport uint32_t, uint64_t

from blk.budgets cimport DIRECTIONS, start_of_places
from blk.request cimport ThrottleQueue, blk_vring
from blk.resting cimport may_stay_recorded
from blk.state cimport Throttle, blk_of
from worker.state cimport Worker
from worker.vring cimport Vring


cdef enum:
    LITTLE = 1000000000         # nanoseconds that a vring may owe and be served as any other


cdef inline uint64_t owes_little_at(const Worker *w, const Vring *r) noexcept nogil:
    """When a vring owes little, at the rates that there are now; in the past where it does."""
    cdef const Throttle *t = &blk_of(w).throttle
    cdef uint64_t paid_at = w.now
    cdef uint32_t d
    for d in range(<uint32_t>DIRECTIONS):
        paid_at = max(paid_at, start_of_places(&t.paces[d], &blk_vring(r).throttled[d].owed, w.now))
    return max(paid_at, <uint64_t>LITTLE) - LITTLE


cdef inline bint owes_much(const Worker *w, const Vring *r) noexcept nogil:
    return owes_little_at(w, r) > w.now


cdef inline void bar_if_owing(Worker *w, Vring *r) noexcept nogil:
    """Bar a vring that cannot be kept from getting more through before its time."""
    r.is_barred = not may_stay_recorded(w, r) and owes_much(w, r)
    blk_of(w).throttle.has_barred |= r.is_barred


cdef inline void lift_bars(Worker *w) noexcept nogil:
    """Have vrings served again that owe little by now."""
    cdef Vring *r
    cdef uint32_t i
    blk_of(w).throttle.has_barred = False
    for i in range(w.started_count):
        r = w.started[i]
        if r.is_barred:
            bar_if_owing(w, r)
            r.wants_look = r.wants_look or not r.is_barred


cdef inline uint64_t next_lifted(const Worker *w) noexcept nogil:
    """When the next vring is not to be barred any more, in nanoseconds."""
    cdef uint64_t when = <uint64_t>-1
    cdef uint32_t i
    for i in range(w.started_count):
        if w.started[i].is_barred:
            when = min(when, owes_little_at(w, w.started[i]))
    return when
