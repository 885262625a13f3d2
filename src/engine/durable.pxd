# SPDX-License-Identifier: Apache-2.0
"""Syncs of the engine `uring`: what waits for the next, and what is remembered of a failed one.

The kernel reports once to each open file description that something could not be written back,
whatever it was.  So every worker syncs through a description of its own, one sync at a time,
and one sync answers for all Ios whose data was with the kernel when it began.  After a
failed one the page cache has dropped data that was acknowledged, and a later sync would
succeed all the same: the image's first failure is kept, and answers whatever comes later.
"""

from libc.errno cimport EINVAL, ENOSYS, EPERM, ESPIPE, errno
from libc.stdint cimport int32_t, int64_t

from engine.engine cimport Engine, Io, REPORT_SYNC, STEP_SYNC
from sys.atomics cimport load_acquire_i32, store_once
from sys.uring cimport IORING_FSYNC_DATASYNC, io_uring_prep_fsync, io_uring_sqe
from worker.mailbox cimport stage_answer
from worker.state cimport TAG_DEVICE, next_sqe, tagged

cdef extern from "<fcntl.h>" nogil:
    enum:
        SYNC_FILE_RANGE_WAIT_BEFORE
    int sync_file_range(int fd, int64_t offset, int64_t n, unsigned flags)


cdef enum:
    NO_DATA_THERE = 0x4000000000000000  # bytes, beyond any image; `1 << 62` would be an int's


cdef inline int32_t sync_error(const Engine *e) noexcept nogil:
    """The -errno of the image's first failed sync, 0 without one.

    Of an image open for direct I/O nothing is kept: its writes have their own errors.
    """
    return 0 if e.direct else load_acquire_i32(e.sync_error)


cdef inline int32_t sync_result(Engine *e, int32_t result) noexcept nogil:
    """What a sync that ended with `result` means for who waits for it: 0, or -errno.

    The image's first failure is kept and reported to the control thread.
    """
    if result < 0 and e.direct:
        return result
    if result < 0 and store_once(e.sync_error, result):
        stage_answer(&e.worker.mailbox, 0, 0, REPORT_SYNC)
    return sync_error(e)


cdef inline bint has_write_error(const Engine *e) noexcept nogil:
    """Whether a write-back failed that was not reported to the description for data; at once.

    A sync that ends with EINTR may have been interrupted, or may report a write-back that ended
    so, which is not reported to its description again: another one is asked.
    """
    return sync_file_range(e.fd, NO_DATA_THERE, 1, SYNC_FILE_RANGE_WAIT_BEFORE) < 0 and (
        errno != ENOSYS and errno != EINVAL and errno != EPERM and errno != ESPIPE
    )


cdef inline void submit_sync(Engine *e, Io *first) noexcept nogil:
    """Ask the kernel for a sync on behalf of `first` and all that are chained behind it."""
    cdef io_uring_sqe *sqe = next_sqe(e.worker)
    io_uring_prep_fsync(sqe, e.sync_fd, IORING_FSYNC_DATASYNC)
    first.step = STEP_SYNC
    sqe.user_data = tagged(first, TAG_DEVICE)


cdef inline void start_sync(Engine *e) noexcept nogil:
    """Begin one sync for all that wait for one, unless one is under way (5.2.6.2)."""
    cdef Io *first = e.unsynced.first
    if first == NULL or e.syncing:
        return
    e.unsynced.first = NULL
    e.syncing = True
    submit_sync(e, first)
