# SPDX-License-Identifier: Apache-2.0
"""Requests that failed and are held by the disk's error policy, to be begun again.

A held request is at rest, see resting.pxd.

A few at a time are begun again (`begin_held`), those that were held longest first.  Each one that
gets through has two more begun: however many are held, an image that still fails sees only a few.

A failed sync is not asked again where it is remembered (`engine.durable`): what was acknowledged
is lost, and the guest has to know.
"""

from libc.errno cimport EFAULT, ENOSPC, EOPNOTSUPP
from libc.stdint cimport int32_t, uint32_t

from blk.limits cimport BlkLimits
from blk.request cimport Request, free_request
from blk.resting cimport is_taken_away, leave_memory, may_stay_recorded, return_to_memory
from blk.state cimport Held, blk_of
from engine.dispatch cimport start_again
from engine.durable cimport sync_error
from engine.engine cimport (
    Engine, IO_DISCARD, IO_FLUSH, Io, IoQueue, PAST_END, append, end_io, make_whole, start_of,
    take_first,
)
from inflight.region cimport is_recorded
from sys.atomics cimport store_relaxed_u32, store_relaxed_u64
from sys.clock cimport now
from sys.usdt cimport probe_hold, probe_submit
from worker.mailbox cimport has_report_room, stage_answer
from worker.parking cimport park_again
from worker.state cimport Worker
from worker.states cimport STOPPING
from worker.vring cimport Vring

cdef extern from "<errno.h>" nogil:
    enum:
        EDQUOT


cdef enum:
    REPORT_HELD = 65            # a worker's report: a request is held, the first of late
    BEGUN_FOR_ONE = 2           # held requests that are begun when one has got through


# ---- what is held ----

cdef inline bint lacks_space(int32_t error) noexcept nogil:
    """Whether an error says that the image has no space."""
    return error == -ENOSPC or error == -EDQUOT


cdef inline bint is_beyond(const BlkLimits *limits, const Io *io) noexcept nogil:
    """Whether an Io lies beyond the disk's end, which was elsewhere when it came."""
    return start_of(io) + io.length > limits.capacity


cdef inline bint may_try_again(const Engine *e, const Io *io) noexcept nogil:
    """Whether an Io that failed can still succeed, and its success would be the truth."""
    if io.result == -EFAULT or (io.result == -EOPNOTSUPP and io.kind == IO_DISCARD):
        return False            # the front end's doing; what the image cannot do
    if io.kind == IO_FLUSH:
        return e.direct
    return e.sync_error == NULL or sync_error(e) == 0 or not io.durable


cdef inline bint is_to_be_held(Worker *w, const Request *q) noexcept nogil:
    """Whether the policy says that a request which failed is held."""
    cdef const BlkLimits *limits = &blk_of(w).limits
    if q.is_final or is_beyond(limits, &q.io) or not is_recorded(&q.vring.inflight):
        return False
    if not may_try_again(&blk_of(w).engine, &q.io):
        return False
    if lacks_space(q.io.result):
        return limits.hold_no_space
    if not limits.hold_errors:
        return False
    return not limits.longest_held or not q.held_since or (
        now() - q.held_since < limits.longest_held
    )


# ---- into the queue, and out of it ----

cdef inline void count_held(Worker *w, int change) noexcept nogil:
    """Note that one request more, or less, is held or being tried again."""
    cdef Held *h = &blk_of(w).held
    if h.count == 0:
        h.is_unreported = True
        store_relaxed_u64(&h.since, now())
    store_relaxed_u32(&h.count, h.count + change)
    store_relaxed_u64(&w.slot.held, h.count)


cdef inline void put_held(Worker *w, Request *q) noexcept nogil:
    """Put a request last among those that are held."""
    cdef Held *h = &blk_of(w).held
    h.kind, h.error, h.offset = q.io.kind, min(q.io.result, 0), q.io.offset
    h.queued += 1
    w.put_off += 1
    if lacks_space(q.io.result):
        store_relaxed_u32(&h.no_space, h.no_space + 1)
    append(&h.queue, &q.io)


cdef inline Request *take_held(Worker *w) noexcept nogil:
    """Take the first one out."""
    cdef Held *h = &blk_of(w).held
    cdef Request *q = <Request *>take_first(&h.queue)
    h.queued -= 1
    w.put_off -= 1
    if lacks_space(q.io.result):
        store_relaxed_u32(&h.no_space, h.no_space - 1)
    return q


cdef inline void free_held(Worker *w, Request *q) noexcept nogil:
    """Forget a request that was held; it stays recorded."""
    count_held(w, -1)
    free_request(q)


cdef inline void start_held(Worker *w, Request *q) noexcept nogil:
    """Begin an Io again, with all of its data."""
    cdef Engine *e = &blk_of(w).engine
    q.io.offset, q.io.left = start_of(&q.io), q.io.length
    q.io.iov, q.io.iov_count = q.data, q.data_count
    if is_beyond(&blk_of(w).limits, &q.io):
        end_io(e, &q.io, PAST_END)
    else:
        probe_submit(q.vring.index, q.chain.id, q.type, q.io.offset, q.io.length)
        start_again(e, &q.io)


cdef inline bint hold(Worker *w, Request *q) noexcept nogil:
    """Keep a request whose Io has failed, as the policy has it: whether that is done.

    One of a vring that stops stays recorded for who serves it next; where nobody will, it is begun
    once more.
    """
    if not is_to_be_held(w, q):
        return False
    probe_hold(q.vring.index, q.chain.id, q.type, q.io.offset, -min(q.io.result, 0))
    make_whole(&q.io)
    if not q.held_since:
        q.held_since = now()
        count_held(w, 1)
    if q.vring.state != STOPPING:
        leave_memory(w, q)
        put_held(w, q)
    elif may_stay_recorded(w, q.vring):
        leave_memory(w, q)
        free_held(w, q)
    elif w.paused:
        return False
    else:
        q.is_final = True
        start_held(w, q)
    return True


cdef inline bint may_begin(const Worker *w, const Vring *r) noexcept nogil:
    """Whether held requests of a vring may be begun again."""
    return not w.paused and r.enabled


cdef inline void begin_held(Worker *w, uint32_t count) noexcept nogil:
    """Begin up to `count` held requests again; each ends in an answer, or is held once more."""
    cdef Held *h = &blk_of(w).held
    cdef Request *q
    cdef uint32_t _
    for _ in range(min(count, h.queued)):
        q = take_held(w)
        if may_begin(w, q.vring) and return_to_memory(w, q):
            start_held(w, q)
        else:
            put_held(w, q)


cdef inline void note_ended(Worker *w, bint through) noexcept nogil:
    """One that was held is answered: have more begun if it got through."""
    count_held(w, -1)
    if through:
        begin_held(w, BEGUN_FOR_ONE)


cdef inline void report_held(Worker *w) noexcept nogil:
    """Have it known that requests are held, once each time that there were none before."""
    cdef Held *h = &blk_of(w).held
    if h.is_unreported and has_report_room(&w.mailbox):
        h.is_unreported = False
        stage_answer(&w.mailbox, 0, 0, REPORT_HELD)


# ---- those that are held no longer ----

cdef inline void end_held(Worker *w, Request *q) noexcept nogil:
    """Have a request answered with the error that it was held for; it is in memory again."""
    q.is_final = True
    end_io(&blk_of(w).engine, &q.io, q.io.result)


cdef inline bint is_overdue(const BlkLimits *limits, const Request *q) noexcept nogil:
    """Whether a request was held for as long as the policy has it, or the policy is another now."""
    if lacks_space(q.io.result):
        return not limits.hold_no_space
    if not limits.hold_errors:
        return True
    return limits.longest_held and now() - q.held_since >= limits.longest_held


cdef inline void end_overdue(Worker *w) noexcept nogil:
    """Have those answered with their errors that were held for long enough."""
    cdef Held *h = &blk_of(w).held
    cdef Request *q
    cdef uint32_t _
    for _ in range(h.queued):
        q = take_held(w)
        if is_overdue(&blk_of(w).limits, q) and return_to_memory(w, q):
            end_held(w, q)
        else:
            put_held(w, q)


cdef inline void end_of_vring(Worker *w, Vring *r) noexcept nogil:
    """Hold nothing of a vring that stops.

    What stays recorded is left to who serves it next.  Else each request is begun once more, and
    answered whatever comes of that; one whose memory is gone has nobody who waits for it.
    """
    cdef Held *h = &blk_of(w).held
    cdef Request *q
    cdef uint32_t _
    for _ in range(h.queued):
        q = take_held(w)
        if q.vring != r:
            put_held(w, q)
        elif may_stay_recorded(w, r) or not return_to_memory(w, q):
            free_held(w, q)
        elif w.paused:
            end_held(w, q)
        else:
            q.is_final = True
            start_held(w, q)


cdef inline void walk_taken_away(Worker *w) noexcept nogil:
    """Have the chains walked again of which an invalidation may have taken something away.

    They ask for translations as any other chain, and fail where there are none.  While data is
    logged they are answered with their errors: what waits for a translation would be lost.
    """
    cdef Held *h = &blk_of(w).held
    cdef Request *q
    cdef uint32_t _
    for _ in range(h.queued):
        q = take_held(w)
        if not is_taken_away(w, q):
            put_held(w, q)
        elif w.log.of_data and return_to_memory(w, q):
            end_held(w, q)
        else:
            park_again(w, q.vring, &q.chain)
            free_held(w, q)
