# SPDX-License-Identifier: Apache-2.0
"""Requests that cannot be carried out: counted, and the first of each kind reported.

A disk that fails may fail everything that comes, so only the first request of a kind is reported
to the control thread, which then looks at the counts, and starts a new round to have one more.
"""

from libc.errno cimport EFAULT
from libc.stdint cimport int32_t, uint32_t, uint64_t

from blk.state cimport Failure, blk_of
from engine.engine cimport IoKind
from sys.atomics cimport load_relaxed_u64, store_relaxed_u64
from worker.mailbox cimport stage_answer
from worker.notify cimport report_fault
from worker.state cimport Worker


cdef inline void note_failure(
    Worker *w, IoKind kind, uint64_t offset, int32_t error
) noexcept nogil:
    """Have it known that a request failed: -errno, or 0 where the image was at its end.

    EFAULT is the front end's doing: what was mapped is memory no more.
    """
    cdef Failure *f = &blk_of(w).failures[<uint32_t>kind]
    cdef uint64_t round = load_relaxed_u64(&blk_of(w).failure_round)
    if error == -EFAULT:
        report_fault(w)
        return
    store_relaxed_u64(&f.count, f.count + 1)
    if f.round == round:
        return
    f.round = round
    f.offset = offset
    f.error = error
    stage_answer(&w.mailbox, 0, 0, <int32_t>kind)
