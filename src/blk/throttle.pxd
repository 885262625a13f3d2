# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for a rate: queued by vring and direction, begun when their time has come.

They are in flight: recorded, their memory pinned.  Only the first of a queue has taken places, so
vrings share a rate evenly however much each has queued.

Nobody else waits for a rate.  When guest memory changes they are at rest (`blk.resting`), and what
an invalidation has taken away is walked again.  Those of a vring that stops, of a worker that
pauses, and all that could not stay recorded, are begun at once and take their places all the same:
what comes later waits the longer for it (`blk.debts`).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from blk.accounting cimport bytes_of
from blk.budgets cimport (
    Cost, DIRECTIONS, Direction, Places, READS, UNLIMITED, WRITES, add_places, cost_of,
    direction_of, lay_out_paces, place_request, take_lines,
)
from blk.debts cimport bar_if_owing, next_lifted, owes_much
from blk.limits_page cimport DIMENSIONS, LimitsPage, Share
from blk.operation cimport Operation
from blk.request cimport (
    Request, ThrottleQueue, blk_vring, free_request, take_range, take_request,
)
from blk.resting cimport is_taken_away, leave_memory, may_stay_recorded, return_to_memory
from blk.state cimport Blk, Throttle, blk_of
from engine.dispatch cimport start, try_at_once
from engine.engine cimport Engine, Io, IoKind, IoSpec, append, end_io, take_first
from sys.atomics cimport (
    fetch_add_u32, fetch_add_u64, load_acquire_u64, load_relaxed_u32, load_relaxed_u64,
    store_relaxed_u64,
)
from sys.usdt cimport probe_release, probe_submit, probe_throttle
from virtio.virtq cimport Chain
from worker.parking cimport park_again
from worker.state cimport Worker, let_go
from worker.vring cimport Vring

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buffer, size_t count)


cdef enum:
    LOOK_AT_GRANTS = 10000000   # nanoseconds: a grant that may grow is looked at so often
    LOOK_FOR_MEMORY = 100000000     # ... and so often memory of the guest that is not there


# ---- what the group knows of who waits ----

cdef inline void ask_for_more(Throttle *t, uint64_t present) noexcept nogil:
    """Have the supervisor divide anew, but not more often than it would."""
    cdef uint64_t one = 1
    if t.grants_fd < 0 or present - t.asked < <uint64_t>LOOK_AT_GRANTS:
        return
    t.asked = present
    write(t.grants_fd, &one, sizeof(one))


cdef inline void note_waiting(
    Blk *b, uint32_t before, uint32_t after, uint64_t present
) noexcept nogil:
    """Have it known in which dimensions a queue waits for a grant, a bit each; `before` was."""
    cdef uint32_t i, bit
    cdef Share *share
    if after:
        ask_for_more(&b.throttle, present)
    if before == after:
        return
    for i in range(<uint32_t>DIMENSIONS):
        bit = <uint32_t>1 << i
        share = &b.page.shares[i]
        if after & ~before & bit:
            fetch_add_u64(&share.waiting, 1)
        elif before & ~after & bit and load_relaxed_u64(&share.waiting):
            fetch_add_u64(&share.waiting, <uint64_t>-1)     # not if another process began anew


cdef inline void note_waits(Blk *b, uint32_t granted) noexcept nogil:
    """Count a request that has to wait for grants, a bit a dimension."""
    cdef uint32_t i
    for i in range(<uint32_t>DIMENSIONS):
        if granted >> i & 1:
            fetch_add_u64(&b.page.shares[i].waits, 1)


# ---- the first of a queue ----

cdef inline uint64_t place_first(
    Blk *b, Direction direction, IoKind kind, uint64_t length, uint64_t since, uint64_t present,
    Places *places,
) noexcept nogil:
    """Give a request its places that has waited since then: when it may begin."""
    cdef Cost cost = cost_of(b.page.iops_size, kind, length)
    return place_request(&b.throttle.paces[<int>direction], &cost, since, present, places)


cdef inline void schedule(
    Blk *b, ThrottleQueue *queue, Direction direction, uint64_t present
) noexcept nogil:
    """Find out when the first of a queue may begin, whatever places it has already."""
    cdef const Request *first = <const Request *>queue.waiting.first
    cdef uint32_t before = queue.places.granted, taken = queue.places.taken
    queue.start = place_first(
        b, direction, first.io.kind, first.io.length, first.begun_at, present, &queue.places
    )
    note_waiting(b, before, queue.places.granted, present)
    if taken == 0 and queue.places.granted:
        note_waits(b, queue.places.granted)


cdef inline void begin_queue(Blk *b) noexcept nogil:
    """A queue has its first request."""
    b.throttle.queues += 1
    fetch_add_u32(&b.page.waiting, 1)


cdef inline void end_queue(Blk *b, ThrottleQueue *queue, uint64_t present) noexcept nogil:
    """A queue is empty."""
    b.throttle.queues -= 1
    if load_relaxed_u32(&b.page.waiting):
        fetch_add_u32(&b.page.waiting, <uint32_t>-1)        # not if another process began anew
    note_waiting(b, queue.places.granted, 0, present)
    queue.places.granted = 0


cdef inline bint throttle(
    Worker *w, Vring *r, const Operation *op, const Chain *chain
) noexcept nogil:
    """Have a request wait if a rate says so, behind all of its vring that do: whether it does."""
    cdef Blk *b = blk_of(w)
    cdef Direction direction = direction_of(op.io.kind)
    cdef ThrottleQueue *queue
    cdef Request *q
    cdef uint64_t present
    if direction == UNLIMITED or b.throttle.paces[<int>direction].count == 0:
        return False
    present = w.now
    queue = &blk_vring(r).throttled[<int>direction]
    if queue.waiting.first == NULL:
        queue.places.taken = 0
        queue.start = place_first(
            b, direction, op.io.kind, op.io.length, present, present, &queue.places
        )
        if queue.start <= present:
            return False
        begin_queue(b)
        note_waiting(b, 0, queue.places.granted, present)
        note_waits(b, queue.places.granted)
    q = take_request(w, r, op, chain)
    probe_throttle(r.index, chain.id, op.type, op.io.offset, op.io.length)
    q.started_at = 0
    append(&queue.waiting, &q.io)
    store_relaxed_u64(&w.slot.throttled, w.slot.throttled + 1)
    return True


# ---- beginning ----

cdef inline bint begin_at_once(Worker *w, Engine *e, Request *q) noexcept nogil:
    """Do a request that has waited at once if its engine can: whether it could."""
    cdef IoSpec spec
    cdef uint32_t i
    cdef int32_t result
    spec.kind, spec.durable = q.io.kind, q.durable
    spec.offset, spec.length = q.io.offset, q.io.length
    spec.data, spec.data_count = w.segments, q.data_count
    for i in range(q.data_count):       # no chain is walked now
        spec.data[i].base = <uint8_t *>q.data[i].iov_base
        spec.data[i].len = <uint32_t>q.data[i].iov_len
    if not try_at_once(e, &spec, &result):
        return False
    if q.ranges_left:
        q.asked = bytes_of(q.range, q.ranges_left)
    q.io.left = q.ranges_left = 0
    end_io(e, &q.io, result)
    return True


cdef inline Request *take_waiting(Worker *w, ThrottleQueue *queue) noexcept nogil:
    """Take the first request out of a queue."""
    store_relaxed_u64(&w.slot.throttled, w.slot.throttled - 1)
    return <Request *>take_first(&queue.waiting)


cdef inline void begin_first(
    Worker *w, Vring *r, ThrottleQueue *queue, uint64_t present
) noexcept nogil:
    """Have the engine do the first request of a queue."""
    cdef Engine *e = &blk_of(w).engine
    cdef Request *q = take_waiting(w, queue)
    q.started_at = present
    probe_release(r.index, q.chain.id, q.type, q.io.length, present - q.begun_at)
    probe_submit(r.index, q.chain.id, q.type, q.io.offset, q.io.length)
    if begin_at_once(w, e, q):
        return
    if q.ranges_left and not take_range(q):
        end_io(e, &q.io, 0)     # all of them are empty
    else:
        start(e, &q.io)


cdef inline void follow(
    Worker *w, ThrottleQueue *queue, Direction direction, uint64_t present
) noexcept nogil:
    """Give the request that is the first of a queue now its places, if there is one."""
    queue.places.taken = 0
    if queue.waiting.first == NULL:
        end_queue(blk_of(w), queue, present)
    else:
        schedule(blk_of(w), queue, direction, present)


cdef inline void begin(
    Worker *w, Vring *r, ThrottleQueue *queue, Direction direction, uint64_t present
) noexcept nogil:
    """Begin the first request of a queue, perhaps before its time.

    Who serves the disk may pause it as often as is needed: nothing is owed for that.
    """
    if queue.start > present and not w.paused:
        add_places(&queue.owed, &queue.places)
    begin_first(w, r, queue, present)
    follow(w, queue, direction, present)


cdef inline bint is_in_memory(Worker *w, Request *q) noexcept nogil:
    """Whether a request is in memory, where it came back to from its rest if need be."""
    if q.pinned != NULL:
        return True
    if not return_to_memory(w, q):
        return False
    w.put_off -= 1
    return True


cdef inline bint go_on(
    Worker *w, Vring *r, ThrottleQueue *queue, Direction direction, bint early, uint64_t present
) noexcept nogil:
    """Begin the first request of a queue if its time has come, or `early`: whether it was."""
    cdef Request *first = <Request *>queue.waiting.first
    if first == NULL or not (early or queue.start <= present):
        return False
    if not is_in_memory(w, first):
        queue.start = present + LOOK_FOR_MEMORY
        return False
    begin(w, r, queue, direction, present)
    return True


# ---- what nobody waits for ----

cdef inline void leave_old_memory(Worker *w, ThrottleQueue *queue) noexcept nogil:
    """Have those of a queue at rest that are in memory which is to go."""
    cdef Request *q = <Request *>queue.waiting.first
    while q != NULL:
        if q.pinned != NULL and q.pinned != w.view:
            leave_memory(w, q)
            w.put_off += 1
        q = <Request *>q.io.next


cdef inline bint is_awaited(const Worker *w) noexcept nogil:
    """Whether somebody waits until memory is touched no more."""
    return w.old_views != NULL or (w.iotlb != NULL and w.iotlb.ticket)


cdef inline bint go_on_with(Worker *w, Vring *r, uint64_t present) noexcept nogil:
    """Begin the first of each queue of a vring if it may: whether one was."""
    cdef ThrottleQueue *queues = blk_vring(r).throttled
    cdef bint stays = may_stay_recorded(w, r), begun
    cdef bint early = w.paused or (not stays and is_awaited(w))
    if stays and w.old_views != NULL:
        leave_old_memory(w, &queues[<int>READS])
        leave_old_memory(w, &queues[<int>WRITES])
    begun = go_on(w, r, &queues[<int>READS], READS, early, present)
    begun |= go_on(w, r, &queues[<int>WRITES], WRITES, early, present)
    if early and begun:
        bar_if_owing(w, r)
    return begun


cdef inline void begin_due(Worker *w) noexcept nogil:
    """Begin all whose time has come, one of each vring after the other."""
    cdef uint64_t present = w.now
    cdef bint begun = True
    cdef uint32_t i
    while begun:
        begun = False
        for i in range(w.started_count):
            begun |= go_on_with(w, w.started[i], present)


cdef inline void forget(Worker *w, Request *q) noexcept nogil:
    """Have a request that was taken out of its queue be none; it stays recorded."""
    if q.pinned != NULL:
        let_go(w, q.vring, q.pinned)
    else:
        w.put_off -= 1
    free_request(q)


cdef inline void stop_first(
    Worker *w, Vring *r, ThrottleQueue *queue, Direction direction, bint stays
) noexcept nogil:
    """Have the first request of a queue not wait, since its vring stops.

    It `stays` recorded for who serves the vring next, or is begun; one whose memory is gone has
    nobody who waits for it.
    """
    cdef Request *first = <Request *>queue.waiting.first
    if not stays and is_in_memory(w, first):
        begin(w, r, queue, direction, w.now)
        return
    forget(w, take_waiting(w, queue))
    if queue.waiting.first == NULL:
        end_queue(blk_of(w), queue, w.now)      # else the next one has its places


cdef inline void stop_waiting(Worker *w, Vring *r) noexcept nogil:
    """Have nothing of a vring wait that stops."""
    cdef bint stays = may_stay_recorded(w, r) and owes_much(w, r)
    cdef ThrottleQueue *queue
    cdef uint32_t d
    for d in range(<uint32_t>DIRECTIONS):
        queue = &blk_vring(r).throttled[d]
        while queue.waiting.first != NULL:
            stop_first(w, r, queue, <Direction>d, stays)


cdef inline bint may_wait_on(Worker *w, Request *q) noexcept nogil:
    """Whether an invalidation of the IOTLB leaves a request as it is.

    One that could not stay recorded is begun before the invalidation is answered.
    """
    return not is_taken_away(w, q) if may_stay_recorded(w, q.vring) else is_in_memory(w, q)


cdef inline void walk_queue_again(Worker *w, ThrottleQueue *queue) noexcept nogil:
    """Have those of a queue walked again of which an invalidation may have taken something away."""
    cdef ThrottleQueue left = queue[0]
    cdef Request *q
    queue.waiting.first = NULL
    while left.waiting.first != NULL:
        q = <Request *>left.waiting.first
        if may_wait_on(w, q):
            append(&queue.waiting, take_first(&left.waiting))
        else:
            take_waiting(w, &left)
            park_again(w, q.vring, &q.chain)
            forget(w, q)


cdef inline void walk_waiting_again(Worker *w) noexcept nogil:
    """Have nothing wait that names what an invalidation may have taken away."""
    cdef ThrottleQueue *queue
    cdef const Io *first
    cdef uint32_t i, d
    for i in range(w.started_count):
        for d in range(<uint32_t>DIRECTIONS):
            queue = &blk_vring(w.started[i]).throttled[d]
            first = queue.waiting.first
            walk_queue_again(w, queue)
            if queue.waiting.first != first:
                follow(w, queue, <Direction>d, w.now)


# ---- rates that change, and when to look again ----

cdef inline void take_rates(Worker *w) noexcept nogil:
    """Keep the page's rates from now on, also what waits already."""
    cdef Blk *b = blk_of(w)
    cdef Throttle *t = &b.throttle
    cdef ThrottleQueue *queue
    cdef uint64_t present = w.now
    cdef uint32_t i, d
    t.grants = load_acquire_u64(&b.page.grants)
    take_lines(b.page, t.lines)
    t.is_limited = False
    for d in range(<uint32_t>DIRECTIONS):
        lay_out_paces(&t.paces[d], b.page, t.lines, <Direction>d)
        t.is_limited |= t.paces[d].count != 0
    for i in range(w.started_count if t.queues else 0):
        for d in range(<uint32_t>DIRECTIONS):
            queue = &blk_vring(w.started[i]).throttled[d]
            if queue.waiting.first != NULL:
                schedule(b, queue, <Direction>d, present)


cdef inline bint has_new_grants(const Blk *b) noexcept nogil:
    """Whether the group has granted something since the rates were taken."""
    return load_relaxed_u64(&b.page.grants) != b.throttle.grants


cdef inline uint64_t earlier(const ThrottleQueue *queue, uint64_t when) noexcept nogil:
    """When a queue needs to be looked at, or `when`, whichever comes first."""
    return min(queue.start, when) if queue.waiting.first != NULL else when


cdef inline uint64_t next_start(const Worker *w) noexcept nogil:
    """When something that waits may begin, in nanoseconds, or a grant may have grown."""
    cdef uint64_t when = <uint64_t>-1
    cdef uint32_t i, d, granted = 0
    cdef const ThrottleQueue *queue
    for i in range(w.started_count):
        for d in range(<uint32_t>DIRECTIONS):
            queue = &blk_vring(w.started[i]).throttled[d]
            when = earlier(queue, when)
            granted |= queue.places.granted
    return min(when, w.now + LOOK_AT_GRANTS) if granted else when


cdef inline uint64_t next_turn(const Worker *w) noexcept nogil:
    """When something may begin or be fetched that may not yet, in nanoseconds."""
    return min(next_start(w), next_lifted(w))
