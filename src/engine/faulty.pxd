# SPDX-License-Identifier: Apache-2.0
"""The engine `faulty`, in front of another: faults on order, for tests and drills.

A rule strikes each `every`-th Io of its kinds that touches its range of the disk.
"""

from libc.stdint cimport uint32_t, uint64_t

from engine.engine cimport (
    Engine, FAULT_DELAY, FAULT_FAIL, FAULT_SHORTEN, Fault, IO_READ, IO_WRITE, Io, IoKind,
    STEP_DELAY, end_io,
)
from engine.uring cimport sent
from sys.uring cimport io_uring_prep_timeout, io_uring_sqe
from worker.state cimport next_sqe


cdef enum:
    WHOLE_DISK = 0x7fffffffffffffff     # the end of a rule that names no part


cdef inline bint is_touched(
    const Fault *f, IoKind kind, uint64_t offset, uint64_t length
) noexcept nogil:
    """Whether a rule is about an Io; one for a part of the disk is for transfers only."""
    if not f.kinds & (<uint32_t>1 << kind):
        return False
    if f.start == 0 and f.end == WHOLE_DISK:
        return True
    if kind != IO_READ and kind != IO_WRITE:
        return False
    return offset < f.end and offset + length > f.start


cdef inline bint strike(
    Engine *e, IoKind kind, uint64_t offset, uint64_t length
) noexcept nogil:
    """Find the rule that strikes the Io to be started next, and keep it: whether there is one."""
    cdef uint32_t i
    cdef Fault *f
    for i in range(e.fault_count):
        f = &e.faults[i]
        if not is_touched(f, kind, offset, length):
            continue
        e.fault_hits[i] += 1
        if e.fault_hits[i] % f.every == 0 and e.fault_hits[i] // f.every <= f.most:
            e.struck = f
            return True
    return False


cdef inline bint start_faulty(Engine *e, Io *io) noexcept nogil:
    """Do to an Io as the rule has it that has struck: whether it is not to be started now."""
    cdef Fault *f = e.struck
    cdef io_uring_sqe *sqe
    e.struck = NULL
    if f.action == FAULT_FAIL:
        end_io(e, io, f.error)
    elif f.action == FAULT_DELAY:
        sqe = next_sqe(e.worker)
        io_uring_prep_timeout(sqe, &f.delay, 0, 0)
        sent(io, STEP_DELAY, sqe)
    else:
        io.shorten = True
        return False
    return True
