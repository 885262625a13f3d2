# SPDX-License-Identifier: Apache-2.0
"""Requests that wait to be made durable, and what is remembered of a sync that failed.

The kernel tells each open file description once that something could not be written back,
whatever it was.  So every worker syncs through a description of its own, one sync at a time,
and one sync answers for all requests whose data was with the kernel when it began.  After a
failed one the page cache has dropped data that was acknowledged, and a later sync would
succeed all the same: the image's first failure is kept, and answers whatever comes later.
"""

from libc.errno cimport EINVAL, ENOSYS, EPERM, ESPIPE, errno
from libc.stdint cimport int32_t, int64_t

from blk.request cimport Request, STEP_SYNC
from sys.atomics cimport load_acquire_i32, store_once
from sys.uring cimport IORING_FSYNC_DATASYNC, io_uring_prep_fsync, io_uring_sqe
from worker.mailbox cimport stage_answer
from worker.state cimport REPORT_SYNC, TAG_REQUEST, Worker, next_sqe, tagged

cdef extern from "<fcntl.h>" nogil:
    enum:
        SYNC_FILE_RANGE_WAIT_BEFORE
    int sync_file_range(int fd, int64_t offset, int64_t n, unsigned flags)


cdef enum:
    NO_DATA_THERE = 1 << 62     # bytes; beyond any image


cdef inline int32_t sync_error(const Worker *w) noexcept nogil:
    """The -errno of the image's first failed sync, 0 without one.

    Of an image open for direct I/O nothing is kept: its writes have their own errors.
    """
    return 0 if w.limits.direct else load_acquire_i32(w.sync_error)


cdef inline int32_t sync_result(Worker *w, int32_t result) noexcept nogil:
    """What a sync that ended with `result` means for who waits for it: 0, or -errno.

    The image's first failure is kept and reported to the control thread.
    """
    if result < 0 and w.limits.direct:
        return result
    if result < 0 and store_once(w.sync_error, result):
        stage_answer(&w.mailbox, 0, 0, REPORT_SYNC)
    return sync_error(w)


cdef inline bint has_write_error(const Worker *w) noexcept nogil:
    """Whether a write-back failed that the description for data was not told of; at once.

    A sync that ends with EINTR may have been interrupted, or told of a write-back that ended so
    and would not be told again.  Its own description is none the wiser: another one is asked.
    """
    return sync_file_range(w.limits.fd, NO_DATA_THERE, 1, SYNC_FILE_RANGE_WAIT_BEFORE) < 0 and (
        errno != ENOSYS and errno != EINVAL and errno != EPERM and errno != ESPIPE
    )


cdef inline void wait_for_sync(Worker *w, Request *q) noexcept nogil:
    """Put a request, whose data the kernel has, in the queue for the next sync."""
    q.next_waiting = NULL
    if w.first_unsynced == NULL:
        w.first_unsynced = q
    else:
        w.last_unsynced.next_waiting = q
    w.last_unsynced = q


cdef inline void submit_sync(Worker *w, Request *first) noexcept nogil:
    """Ask the kernel for a sync on behalf of `first` and all that are chained behind it."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_fsync(sqe, w.limits.sync_fd, IORING_FSYNC_DATASYNC)
    first.step = STEP_SYNC
    sqe.user_data = tagged(first, TAG_REQUEST)


cdef inline void start_sync(Worker *w) noexcept nogil:
    """Begin one sync for all that wait for one, unless one is under way (5.2.6.2)."""
    cdef Request *first = w.first_unsynced
    if first == NULL or w.syncing:
        return
    w.first_unsynced = NULL
    w.syncing = True
    submit_sync(w, first)
