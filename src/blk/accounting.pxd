# SPDX-License-Identifier: Apache-2.0
"""What is counted and measured of each answer: in its vring, and in the worker's slot.

Equal requests that are answered at once, one behind the other, are counted together: in a turn of a
busy vring all are mostly equal.
"""

from libc.errno cimport EDQUOT, EIO, ENOSPC
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from blk.counters cimport count_answers
from blk.layouts cimport (
    BLK_S_OK, BLK_S_UNSUPP, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES,
    BlkRange, SECTOR_SHIFT,
)
from blk.operation cimport Operation
from blk.request cimport Request, Run, blk_vring, next_ranges
from blk.slow cimport is_slow, keep_slow
from blk.state cimport blk_of
from engine.engine cimport ENGINE_NULL, IO_NONE, start_of
from figures.measuring cimport Times, measure
from figures.slot cimport (
    OF_DISCARD, OF_FLUSH, OF_OTHER, OF_READ, OF_WRITE, OF_WRITE_ZEROES,
    Operation as CountedOperation, add,
)
from sys.clock cimport now
from sys.hints cimport unlikely
from worker.state cimport Worker
from worker.vring cimport Vring


cdef inline CountedOperation operation_of(uint32_t type) noexcept nogil:
    """What requests of virtio-blk's `type` are counted as."""
    if type == BLK_T_IN:
        return OF_READ
    if type == BLK_T_OUT:
        return OF_WRITE
    if type == BLK_T_FLUSH:
        return OF_FLUSH
    if type == BLK_T_DISCARD:
        return OF_DISCARD
    if type == BLK_T_WRITE_ZEROES:
        return OF_WRITE_ZEROES
    return OF_OTHER


cdef inline void account_error(Worker *w, uint8_t status, int32_t result) noexcept nogil:
    """Count an error by its kind: by the engine's result, or the status where there was no I/O."""
    if status == BLK_S_UNSUPP:
        add(&w.slot.errors.unsupported, 1)
    elif result == 0:
        add(&w.slot.errors.refused, 1)
    elif result == -ENOSPC or result == -EDQUOT:
        add(&w.slot.errors.no_space, 1)
    elif result == -EIO:
        add(&w.slot.errors.io, 1)
    else:
        add(&w.slot.errors.other, 1)


cdef inline void account_run(Worker *w) noexcept nogil:
    """Count the equal requests that were answered since; they are to be published."""
    cdef Run *run = &blk_of(w).run
    cdef Times times
    if run.count == 0:
        return
    w.has_served = True
    times.ring, times.throttle, times.disk = w.now - w.seen_at, 0, 0
    count_answers(&blk_vring(run.vring).counters, run.type, run.bytes, BLK_S_OK, run.count)
    measure(w.slot, operation_of(run.type), run.bytes, run.count, &times)
    run.count = 0


cdef inline void account_instant(
    Worker *w, Vring *r, uint32_t type, uint64_t bytes
) noexcept nogil:
    """Count a request that was answered as soon as it was begun, and well."""
    cdef Run *run = &blk_of(w).run
    if run.type == type and run.bytes == bytes and run.vring == r:
        run.count += 1
        return
    account_run(w)
    run.vring, run.type, run.bytes, run.count = r, type, bytes, 1


cdef inline void account_single(
    Worker *w, Vring *r, uint32_t type, uint64_t bytes, uint8_t status, uint64_t begun_at,
    uint64_t offset,
) noexcept nogil:
    """Count a request that was begun at that time, and is answered now."""
    cdef Times times
    times.ring, times.throttle, times.disk = begun_at - w.seen_at, 0, w.now - begun_at
    w.has_served = True
    count_answers(&blk_vring(r).counters, type, bytes, status, 1)
    measure(w.slot, operation_of(type), bytes, 1, &times)
    if unlikely(is_slow(w, &times)):
        keep_slow(w, r.index, type, offset, bytes, &times, 0, False, False)


cdef inline uint64_t bytes_of(const BlkRange *ranges, uint32_t count) noexcept nogil:
    """How much DISCARD or WRITE_ZEROES is for."""
    cdef uint64_t bytes = 0
    cdef uint32_t i
    for i in range(count):
        bytes += <uint64_t>ranges[i].sectors << SECTOR_SHIFT
    return bytes


cdef inline void account_at_once(Worker *w, Vring *r, const Operation *op) noexcept nogil:
    """Count a request that is answered while it is begun."""
    cdef uint64_t bytes = op.io.length
    cdef uint64_t begun_at = w.now
    cdef bint is_instant = blk_of(w).engine.kind == ENGINE_NULL or op.io.kind == IO_NONE
    if unlikely(op.ranges) and op.status == BLK_S_OK:
        bytes = bytes_of(next_ranges(r), op.ranges)
    if not unlikely(op.status != BLK_S_OK or not is_instant):
        account_instant(w, r, op.type, bytes)
        return
    if is_instant:
        account_error(w, op.status, 0)
    else:
        w.now, w.clock_is_read = now(), False
    account_single(w, r, op.type, bytes, op.status, begun_at, op.io.offset)


cdef inline void account_request(
    Worker *w, const Request *q, uint64_t bytes, uint8_t status
) noexcept nogil:
    """Count a request whose I/O has ended, and which is answered now."""
    cdef Times times
    times.ring = q.begun_at - q.seen_at
    times.throttle = q.started_at - q.begun_at
    times.disk = w.now - q.started_at
    w.has_served = True
    count_answers(&blk_vring(q.vring).counters, q.type, bytes, status, 1)
    measure(w.slot, operation_of(q.type), bytes, 1, &times)
    if unlikely(is_slow(w, &times)):
        keep_slow(
            w, q.vring.index, q.type, start_of(&q.io), bytes, &times, q.io.result,
            q.io.bounce != NULL, q.durable
        )
