# SPDX-License-Identifier: Apache-2.0
"""What a guest is answered: at once, or for a request whose I/O the engine has ended."""

from libc.errno cimport EINVAL, EOPNOTSUPP
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from blk.accounting cimport (
    account_at_once, account_error, account_request, account_single,
)
from blk.failures cimport note_failure
from blk.holding cimport hold, is_beyond, note_ended
from blk.layouts cimport BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP
from blk.logged cimport give_back_logged
from blk.operation cimport BLK_FLAW_NO_STATUS, Operation
from blk.request cimport Request, give_request_back, take_range
from blk.state cimport blk_of
from engine.dispatch cimport start
from engine.engine cimport (
    Engine, IO_DISCARD, IO_READ, IO_WRITE, IoKind, PAST_END, end_io, make_whole, take_first,
)
from sys.hints cimport unlikely
from sys.usdt cimport probe_complete
from virtio.dirtylog cimport mark_iovecs, mark_segments
from virtio.flaw cimport found_flaw
from virtio.guestmem cimport GuestMemory
from virtio.virtq cimport Chain, Segment
from worker.state cimport Worker
from worker.vring cimport Vring, give_back


cdef enum:
    UNKNOWN_TYPE = 0xffffffff   # of a request whose header was not read: counted as another


cdef inline uint8_t status_of(
    Worker *w, IoKind kind, uint64_t offset, int32_t result
) noexcept nogil:
    """The status for what an engine's result says; a failure is noted."""
    cdef uint8_t status
    if result == 0:
        return BLK_S_OK
    note_failure(w, kind, offset, min(result, 0))
    # A discard that the image cannot do was offered: the image has changed.
    status = BLK_S_UNSUPP if result == -EOPNOTSUPP and kind == IO_DISCARD else BLK_S_IOERR
    account_error(w, status, result)
    return status


cdef inline void answer_logged(
    Worker *w, Vring *r, const Chain *chain, const Operation *op, uint32_t written
) noexcept nogil:
    """Give a chain back as `answer_at_once` does, with all that was written logged."""
    cdef const GuestMemory *memory = w.view.memory
    cdef bint marked = (
        not written or mark_segments(&w.log, memory, op.io.data, op.io.data_count)
    )
    give_back_logged(w, r, memory, chain, op.status_byte, op.status, written, marked)


cdef inline void answer_at_once(
    Worker *w, Vring *r, const Chain *chain, const Operation *op
) noexcept nogil:
    """Give the chain of an operation that needs no request its answer."""
    cdef uint32_t data = <uint32_t>op.io.length
    cdef uint32_t written = data if op.io.kind == IO_READ else op.written
    account_at_once(w, r, op)
    probe_complete(r.index, chain.id, op.type, data, op.status)
    if unlikely(w.log.of_data):
        answer_logged(w, r, chain, op, written)
    else:
        op.status_byte[0] = op.status
        give_back(r, chain, written + 1)        # and the status


cdef inline int fail_chain(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Answer a chain with an error whose buffers may not all be used: 1, or -EINVAL.

    Its status is its last byte to be written, and the only one that is touched.
    """
    cdef const Segment *last = &w.segments[chain.segments - 1]
    cdef uint8_t *status_byte
    if chain.segments == 0 or not last.device_writes:
        return found_flaw(&r.vq.flaw, BLK_FLAW_NO_STATUS, 0, chain.segments, 0, EINVAL)
    status_byte = last.base + last.len - 1
    account_error(w, BLK_S_IOERR, 0)
    account_single(w, r, UNKNOWN_TYPE, 0, BLK_S_IOERR, w.now, 0)
    probe_complete(r.index, chain.id, UNKNOWN_TYPE, 0, BLK_S_IOERR)
    if w.log.of_data:
        give_back_logged(w, r, w.view.memory, chain, status_byte, BLK_S_IOERR, 0, True)
    else:
        status_byte[0] = BLK_S_IOERR
        give_back(r, chain, 1)
    return 1


cdef inline void end_logged(
    Worker *w, Request *q, uint8_t status, uint32_t written
) noexcept nogil:
    """Give a request's chain back with all logged that its I/O has written, or may have."""
    cdef bint marked = True
    if q.io.kind == IO_READ:
        make_whole(&q.io)
        marked = mark_iovecs(&w.log, q.pinned.memory, q.data, q.data_count)
    give_back_logged(
        w, q.vring, q.pinned.memory, &q.chain, q.status_byte, status, written, marked
    )


cdef inline void end_request(Worker *w, Request *q) noexcept nogil:
    """Give the guest its answer; it is seen when the ring is published."""
    cdef uint8_t status = status_of(w, q.io.kind, q.io.offset, q.io.result)
    cdef uint64_t bytes = q.asked - q.io.left
    cdef uint32_t written = <uint32_t>bytes if q.io.kind == IO_READ else 0
    if unlikely(w.log.of_data):
        end_logged(w, q, status, written)
    else:
        q.status_byte[0] = status
        give_back(q.vring, &q.chain, written + 1)
    account_request(w, q, bytes, status)
    probe_complete(q.vring.index, q.chain.id, q.type, bytes, status)
    give_request_back(w, q)


cdef inline void answer_failed(Worker *w, Engine *e, Request *q) noexcept nogil:
    """Go on with a request that has failed, now or before: it may be held."""
    cdef bint through = q.io.result == 0, was_held
    if through and q.ranges_left and take_range(q):
        if is_beyond(&blk_of(w).limits, &q.io):
            end_io(e, &q.io, PAST_END)      # the disk has shrunk since it came
        else:
            start(e, &q.io)
    elif through or not hold(w, q):
        was_held = q.held_since != 0
        end_request(w, q)
        if was_held:
            note_ended(w, through)


cdef inline void answer_ended(Worker *w) noexcept nogil:
    """Go on with every request whose I/O has ended: its next range, or its answer."""
    cdef Engine *e = &blk_of(w).engine
    cdef Request *q
    while e.ended.first != NULL:
        q = <Request *>take_first(&e.ended)
        if unlikely(q.io.result != 0 or q.held_since):
            answer_failed(w, e, q)
        elif q.ranges_left and take_range(q):
            start(e, &q.io)
        else:
            end_request(w, q)
