# SPDX-License-Identifier: Apache-2.0
"""A block device as a worker calls it (`worker.state.Device`): chains become I/O, then answers."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from blk.accounting cimport account_run
from blk.answers cimport answer_at_once, answer_ended, fail_chain, status_of
from blk.holding cimport (
    begin_held, end_of_vring, end_overdue, report_held, walk_taken_away,
)
from blk.debts cimport bar_if_owing, lift_bars
from blk.limits cimport BlkLimits
from blk.operation cimport Operation, parse_request
from blk.request cimport (
    BlkVring, Request, blk_vring, free_requests, is_used, next_ranges, take_range,
    take_request,
)
from blk.state cimport Blk, blk_of
from blk.throttle cimport (
    begin_due, has_new_grants, next_turn, stop_waiting, take_rates, throttle, walk_waiting_again,
)
from engine.dispatch cimport begin_turn, complete, drain, end_turn, start, try_at_once
from engine.engine cimport Engine, IO_NONE, Io, end_io
from engine.foreign cimport copy_written
from sys.hints cimport unlikely
from sys.uring cimport (
    IORING_OP_FALLOCATE, IORING_OP_FSYNC, IORING_OP_READ, IORING_OP_READV, IORING_OP_READ_FIXED,
    IORING_OP_TIMEOUT, IORING_OP_URING_CMD, IORING_OP_WRITE, IORING_OP_WRITEV,
    IORING_OP_WRITE_FIXED, io_uring_cqe, operation,
)
from sys.usdt cimport probe_submit
from virtio.guestmem cimport Region
from virtio.virtq cimport Chain
from worker.fetching cimport fetch
from worker.state cimport Device, TAG_DEVICE, Worker, pointer_of, tag_of
from worker.timing cimport look_at_clock
from worker.vring cimport Vring


ctypedef bint (*Throttle)(
    Worker *w, Vring *r, const Operation *op, const Chain *chain
) noexcept nogil
ctypedef void (*OfTurn)(Worker *w) noexcept nogil


cdef extern from *:
    Throttle apart "blkd_apart"(Throttle function) noexcept nogil       # see sys.hints
    OfTurn apart_turn "blkd_apart"(OfTurn function) noexcept nogil


cdef inline void start_request(
    Worker *w, Engine *e, Vring *r, const Operation *op, const Chain *chain
) noexcept nogil:
    """Have the engine do an operation; `answer_ended` answers it."""
    cdef Request *q = take_request(w, r, op, chain)
    if q.ranges_left and not take_range(q):
        end_io(e, &q.io, 0)     # all of them are empty
    else:
        start(e, &q.io)


cdef inline int begin_request(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Start a chain's request: its share of the budget, or -errno if it breaks the vring."""
    cdef Operation op
    cdef Blk *b = blk_of(w)
    cdef int32_t result
    cdef int share = 1
    cdef int rc = parse_request(
        &b.limits, w.segments, chain.segments, &op, next_ranges(r), &r.vq.flaw
    )
    if rc < 0:
        return rc
    if op.io.kind != IO_NONE:
        if unlikely(b.throttle.is_limited) and apart(throttle)(w, r, &op, chain):
            return 1
        probe_submit(r.index, chain.id, op.type, op.io.offset, op.io.length)
        share = try_at_once(&b.engine, &op.io, &result)
        if share == 0:
            start_request(w, &b.engine, r, &op, chain)
            return 1
        op.status = status_of(w, op.io.kind, op.io.offset, result)
    answer_at_once(w, r, chain, &op)
    return share


# ---- what a worker calls ----

cdef inline void open_blk(Worker *w) noexcept nogil:
    """Give each vring its requests, and the engine its worker."""
    cdef Blk *b = blk_of(w)
    cdef uint32_t i
    b.engine.worker = w
    for i in range(w.count):
        w.vrings[i].part = &b.vrings[i]
        b.vrings[i].line = &b.in_flight


cdef inline void configure_blk(Worker *w, const void *limits) noexcept nogil:
    """Check what comes next against other limits, and keep the page's rates."""
    blk_of(w).limits = (<const BlkLimits *>limits)[0]
    take_rates(w)


cdef inline void start_blk(Worker *w, Vring *r) noexcept nogil:
    """Begin with every request free."""
    free_requests(r)
    bar_if_owing(w, r)


cdef inline void begin_turn_blk(Worker *w) noexcept nogil:
    """Begin what has waited long enough, and answer what has ended."""
    cdef Blk *b = blk_of(w)
    begin_turn(&b.engine)
    if unlikely(has_new_grants(b)):
        apart_turn(take_rates)(w)
    if unlikely(b.throttle.has_barred):
        apart_turn(lift_bars)(w)
    if unlikely(b.throttle.queues):
        apart_turn(begin_due)(w)
    answer_ended(w)


cdef inline int serve_blk(Worker *w, Vring *r) noexcept nogil:
    """Start what is available, and answer what of it has ended already: as `fetch`."""
    cdef BlkVring *b = blk_vring(r)
    cdef uint64_t looked_at = look_at_clock(w)
    cdef int rc
    w.seen_at = b.left_at if b.left_at else w.turn_at
    rc = fetch(w, r, begin_request)
    answer_ended(w)
    account_run(w)
    b.left_at = looked_at if rc > 0 and r.wanted else 0
    return rc


cdef inline bint uses_blk(Worker *w, const Region *ranges, uint32_t count) noexcept nogil:
    """Whether a request in flight has a buffer in one of the ranges."""
    cdef uint32_t i
    for i in range(w.started_count):
        if is_used(w.started[i], ranges, count):
            return True
    return False


cdef inline void complete_blk(Worker *w, io_uring_cqe **cqes, uint32_t count) noexcept nogil:
    """Go on with each Io that a completion is for."""
    cdef uint32_t i
    for i in range(count):
        if tag_of(cqes[i].user_data) == TAG_DEVICE:
            complete(&blk_of(w).engine, <Io *>pointer_of(cqes[i].user_data), cqes[i].res)


cdef inline void end_turn_blk(Worker *w) noexcept nogil:
    """Sync once for all that came in this turn, and say what is in flight and until when it waits.
    """
    cdef Blk *b = blk_of(w)
    end_turn(&b.engine)
    if unlikely(b.held.is_unreported):
        report_held(w)
    account_run(w)
    if w.has_begun:
        w.slot.oldest_at = b.in_flight.oldest.begun_at if b.in_flight.oldest != NULL else 0
    w.wake_at = next_turn(w) if unlikely(b.throttle.queues or b.throttle.has_barred) else 0


cdef inline void retry_blk(Worker *w, uint32_t count) noexcept nogil:
    """Begin some held requests again, and answer those that were held for long enough."""
    end_overdue(w)
    begin_held(w, count)


cdef inline void stop_blk(Worker *w, Vring *r) noexcept nogil:
    """Hold nothing of a vring that stops, and have nothing of it wait."""
    end_of_vring(w, r)
    stop_waiting(w, r)


cdef inline void invalidate_blk(Worker *w) noexcept nogil:
    """Hold nothing that names what an invalidation has taken away, and have nothing such wait."""
    walk_taken_away(w)
    walk_waiting_again(w)


cdef inline bint quit_blk(Worker *w) noexcept nogil:
    """Abandon what is in flight: whether a library is still at it."""
    drain(&blk_of(w).engine)
    return blk_of(w).engine.started != NULL


cdef inline void copy_read_blk(
    const Device *d, const uint8_t *base, size_t length, uint8_t *to
) noexcept nogil:
    """Copy what abandoned writes still read."""
    copy_written(&(<const Blk *>d).engine, base, length, to)


cdef inline void be_blk(Device *d) noexcept nogil:
    """Have a worker call these functions."""
    d.device_size, d.worker_size, d.vring_size = sizeof(Device), sizeof(Worker), sizeof(Vring)
    d.operations = (
        operation(IORING_OP_READ) | operation(IORING_OP_READV) | operation(IORING_OP_READ_FIXED)
        | operation(IORING_OP_WRITE) | operation(IORING_OP_WRITEV)
        | operation(IORING_OP_WRITE_FIXED) | operation(IORING_OP_FSYNC)
        | operation(IORING_OP_FALLOCATE) | operation(IORING_OP_URING_CMD)
        | operation(IORING_OP_TIMEOUT)
    )
    d.open, d.configure, d.start = open_blk, configure_blk, start_blk
    d.begin_turn, d.end_turn = begin_turn_blk, end_turn_blk
    d.serve, d.begin, d.complete = serve_blk, begin_request, complete_blk
    d.fail, d.uses = fail_chain, uses_blk
    d.retry, d.stop, d.invalidate = retry_blk, stop_blk, invalidate_blk
    d.quit, d.copy_read = quit_blk, copy_read_blk
