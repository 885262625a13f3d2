# SPDX-License-Identifier: Apache-2.0
"""Serving vrings: each has its turn to be fetched from, what was given back is published."""

from libc.stdint cimport uint32_t

from inflight.record cimport link, settle, walk_again
from inflight.recovery cimport recover
from inflight.region cimport Again, has_again, is_recorded
from sys.hints cimport unlikely
from virtio.virtq cimport Chain, MISSED
from virtio.virtqueue cimport has_more, publish, rearm, suppress
from worker.logged cimport logged_areas
from worker.mailbox cimport REPORT_RECOVERED, stage_answer
from worker.notify cimport break_ring, call_driver
from worker.parking cimport park_recorded, serve_awaited, serve_parked
from worker.state cimport Worker
from worker.states cimport RUNNING
from worker.vring cimport Vring


cdef inline bint served(const Worker *w, const Vring *r) noexcept nogil:
    """Whether new chains may be fetched from a ring."""
    return r.state == RUNNING and r.enabled and not r.is_barred and not w.paused


cdef inline int submit_again(Worker *w, Vring *r) noexcept nogil:
    """Start what was in flight when the ring's last back end died, in its order: 0, or -errno."""
    cdef Chain chain
    cdef const Again *again
    cdef int rc = 0
    while rc >= 0 and has_again(&r.inflight):
        again = &r.inflight.again[r.inflight.again_done]
        r.inflight.again_done += 1
        rc = walk_again(
            &r.inflight, &r.vq, w.addresses, again, w.segments, w.segment_room, &chain
        )
        if rc >= 0:
            rc = w.device.begin(w, r, &chain)
        elif rc == MISSED:
            park_recorded(w, r, again.entry, again.descriptors)
            rc = 0
    return min(rc, 0)


cdef inline void recover_ring(Worker *w, Vring *r) noexcept nogil:
    """Find out once, before anything is fetched, where a ring that has started goes on.

    Its driver is called: whoever served it before may have died owing a call, which its indices
    need not show, since they wrap.  A driver ignores one that it does not need.
    """
    cdef int rc = recover(&r.inflight, &r.vq, r.base, r.taken_over)
    r.unrecovered = False
    if rc == 0 and r.inflight.again_count:
        stage_answer(&w.mailbox, 0, r.number, REPORT_RECOVERED + r.inflight.again_count)
    if rc < 0:
        break_ring(w, r, rc)
    else:
        call_driver(w, r)


cdef inline void do_again(Worker *w, Vring *r) noexcept nogil:
    """Recover a ring that was not looked at yet, and start what was fetched there and not begun."""
    cdef int rc
    r.has_earlier = False
    if r.unrecovered:
        recover_ring(w, r)
    if has_again(&r.inflight) and r.state == RUNNING:
        rc = submit_again(w, r)
        if rc < 0:
            break_ring(w, r, rc)
    if r.parked_count and r.state == RUNNING:
        serve_parked(w, r)
    if r.awaited.access and r.state == RUNNING:
        serve_awaited(w, r)


cdef inline void spare_kicks(Worker *w, Vring *r) noexcept nogil:
    """Ask a ring's driver not to kick, since it is being looked at."""
    if not r.kick.wanted:
        return
    r.kick.wanted = False
    suppress(&r.vq)
    if unlikely(r.log.count):
        logged_areas(w, r)


cdef inline void serve_ring(Worker *w, Vring *r) noexcept nogil:
    """Fetch from a ring that may hold more."""
    cdef int rc
    if unlikely(r.has_earlier):
        do_again(w, r)
        if r.state != RUNNING:
            return
    spare_kicks(w, r)
    rc = w.device.serve(w, r)
    r.wants_look = rc > 0 or r.has_earlier
    if rc < 0:
        break_ring(w, r, rc)


cdef inline bint publish_recorded(Vring *r) noexcept nogil:
    """Show the driver what was answered, and keep the record of it: whether it wants a call."""
    cdef bint wanted
    link(&r.inflight, &r.vq, r.used, r.used_count)
    wanted = publish(&r.vq, r.used, r.used_count)
    settle(&r.inflight, &r.vq, r.used, r.used_count)
    return wanted


cdef inline void publish_ring(Worker *w, Vring *r) noexcept nogil:
    """Show the driver what was answered since the last time, and call it if it wants that."""
    cdef bint wanted
    if w.when_idle.now:
        spare_kicks(w, r)       # of a driver that goes on at once: its vring is polled
    # Before the index moves, too: were we killed in between, it would be lost.
    if unlikely(r.log.count) and not logged_areas(w, r):
        r.used_count = 0
        return
    if is_recorded(&r.inflight):
        wanted = publish_recorded(r)
    else:
        wanted = publish(&r.vq, r.used, r.used_count)
    r.used_count = 0
    if unlikely(r.log.count):
        logged_areas(w, r)
    if wanted:
        call_driver(w, r)


cdef inline void serve_rings(Worker *w) noexcept nogil:
    """Give every ring its turn; `unfinished` says whether one can be fetched from right now."""
    cdef uint32_t i
    cdef Vring *r
    w.unfinished = False
    w.device.begin_turn(w)
    for i in range(w.started_count):
        r = w.started[i]
        if r.used_count:
            publish_ring(w, r)  # a call goes to the kernel before the requests fetched next
        if r.wants_look and served(w, r):
            serve_ring(w, r)
            if r.wants_look and (r.wanted or r.has_earlier):
                w.unfinished = True
        if r.used_count:
            publish_ring(w, r)


cdef inline bint look_again(Worker *w) noexcept nogil:
    """Note each ring that holds more than was fetched: whether there is one."""
    cdef uint32_t i
    cdef Vring *r
    cdef bint found = False
    for i in range(w.started_count):
        r = w.started[i]
        if served(w, r) and r.wanted and has_more(&r.vq):
            r.wants_look = found = True
    return found


cdef inline bint want_kicks(Worker *w) noexcept nogil:
    """Ask every driver to kick before the worker sleeps: whether more has come meanwhile."""
    cdef uint32_t i
    cdef Vring *r
    cdef bint found = False
    for i in range(w.started_count):
        r = w.started[i]
        if r.wants_look or r.kick.wanted or not served(w, r):
            continue
        r.kick.wanted = True
        if rearm(&r.vq):
            r.wants_look = found = True
        if unlikely(r.log.count):
            logged_areas(w, r)
    return found
