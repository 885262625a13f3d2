# SPDX-License-Identifier: Apache-2.0
"""A TAP queue: packets read and written one a call, and a poll where there is none to be had.

A call never waits, whatever is done to the descriptor meanwhile (RWF_NOWAIT), where the kernel
has that for a TAP; else the descriptor is non-blocking.
"""

from libc.errno cimport EAGAIN, EINTR, errno

from net.state cimport NetVring, REPORT_TAP_GONE
from posix.types cimport off_t
from sys.uring cimport io_uring_prep_poll_add, io_uring_sqe, iovec
from worker.mailbox cimport stage_answer
from worker.state cimport TAG_DEVICE, Worker, next_sqe, tagged

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec *iov, int count, off_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int count, off_t offset, int flags)

cdef extern from "<errno.h>" nogil:
    enum:
        EBADFD


cdef inline ssize_t read_packet(const NetVring *v, const iovec *iov, int count) noexcept nogil:
    """Read the next packet behind its header: bytes, or -errno; -EAGAIN where there is none."""
    cdef ssize_t n
    while True:
        n = preadv2(v.fd, iov, count, -1, v.io_flags)
        if n >= 0:
            return n
        if errno != EINTR:
            return -errno


cdef inline ssize_t write_packet(const NetVring *v, const iovec *iov, int count) noexcept nogil:
    """Write one packet behind its header: bytes, or -errno; -EAGAIN where there is no room."""
    cdef ssize_t n
    while True:
        n = pwritev2(v.fd, iov, count, -1, v.io_flags)
        if n >= 0:
            return n
        if errno != EINTR:
            return -errno


cdef inline void await_tap(Worker *w, NetVring *v, unsigned events) noexcept nogil:
    """Do nothing with the TAP until the kernel says that it is ready, once."""
    cdef io_uring_sqe *sqe
    v.is_ready = False
    if v.is_polled:
        return
    sqe = next_sqe(w)
    io_uring_prep_poll_add(sqe, v.fd, events)
    sqe.user_data = tagged(v, TAG_DEVICE)
    v.is_polled = True


cdef inline void lose_tap(Worker *w, NetVring *v) noexcept nogil:
    """The TAP was deleted: say so once, and neither read nor poll it any more."""
    if not v.is_gone:
        v.is_gone = True
        stage_answer(&w.mailbox, 0, v.vring.number, REPORT_TAP_GONE)
