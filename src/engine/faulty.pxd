# SPDX-License-Identifier: Apache-2.0
"""Faults on order, of an image that is called faulty: for tests and drills.

A rule strikes each `every`-th request of its kinds that touches its range of the disk.
"""

from libc.errno cimport EIO
from libc.stdint cimport uint32_t

from blk.failures cimport note_failure
from blk.limits cimport FAULT_DELAY, FAULT_FAIL, Fault
from blk.operation cimport OP_READ, OP_WRITE, Operation, answer
from blk.request cimport Request, STEP_DELAY
from engine.uring cimport sent
from sys.uring cimport io_uring_prep_timeout, io_uring_sqe
from virtio.layouts cimport BLK_S_IOERR
from worker.state cimport Worker, next_sqe


cdef enum:
    WHOLE_DISK = 0x7fffffffffffffff     # the end of a rule that names no part


cdef inline bint touches(const Fault *f, const Operation *op) noexcept nogil:
    """Whether a rule is about an operation; one for a part of the disk is for transfers only."""
    if not f.kinds & (<uint32_t>1 << op.kind):
        return False
    if f.start == 0 and f.end == WHOLE_DISK:
        return True
    if op.kind != OP_READ and op.kind != OP_WRITE:
        return False
    return op.offset < f.end and op.offset + op.length > f.start


cdef inline Fault *strike(Worker *w, Operation *op) noexcept nogil:
    """The rule that strikes an operation, or NULL; one that is to fail becomes an answer."""
    cdef uint32_t i
    cdef Fault *f
    for i in range(w.limits.fault_count):
        f = &w.limits.faults[i]
        if not touches(f, op):
            continue
        w.fault_hits[i] += 1
        if w.fault_hits[i] % f.every:
            continue
        if f.action == FAULT_FAIL:
            note_failure(w, op.kind, op.offset, -EIO)
            answer(op, BLK_S_IOERR)
        return f
    return NULL


cdef inline bint put_off(Worker *w, Request *q, Fault *f) noexcept nogil:
    """Have a request wait if its fault is a delay: whether it does."""
    cdef io_uring_sqe *sqe
    if f.action != FAULT_DELAY:
        return False
    sqe = next_sqe(w)
    io_uring_prep_timeout(sqe, &f.delay, 0, 0)
    sent(q, STEP_DELAY, sqe)
    return True
