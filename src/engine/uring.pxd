# SPDX-License-Identifier: Apache-2.0
"""A request's way through io_uring: one step is in the kernel at a time, until the answer."""

from libc.errno cimport EAGAIN, EFAULT, EINTR, EOPNOTSUPP
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from blk.failures cimport note_failure
from blk.limits cimport ENGINE_NULL
from blk.logged cimport give_back_logged
from blk.operation cimport OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE
from blk.request cimport (
    Request, STEP_DELAY, STEP_PAUSE, STEP_RANGE, STEP_SYNC, STEP_TRANSFER, STEP_ZEROES, Step,
    advance, copy_bounced, give_request_back,
)
from engine.durable cimport has_write_error, submit_sync, sync_error, sync_result, wait_for_sync
from sys.uring cimport (
    RWF_DSYNC, io_uring_prep_fallocate, io_uring_prep_read, io_uring_prep_read_fixed,
    io_uring_prep_readv, io_uring_prep_timeout, io_uring_prep_write, io_uring_prep_write_fixed,
    io_uring_prep_writev, io_uring_sqe, prep_discard,
)
from virtio.dirtylog cimport mark_iovecs, seldom
from virtio.guestmem cimport chunk_of
from virtio.layouts cimport BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP, RANGE_F_UNMAP, SECTOR_SHIFT
from worker.state cimport (
    BOUNCE_BYTES, MAX_IOVECS, REPEATS_AT_ONCE, REPEAT_DELAYS, TAG_REQUEST, Worker, ZERO_BYTES,
    next_sqe, tagged,
)
from worker.vring cimport count_answer, give_back

cdef extern from "<linux/falloc.h>" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE


cdef enum:
    MAX_TRANSFER = 0x7ffff000   # bytes the kernel moves in one call (MAX_RW_COUNT)


cdef inline void log_read(Worker *w, Request *q) noexcept nogil:
    """Log what a step of a read has written, or may have: all that was left of it."""
    if q.kind == OP_READ and not mark_iovecs(&w.log, q.pinned.memory, q.iov, q.iov_count):
        q.unmarked = True


cdef inline void end_request(Worker *w, Request *q, uint8_t status) noexcept nogil:
    """Give the guest its answer; it is seen when the ring is published."""
    cdef uint64_t bytes = q.length - q.left if q.kind == OP_WRITE else q.written
    if seldom(w.log.of_data):
        give_back_logged(
            w, q.vring, q.pinned.memory, &q.chain, q.status_byte, status, q.written,
            not q.unmarked,
        )
    else:
        give_back(q.vring, &q.chain, q.status_byte, status, q.written)
    count_answer(&q.vring.counters, q.type, bytes, status)
    if q.bounce != NULL:
        give_bounce_back(w, q.bounce)
    give_request_back(q)
    w.in_disk -= 1


cdef inline void fail_request(Worker *w, Request *q, int32_t error) noexcept nogil:
    """Give the guest its answer that the image, or its own memory, failed: -errno or 0."""
    note_failure(w, q.kind, q.offset, error)
    end_request(w, q, BLK_S_IOERR)


cdef inline void give_bounce_back(Worker *w, uint8_t *bounce) noexcept nogil:
    """Hand a bounce buffer to the request that waits for one, or keep it."""
    cdef Request *waiting = w.first_waiting
    if waiting == NULL:
        w.free_bounces[w.free_bounce_count] = bounce
        w.free_bounce_count += 1
        return
    w.first_waiting = waiting.next_waiting
    waiting.bounce = bounce
    submit_transfer(w, waiting)


cdef inline bint take_bounce(Worker *w, Request *q) noexcept nogil:
    """Give `q` a bounce buffer now, or put it in the queue for one."""
    if w.free_bounce_count:
        w.free_bounce_count -= 1
        q.bounce = w.free_bounces[w.free_bounce_count]
        return True
    q.next_waiting = NULL
    if w.first_waiting == NULL:
        w.first_waiting = q
    else:
        w.last_waiting.next_waiting = q
    w.last_waiting = q
    return False


cdef inline void submit_bounced(Worker *w, Request *q, io_uring_sqe *sqe) noexcept nogil:
    """Move the next piece through the bounce buffer."""
    cdef uint32_t piece = <uint32_t>min(q.left, <uint64_t>BOUNCE_BYTES)
    if q.kind == OP_READ:
        io_uring_prep_read(sqe, w.limits.fd, q.bounce, piece, q.offset)
    else:
        copy_bounced(q, piece, False)
        io_uring_prep_write(sqe, w.limits.fd, q.bounce, piece, q.offset)


cdef inline void submit_direct(Worker *w, Request *q, io_uring_sqe *sqe) noexcept nogil:
    """Move what is left straight between the file and guest memory."""
    cdef uint32_t first, count = min(q.iov_count, <uint32_t>MAX_IOVECS)
    cdef int32_t chunk = -1
    if count == 1 or q.shorten:
        first = <uint32_t>min(<uint64_t>q.iov.iov_len, <uint64_t>MAX_TRANSFER)
        if q.shorten and count == 1 and first >= 2 * (w.limits.block_mask + 1):
            first = (first // 2) & ~w.limits.block_mask
        q.shorten = False
        if w.registered == 1 and not q.plain:
            chunk = chunk_of(w.view.memory, <const uint8_t *>q.iov.iov_base, first)
            q.fixed = chunk >= 0
        if chunk >= 0 and q.kind == OP_READ:
            io_uring_prep_read_fixed(sqe, w.limits.fd, q.iov.iov_base, first, q.offset, chunk)
        elif chunk >= 0:
            io_uring_prep_write_fixed(sqe, w.limits.fd, q.iov.iov_base, first, q.offset, chunk)
        elif q.kind == OP_READ:
            io_uring_prep_read(sqe, w.limits.fd, q.iov.iov_base, first, q.offset)
        else:
            io_uring_prep_write(sqe, w.limits.fd, q.iov.iov_base, first, q.offset)
    elif q.kind == OP_READ:
        io_uring_prep_readv(sqe, w.limits.fd, q.iov, count, q.offset)
    else:
        io_uring_prep_writev(sqe, w.limits.fd, q.iov, count, q.offset)


cdef inline void submit_transfer(Worker *w, Request *q) noexcept nogil:
    """Ask the kernel for what is left of a read or write."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    if q.bounce != NULL:
        submit_bounced(w, q, sqe)
    else:
        submit_direct(w, q, sqe)
    if q.durable and w.limits.direct:
        sqe.rw_flags = RWF_DSYNC            # else a sync follows, see engine.durable
    sent(q, STEP_TRANSFER, sqe)


cdef inline void fail_unsynced(Worker *w, Request *q, int32_t error) noexcept nogil:
    """Give the guest its answer that what was written is not durable: -errno."""
    note_failure(w, q.kind, q.offset - q.length if q.kind == OP_WRITE else q.offset, error)
    end_request(w, q, BLK_S_IOERR)


cdef inline void end_written(Worker *w, Request *q) noexcept nogil:
    """Answer a request that has done its work, now or once a sync has made it durable."""
    cdef int32_t error
    if not q.durable:
        end_request(w, q, BLK_S_OK)
        return
    error = sync_error(w)
    if error < 0:
        fail_unsynced(w, q, error)
    else:
        wait_for_sync(w, q)


cdef inline void submit_zeroes(Worker *w, Request *q) noexcept nogil:
    """Write the next piece of a range full of zeroes."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    cdef uint32_t piece = <uint32_t>min(q.left, <uint64_t>ZERO_BYTES)
    io_uring_prep_write(sqe, w.limits.fd, w.zeros, piece, q.offset)
    sent(q, STEP_ZEROES, sqe)


cdef inline void submit_range(Worker *w, Request *q) noexcept nogil:
    """Discard or zero the next range that is not empty; without one, end the request."""
    cdef io_uring_sqe *sqe
    cdef int mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE
    while q.ranges_left and q.range.sectors == 0:
        q.range += 1
        q.ranges_left -= 1
    if q.ranges_left == 0:
        end_written(w, q)
        return
    q.offset = q.range.sector << SECTOR_SHIFT
    q.left = <uint64_t>q.range.sectors << SECTOR_SHIFT
    if q.kind == OP_DISCARD or q.range.flags & RANGE_F_UNMAP:
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    sqe = next_sqe(w)
    if q.kind == OP_DISCARD and w.limits.discard_by_command:
        prep_discard(sqe, w.limits.fd, q.offset, q.left)
    else:
        io_uring_prep_fallocate(sqe, w.limits.fd, mode, q.offset, q.left)
    sent(q, STEP_RANGE, sqe)


cdef inline void sent(Request *q, Step step, io_uring_sqe *sqe) noexcept nogil:
    """Remember which step of a request an entry is, and whose."""
    q.step = step
    sqe.user_data = tagged(q, TAG_REQUEST)


cdef inline void submit(Worker *w, Request *q) noexcept nogil:
    """Start a request's first step."""
    q.repeats = 0
    q.durable = q.kind == OP_FLUSH or (w.limits.write_through and q.kind != OP_READ)
    if w.limits.engine == ENGINE_NULL:
        q.written = <uint32_t>q.length if q.kind == OP_READ else q.written
        q.left = 0
        end_request(w, q, BLK_S_OK)
    elif q.kind == OP_READ or q.kind == OP_WRITE:
        if not q.unfit or take_bounce(w, q):
            submit_transfer(w, q)
    elif q.kind == OP_FLUSH:
        end_written(w, q)
    else:
        submit_range(w, q)


cdef inline void repeat_step(Worker *w, Request *q) noexcept nogil:
    """Ask again for a step in which the kernel has done nothing."""
    if q.step == STEP_TRANSFER:
        submit_transfer(w, q)
    elif q.step == STEP_RANGE:
        submit_range(w, q)
    elif q.step == STEP_ZEROES:
        submit_zeroes(w, q)
    else:
        submit_sync(w, q)


cdef inline void pause_step(Worker *w, Request *q) noexcept nogil:
    """Have a step repeated after a moment, the longer the oftener that has been in vain."""
    cdef io_uring_sqe *sqe = next_sqe(w)
    io_uring_prep_timeout(sqe, &w.delays[q.repeats - REPEATS_AT_ONCE - 1], 0, 0)
    q.paused_step = q.step
    sent(q, STEP_PAUSE, sqe)


cdef inline bint try_again(Worker *w, Request *q) noexcept nogil:
    """Have a step repeated, at once or after a moment: whether it is, or was too often."""
    if q.repeats == REPEATS_AT_ONCE + REPEAT_DELAYS:
        return False
    q.repeats += 1
    if q.repeats <= REPEATS_AT_ONCE:
        repeat_step(w, q)
    else:
        pause_step(w, q)
    return True


cdef inline bint is_undone(const Worker *w, const Request *q, int32_t result) noexcept nogil:
    """Whether the kernel gave a step up before it did anything.

    What a sync ends with may be what a write-back ended with, and would not be told again.
    """
    if q.step == STEP_SYNC:
        return result == -EINTR and not has_write_error(w)
    return result == -EINTR or result == -EAGAIN


cdef inline void complete_transfer(Worker *w, Request *q, uint32_t n) noexcept nogil:
    """Account `n` bytes moved; a short transfer goes on where it stopped."""
    if q.kind == OP_READ:
        if q.bounce != NULL:
            copy_bounced(q, n, True)
        q.written += n
    if seldom(w.log.of_data):
        log_read(w, q)
    advance(q, n)
    if q.left:
        q.repeats = 0
        submit_transfer(w, q)
    elif q.durable and not w.limits.direct:
        end_written(w, q)
    else:
        end_request(w, q, BLK_S_OK)


cdef inline void complete_zeroes(Worker *w, Request *q, uint32_t n) noexcept nogil:
    """Account `n` bytes zeroed of a range."""
    q.offset += n
    q.left -= n
    q.repeats = 0
    if q.left:
        submit_zeroes(w, q)
    else:
        complete_range(w, q, 0)


cdef inline void complete_range(Worker *w, Request *q, int32_t result) noexcept nogil:
    """Go on behind a range; zeroes that the image cannot make are written."""
    if result == -EOPNOTSUPP and q.kind != OP_DISCARD:
        submit_zeroes(w, q)
    elif result == -EOPNOTSUPP:
        note_failure(w, q.kind, q.offset, result)
        end_request(w, q, BLK_S_UNSUPP)     # it was offered, so the image has changed
    elif result < 0:
        fail_request(w, q, result)
    else:
        q.range += 1
        q.ranges_left -= 1
        q.repeats = 0
        submit_range(w, q)


cdef inline void complete_sync(Worker *w, Request *q, int32_t result) noexcept nogil:
    """Answer all whom a sync was for: `q` and those that are chained behind it."""
    cdef Request *following
    w.syncing = False
    result = sync_result(w, result)
    while q != NULL:
        following = q.next_waiting
        if result < 0:
            fail_unsynced(w, q, result)
        else:
            end_request(w, q, BLK_S_OK)
        q = following


cdef inline void complete_rarely(Worker *w, Request *q, int32_t result) noexcept nogil:
    """Take any result but that a transfer has moved something."""
    if q.step == STEP_DELAY:
        submit(w, q)            # it is over, in whatever way
    elif q.step == STEP_PAUSE:
        q.step = q.paused_step
        repeat_step(w, q)
    elif is_undone(w, q, result) and try_again(w, q):
        return
    elif result == -EFAULT and q.fixed:
        q.fixed, q.plain = False, True
        submit_transfer(w, q)       # the fault may be the registration's, not the front end's
    elif q.step == STEP_RANGE:
        complete_range(w, q, result)
    elif q.step == STEP_SYNC:
        complete_sync(w, q, result)
    elif result > 0:
        complete_zeroes(w, q, result)
    else:
        if w.log.of_data and q.step == STEP_TRANSFER:
            log_read(w, q)
        fail_request(w, q, result)          # 0: the file ends before the disk does


cdef inline void complete(Worker *w, Request *q, int32_t result) noexcept nogil:
    """Take the result of a request's present step: the next step, or the answer."""
    if result > 0 and q.step == STEP_TRANSFER:
        complete_transfer(w, q, result)
    else:
        complete_rarely(w, q, result)
