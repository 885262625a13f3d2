# SPDX-License-Identifier: Apache-2.0
"""Serving a ring: chains fetched and begun, answers published, a batch at a time."""

from libc.stdint cimport int32_t, uint32_t

from blk.answers cimport answer_at_once, answer_ended, status_of
from blk.operation cimport Operation, parse_request
from blk.request cimport Request, next_ranges, take_range, take_request
from engine.dispatch cimport begin_turn, start, try_at_once
from engine.engine cimport Engine, IO_NONE, end_io
from inflight.packed cimport record_packed, unrecord_packed
from inflight.record cimport link, settle, walk_again
from inflight.recovery cimport recover
from inflight.region cimport Again, has_again, is_recorded
from inflight.split cimport record_split, unrecord_split
from sys.hints cimport unlikely
from virtio.dirtylog cimport seldom
from virtio.packed cimport take_packed
from virtio.split cimport take_split
from virtio.virtq cimport Chain
from virtio.virtqueue cimport has_more, publish, rearm, suppress
from worker.logged cimport logged_areas
from worker.mailbox cimport REPORT_RECOVERED, stage_answer
from worker.notify cimport break_ring, call_driver
from worker.state cimport FETCH_BUDGET, Worker
from worker.vring cimport Vring


cdef inline bint served(const Worker *w, const Vring *r) noexcept nogil:
    """Whether new chains may be fetched from a ring."""
    return r.started and r.enabled and not (r.broken or r.lost or r.stop_ticket or w.paused)


cdef inline void start_request(
    Worker *w, Engine *e, Vring *r, const Operation *op, const Chain *chain
) noexcept nogil:
    """Have the engine do an operation; `answer_ended` answers it."""
    cdef Request *q = take_request(r, w.view, op, chain)
    w.in_disk += 1
    if q.ranges_left and not take_range(q):
        end_io(e, &q.io, 0)     # all of them are empty
    else:
        start(e, &q.io)


cdef inline int begin(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Start a chain's request: its share of the budget, or -errno if it breaks the ring."""
    cdef Operation op
    cdef Engine *e = <Engine *>w.engine
    cdef int32_t result
    cdef int share = 1
    cdef int rc = parse_request(
        &w.limits, w.segments, chain.segments, &op, next_ranges(r), &r.vq.flaw
    )
    if rc < 0:
        return rc
    if op.io.kind != IO_NONE:
        share = try_at_once(e, &op.io, &result)
        if share == 0:
            start_request(w, e, r, &op, chain)
            return 1
        op.status = status_of(w, op.io.kind, op.io.offset, result)
    answer_at_once(w, r, chain, &op)
    return share


# Two loops that differ in one call: neither has a branch on the layout.

cdef inline int fetch_split(Worker *w, Vring *r) noexcept nogil:
    """Start what is available, up to this ring's turn: 1 if there may be more, 0, or -errno."""
    cdef Chain chain
    cdef int budget = FETCH_BUDGET, rc = 1
    while rc > 0 and budget > 0 and r.free_count:
        rc = take_split(&r.vq, w.view.memory, w.segments, w.segment_room, &chain)
        if rc > 0:
            if is_recorded(&r.inflight):
                record_split(&r.inflight, &chain)
            rc = begin(w, r, &chain)
            if rc < 0 and is_recorded(&r.inflight):
                unrecord_split(&r.inflight, &chain)
            budget -= rc
    return rc


cdef inline int fetch_packed(Worker *w, Vring *r) noexcept nogil:
    """Start what is available, up to this ring's turn: 1 if there may be more, 0, or -errno."""
    cdef Chain chain
    cdef int budget = FETCH_BUDGET, rc = 1
    while rc > 0 and budget > 0 and r.free_count:
        rc = take_packed(&r.vq, w.view.memory, w.segments, w.segment_room, &chain)
        if rc > 0 and is_recorded(&r.inflight):
            rc = record_packed(&r.inflight, &r.vq, &chain) or rc
        if rc > 0:
            rc = begin(w, r, &chain)
            if rc < 0 and is_recorded(&r.inflight):
                unrecord_packed(&r.inflight, &chain)
            budget -= rc
    return rc


cdef inline int submit_again(Worker *w, Vring *r) noexcept nogil:
    """Start what was in flight when the ring's last back end died, in its order: 0, or -errno."""
    cdef Chain chain
    cdef const Again *again
    cdef int rc = 0
    while rc >= 0 and has_again(&r.inflight):
        again = &r.inflight.again[r.inflight.again_done]
        r.inflight.again_done += 1
        rc = walk_again(
            &r.inflight, &r.vq, w.view.memory, again, w.segments, w.segment_room, &chain
        )
        if rc >= 0:
            rc = begin(w, r, &chain)
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
    """Recover a ring that was not looked at yet, and start what was left in flight there."""
    cdef int rc
    if unlikely(r.unrecovered):
        recover_ring(w, r)
    if unlikely(has_again(&r.inflight)) and not r.broken:
        rc = submit_again(w, r)
        if rc < 0:
            break_ring(w, r, rc)


cdef inline void spare_kicks(Worker *w, Vring *r) noexcept nogil:
    """Tell a ring's driver not to kick, since it is being looked at."""
    if not r.kicks_wanted:
        return
    r.kicks_wanted = False
    suppress(&r.vq)
    if seldom(r.log.on):
        logged_areas(w, r)


cdef inline void serve_ring(Worker *w, Vring *r) noexcept nogil:
    """Fetch from a ring that may hold more."""
    cdef int rc
    do_again(w, r)
    if r.broken:
        return
    spare_kicks(w, r)
    rc = fetch_packed(w, r) if r.vq.packed else fetch_split(w, r)
    answer_ended(w, <Engine *>w.engine)
    r.wants_look = rc > 0
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
    if w.with_driver.now:
        spare_kicks(w, r)       # of a driver that goes on at once: that is looked out for
    # Before the index moves, too: were we killed in between, nobody would hear of it.
    if seldom(r.log.on) and not logged_areas(w, r):
        r.used_count = 0
        return
    if is_recorded(&r.inflight):
        wanted = publish_recorded(r)
    else:
        wanted = publish(&r.vq, r.used, r.used_count)
    r.used_count = 0
    if seldom(r.log.on):
        logged_areas(w, r)
    if wanted:
        call_driver(w, r)


cdef inline bint serve_rings(Worker *w) noexcept nogil:
    """Give every ring its turn: whether one has more to fetch right now."""
    cdef uint32_t i
    cdef Vring *r
    cdef bint more = False
    begin_turn(<Engine *>w.engine)
    answer_ended(w, <Engine *>w.engine)
    for i in range(w.started_count):
        r = w.started[i]
        if r.used_count:
            publish_ring(w, r)  # a call goes to the kernel before the requests fetched next
        if r.wants_look and served(w, r):
            serve_ring(w, r)
            if r.wants_look and r.free_count:
                more = True
        if r.used_count:
            publish_ring(w, r)
    return more


cdef inline bint look_again(Worker *w) noexcept nogil:
    """Note each ring that holds more than was fetched: whether there is one."""
    cdef uint32_t i
    cdef Vring *r
    cdef bint found = False
    for i in range(w.started_count):
        r = w.started[i]
        if served(w, r) and r.free_count and has_more(&r.vq):
            r.wants_look = found = True
    return found


cdef inline bint want_kicks(Worker *w) noexcept nogil:
    """Ask every driver to kick before the worker sleeps: whether more has come meanwhile."""
    cdef uint32_t i
    cdef Vring *r
    cdef bint found = False
    for i in range(w.started_count):
        r = w.started[i]
        if r.wants_look or r.kicks_wanted or not served(w, r):
            continue
        r.kicks_wanted = True
        if rearm(&r.vq):
            r.wants_look = found = True
        if seldom(r.log.on):
            logged_areas(w, r)
    return found
