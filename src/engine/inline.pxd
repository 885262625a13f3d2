# SPDX-License-Identifier: Apache-2.0
"""Requests that are carried out at once, on the worker's own thread and without io_uring."""

from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t

from blk.failures cimport note_failure
from blk.limits cimport ENGINE_INLINE, ENGINE_NULL
from blk.logged cimport give_back_logged
from blk.operation cimport OP_FLUSH, OP_READ, OP_WRITE, Operation
from blk.request cimport unfit_for_direct
from engine.durable cimport sync_result
from sys.uring cimport RWF_DSYNC, iovec
from virtio.dirtylog cimport mark_segments, seldom
from virtio.guestmem cimport GuestMemory
from virtio.layouts cimport BLK_S_IOERR, BLK_S_OK
from virtio.virtq cimport Chain
from worker.state cimport MAX_IOVECS, Worker
from worker.vring cimport Vring, count_answer, give_back

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec *iov, int count, int64_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int count, int64_t offset, int flags)

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    ssize_t pread(int fd, void *buffer, size_t count, int64_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t count, int64_t offset)


cdef inline bint is_plain(const Worker *w, const Operation *op) noexcept nogil:
    """Whether a transfer has one buffer and no flags: the cheaper calls do for it."""
    return op.data_count == 1 and not (
        w.limits.inline_flags or (op.kind == OP_WRITE and w.limits.write_through)
    )


cdef inline ssize_t transfer_plain(Worker *w, const Operation *op) noexcept nogil:
    """Read or write one buffer: the bytes moved, or -1."""
    if op.kind == OP_READ:
        return pread(w.limits.fd, op.data.base, op.data.len, <int64_t>op.offset)
    return pwrite(w.limits.fd, op.data.base, op.data.len, <int64_t>op.offset)


cdef inline ssize_t transfer_vector(Worker *w, const Operation *op) noexcept nogil:
    """Read or write any buffers, up to MAX_IOVECS: the bytes moved, or -1."""
    cdef uint32_t i
    for i in range(op.data_count):
        w.iovecs[i].iov_base = op.data[i].base
        w.iovecs[i].iov_len = op.data[i].len
    if op.kind == OP_READ:
        return preadv2(
            w.limits.fd, w.iovecs, <int>op.data_count, <int64_t>op.offset, w.limits.inline_flags
        )
    return pwritev2(
        w.limits.fd, w.iovecs, <int>op.data_count, <int64_t>op.offset,
        RWF_DSYNC if w.limits.write_through else 0,
    )


cdef inline bint transferred(Worker *w, const Operation *op) noexcept nogil:
    """Whether a read or write could be done whole without waiting.

    A part, or an error, counts as nothing done: io_uring repeats all of it.
    """
    cdef ssize_t n
    if op.data_count > MAX_IOVECS or unfit_for_direct(op, &w.limits):
        return False
    n = transfer_plain(w, op) if is_plain(w, op) else transfer_vector(w, op)
    return n == <ssize_t>op.length


cdef inline bint synced(Worker *w, Operation *op) noexcept nogil:
    """Whether a flush could be done here: not while another sync would hear of its errors.

    A failure is the answer: asked again, the kernel would know of none.
    """
    cdef int32_t result
    if w.syncing or w.first_unsynced != NULL:
        return False
    result = sync_result(w, 0 if fdatasync(w.limits.sync_fd) == 0 else -errno)
    if result < 0:
        note_failure(w, op.kind, op.offset, result)
        op.status = BLK_S_IOERR
    return True


cdef inline bint carried_out(Worker *w, Operation *op) noexcept nogil:
    """Whether an operation that is in order could be done here and now; `op.status` says how."""
    op.status = BLK_S_OK
    if w.limits.engine == ENGINE_NULL:
        return True
    if w.limits.engine != ENGINE_INLINE:
        return False
    if op.kind == OP_READ:
        return transferred(w, op)
    if w.limits.inline_flags:
        return False            # of a file that might wait, only reads are sure not to
    if op.kind == OP_WRITE:
        return transferred(w, op)
    return op.kind == OP_FLUSH and synced(w, op)


cdef inline void answer_logged(
    Worker *w, Vring *r, const Chain *chain, const Operation *op, uint32_t written
) noexcept nogil:
    """Give a chain back as `answer_at_once` does, with all that was written logged."""
    cdef const GuestMemory *memory = w.view.memory
    cdef bint marked = not written or mark_segments(&w.log, memory, op.data, op.data_count)
    give_back_logged(w, r, memory, chain, op.status_byte, op.status, written, marked)


cdef inline void answer_at_once(
    Worker *w, Vring *r, const Chain *chain, const Operation *op
) noexcept nogil:
    """Give the chain of an operation that needs no request its answer."""
    cdef uint32_t data = <uint32_t>op.length if op.kind == OP_READ or op.kind == OP_WRITE else 0
    cdef uint32_t written = data if op.kind == OP_READ else op.written
    count_answer(&r.counters, op.type, data, op.status)
    if seldom(w.log.of_data):
        answer_logged(w, r, chain, op, written)
    else:
        give_back(r, chain, op.status_byte, op.status, written)
