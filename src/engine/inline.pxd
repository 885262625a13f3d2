# SPDX-License-Identifier: Apache-2.0
"""The engine `inline`: what cannot wait is done at once, by a plain call on the worker's thread."""

from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t

from engine.durable cimport sync_result
from engine.engine cimport Engine, IO_FLUSH, IO_READ, IO_WRITE, IoSpec, MAX_IOVECS
from sys.uring cimport RWF_DSYNC, iovec

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec *iov, int count, int64_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int count, int64_t offset, int flags)

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    ssize_t pread(int fd, void *buffer, size_t count, int64_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t count, int64_t offset)


cdef inline bint is_unfit_at_once(const Engine *e, const IoSpec *t) noexcept nogil:
    """Whether direct I/O would refuse some buffer, see `uring.is_unfit`."""
    cdef size_t addresses = 0, lengths = 0
    cdef uint32_t i
    if e.memory_mask == 0:
        return False
    for i in range(t.data_count):
        addresses |= <size_t>t.data[i].base
        lengths |= t.data[i].len
    return (addresses & e.memory_mask) != 0 or (lengths & e.block_mask) != 0


cdef inline bint is_plain(const Engine *e, const IoSpec *t) noexcept nogil:
    """Whether a transfer has one buffer and no flags: the cheaper calls do for it."""
    return t.data_count == 1 and not (e.inline_flags or t.durable)


cdef inline ssize_t transfer_plain(Engine *e, const IoSpec *t) noexcept nogil:
    """Read or write one buffer: the bytes moved, or -1."""
    if t.kind == IO_READ:
        return pread(e.fd, t.data.base, t.data.len, <int64_t>t.offset)
    return pwrite(e.fd, t.data.base, t.data.len, <int64_t>t.offset)


cdef inline ssize_t transfer_vector(Engine *e, const IoSpec *t) noexcept nogil:
    """Read or write any buffers, up to MAX_IOVECS: the bytes moved, or -1."""
    cdef uint32_t i
    for i in range(t.data_count):
        e.iovecs[i].iov_base = t.data[i].base
        e.iovecs[i].iov_len = t.data[i].len
    if t.kind == IO_READ:
        return preadv2(e.fd, e.iovecs, <int>t.data_count, <int64_t>t.offset, e.inline_flags)
    return pwritev2(
        e.fd, e.iovecs, <int>t.data_count, <int64_t>t.offset, RWF_DSYNC if t.durable else 0
    )


cdef inline bint try_transfer(Engine *e, const IoSpec *t) noexcept nogil:
    """Read or write without waiting: whether all of it was done.

    A part, or an error, counts as nothing done: io_uring repeats all of it.
    """
    cdef ssize_t n
    if t.data_count > MAX_IOVECS or is_unfit_at_once(e, t):
        return False
    n = transfer_plain(e, t) if is_plain(e, t) else transfer_vector(e, t)
    return n == <ssize_t>t.length


cdef inline bint try_sync(Engine *e, int32_t *result) noexcept nogil:
    """Flush here, unless its errors would be another sync's to report: whether that was done.

    A failure is the result: asked again, the kernel would know of none.
    """
    if e.syncing or e.unsynced.first != NULL:
        return False
    result[0] = sync_result(e, 0 if fdatasync(e.sync_fd) == 0 else -errno)
    return True


cdef inline bint try_inline(Engine *e, const IoSpec *t, int32_t *result) noexcept nogil:
    """Do a read, write or flush at once where that is sure not to wait: whether it was done."""
    if t.kind == IO_READ:
        return try_transfer(e, t)
    if e.inline_flags:
        return False            # of a file that might wait, only reads are sure not to
    if t.kind == IO_WRITE:
        return try_transfer(e, t)
    return t.kind == IO_FLUSH and try_sync(e, result)
