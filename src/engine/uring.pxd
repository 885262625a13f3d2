# SPDX-License-Identifier: Apache-2.0
"""The engine `uring`: an Io's way through io_uring, one step of it in the kernel at a time."""

from libc.errno cimport EAGAIN, EFAULT, EINTR, EOPNOTSUPP
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from engine.durable cimport has_write_error, submit_sync, sync_error, sync_result
from engine.engine cimport (
    BOUNCE_BYTES, Engine, IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, Io, MAX_IOVECS, PAST_END,
    REPEATS_AT_ONCE, REPEAT_DELAYS, STEP_DELAY, STEP_PAUSE, STEP_RANGE, STEP_SYNC, STEP_TRANSFER,
    STEP_UNBOUNCED, STEP_UNSYNCED, STEP_ZEROES, Step, ZERO_BYTES, advance, append, end_io,
    take_first,
)
from figures.slot cimport add
from sys.uring cimport (
    RWF_DSYNC, io_uring_prep_fallocate, io_uring_prep_read, io_uring_prep_read_fixed,
    io_uring_prep_readv, io_uring_prep_timeout, io_uring_prep_write, io_uring_prep_write_fixed,
    io_uring_prep_writev, io_uring_sqe, iovec, prep_discard,
)
from virtio.guestmem cimport chunk_of
from worker.state cimport TAG_DEVICE, next_sqe, tagged

cdef extern from "<linux/falloc.h>" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE


cdef enum:
    MAX_TRANSFER = 0x7ffff000   # bytes the kernel moves in one call (MAX_RW_COUNT)


cdef inline bint is_unfit(const Engine *e, const iovec *iov, uint32_t count) noexcept nogil:
    """Whether some buffer is not fit for direct I/O as it stands.

    Up to Linux 6.17 each buffer has to be whole blocks, not just all of them together.
    """
    cdef size_t addresses = 0, lengths = 0
    cdef uint32_t i
    if e.memory_mask == 0:
        return False            # not direct at all
    for i in range(count):
        addresses |= <size_t>iov[i].iov_base
        lengths |= iov[i].iov_len
    return (addresses & e.memory_mask) != 0 or (lengths & e.block_mask) != 0


# ---- bounce buffers ----

cdef inline void copy_bounced(Io *io, uint64_t n, bint to_guest) noexcept nogil:
    """Copy the next `n` bytes between the bounce buffer and the Io's own."""
    cdef uint64_t done = 0, piece
    cdef uint32_t i = 0
    while done < n:
        piece = min(n - done, <uint64_t>io.iov[i].iov_len)
        if to_guest:
            memcpy(io.iov[i].iov_base, io.bounce + done, piece)
        else:
            memcpy(io.bounce + done, io.iov[i].iov_base, piece)
        done += piece
        i += 1


cdef inline bint take_bounce(Engine *e, Io *io) noexcept nogil:
    """Give `io` a bounce buffer now, or put it in the queue for one."""
    if e.free_bounce_count:
        e.free_bounce_count -= 1
        io.bounce = e.free_bounces[e.free_bounce_count]
        add(&e.worker.slot.events.bounced, 1)
        return True
    io.step = STEP_UNBOUNCED
    append(&e.unbounced, io)
    return False


cdef inline void give_bounce_back(Engine *e, uint8_t *bounce) noexcept nogil:
    """Give a bounce buffer to the Io that waits for one, or keep it."""
    cdef Io *waiting
    if e.unbounced.first == NULL:
        e.free_bounces[e.free_bounce_count] = bounce
        e.free_bounce_count += 1
        return
    waiting = take_first(&e.unbounced)
    waiting.bounce = bounce
    add(&e.worker.slot.events.bounced, 1)
    submit_transfer(e, waiting)


# ---- steps ----

cdef inline void sent(Io *io, Step step, io_uring_sqe *sqe) noexcept nogil:
    """Remember which step of an Io an entry is, and whose."""
    io.step = step
    sqe.user_data = tagged(io, TAG_DEVICE)


cdef inline void submit_bounced(Engine *e, Io *io, io_uring_sqe *sqe) noexcept nogil:
    """Move the next piece through the bounce buffer."""
    cdef uint32_t piece = <uint32_t>min(io.left, <uint64_t>BOUNCE_BYTES)
    if io.kind == IO_READ:
        io_uring_prep_read(sqe, e.fd, io.bounce, piece, io.offset)
    else:
        copy_bounced(io, piece, False)
        io_uring_prep_write(sqe, e.fd, io.bounce, piece, io.offset)


cdef inline void submit_one(Engine *e, Io *io, io_uring_sqe *sqe) noexcept nogil:
    """Move the first of the entries, or a part of it."""
    cdef uint32_t n = <uint32_t>min(<uint64_t>io.iov.iov_len, <uint64_t>MAX_TRANSFER)
    cdef int32_t chunk = -1
    if io.shorten and io.iov_count == 1 and n >= 2 * (e.block_mask + 1):
        n = (n // 2) & ~e.block_mask
    io.shorten = False
    if e.worker.registered == 1 and not io.plain:
        chunk = chunk_of(e.worker.view.memory, <const uint8_t *>io.iov.iov_base, n)
        io.fixed = chunk >= 0
    if chunk >= 0 and io.kind == IO_READ:
        io_uring_prep_read_fixed(sqe, e.fd, io.iov.iov_base, n, io.offset, chunk)
    elif chunk >= 0:
        io_uring_prep_write_fixed(sqe, e.fd, io.iov.iov_base, n, io.offset, chunk)
    elif io.kind == IO_READ:
        io_uring_prep_read(sqe, e.fd, io.iov.iov_base, n, io.offset)
    else:
        io_uring_prep_write(sqe, e.fd, io.iov.iov_base, n, io.offset)


cdef inline void submit_direct(Engine *e, Io *io, io_uring_sqe *sqe) noexcept nogil:
    """Move what is left straight between the file and guest memory."""
    cdef uint32_t count = min(io.iov_count, <uint32_t>MAX_IOVECS)
    if count == 1 or io.shorten:
        submit_one(e, io, sqe)
    elif io.kind == IO_READ:
        io_uring_prep_readv(sqe, e.fd, io.iov, count, io.offset)
    else:
        io_uring_prep_writev(sqe, e.fd, io.iov, count, io.offset)


cdef inline void submit_transfer(Engine *e, Io *io) noexcept nogil:
    """Ask the kernel for what is left of a read or write."""
    cdef io_uring_sqe *sqe = next_sqe(e.worker)
    if io.bounce != NULL:
        submit_bounced(e, io, sqe)
    else:
        submit_direct(e, io, sqe)
    if io.durable and e.direct:
        sqe.rw_flags = RWF_DSYNC            # else a sync follows, see durable.pxd
    sent(io, STEP_TRANSFER, sqe)


cdef inline void submit_zeroes(Engine *e, Io *io) noexcept nogil:
    """Write the next piece of a range full of zeroes."""
    cdef io_uring_sqe *sqe = next_sqe(e.worker)
    cdef uint32_t piece = <uint32_t>min(io.left, <uint64_t>ZERO_BYTES)
    io_uring_prep_write(sqe, e.fd, e.zeros, piece, io.offset)
    sent(io, STEP_ZEROES, sqe)


cdef inline void submit_range(Engine *e, Io *io) noexcept nogil:
    """Discard or zero the range."""
    cdef io_uring_sqe *sqe = next_sqe(e.worker)
    cdef int mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE
    if io.kind == IO_DISCARD or io.may_unmap:
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    if io.kind == IO_DISCARD and e.discard_by_command:
        prep_discard(sqe, e.fd, io.offset, io.left)
    else:
        io_uring_prep_fallocate(sqe, e.fd, mode, io.offset, io.left)
    sent(io, STEP_RANGE, sqe)


# ---- the end ----

cdef inline void finish(Engine *e, Io *io, int32_t result) noexcept nogil:
    """End an Io, which lets go of its bounce buffer."""
    if io.bounce != NULL:
        give_bounce_back(e, io.bounce)
    end_io(e, io, result)


cdef inline void end_unsynced(Engine *e, Io *io, int32_t error) noexcept nogil:
    """End an Io whose data is written and not durable: -errno; all of it has failed."""
    io.offset -= io.length - io.left
    io.left = io.length
    finish(e, io, error)


cdef inline void end_written(Engine *e, Io *io) noexcept nogil:
    """End an Io that has done its work, now or once a sync has made it durable."""
    cdef int32_t error
    if not io.durable:
        finish(e, io, 0)
        return
    error = sync_error(e)
    if error < 0:
        end_unsynced(e, io, error)
    else:
        io.step = STEP_UNSYNCED
        append(&e.unsynced, io)


# ---- start and completion ----

cdef inline void start_uring(Engine *e, Io *io) noexcept nogil:
    """Start an Io's first step."""
    io.repeats = io.entry_done = 0
    io.bounce = NULL
    io.fixed = io.plain = False
    if io.kind == IO_READ or io.kind == IO_WRITE:
        if not is_unfit(e, io.iov, io.iov_count):
            submit_transfer(e, io)
        else:
            add(&e.worker.slot.events.unaligned, 1)
            if take_bounce(e, io):
                submit_transfer(e, io)
    elif io.kind == IO_FLUSH:
        end_written(e, io)
    else:
        submit_range(e, io)


cdef inline void repeat_step(Engine *e, Io *io) noexcept nogil:
    """Ask again for a step in which the kernel has done nothing."""
    if io.step == STEP_TRANSFER:
        submit_transfer(e, io)
    elif io.step == STEP_RANGE:
        submit_range(e, io)
    elif io.step == STEP_ZEROES:
        submit_zeroes(e, io)
    else:
        submit_sync(e, io)


cdef inline void pause_step(Engine *e, Io *io) noexcept nogil:
    """Have a step repeated after a moment, the longer the oftener that has been in vain."""
    cdef io_uring_sqe *sqe = next_sqe(e.worker)
    io_uring_prep_timeout(sqe, &e.delays[io.repeats - REPEATS_AT_ONCE - 1], 0, 0)
    io.paused_step = io.step
    sent(io, STEP_PAUSE, sqe)


cdef inline bint try_again(Engine *e, Io *io) noexcept nogil:
    """Have a step repeated, at once or after a moment: whether it is, or was too often."""
    if io.repeats == REPEATS_AT_ONCE + REPEAT_DELAYS:
        return False
    io.repeats += 1
    if io.repeats <= REPEATS_AT_ONCE:
        repeat_step(e, io)
    else:
        pause_step(e, io)
    return True


cdef inline bint is_undone(const Engine *e, const Io *io, int32_t result) noexcept nogil:
    """Whether the kernel gave a step up before it did anything.

    What a sync ends with may be what a write-back ended with, which is reported once.
    """
    if io.step == STEP_SYNC:
        return result == -EINTR and not has_write_error(e)
    return result == -EINTR or result == -EAGAIN


cdef inline void complete_transfer(Engine *e, Io *io, uint32_t n) noexcept nogil:
    """Account `n` bytes moved; a short transfer goes on where it stopped."""
    if io.bounce != NULL and io.kind == IO_READ:
        copy_bounced(io, n, True)
    advance(io, n)
    if io.left:
        io.repeats = 0
        submit_transfer(e, io)
    elif io.durable and not e.direct:
        end_written(e, io)
    else:
        finish(e, io, 0)


cdef inline void complete_zeroes(Engine *e, Io *io, uint32_t n) noexcept nogil:
    """Account `n` bytes zeroed of a range."""
    io.offset += n
    io.left -= n
    io.repeats = 0
    if io.left:
        submit_zeroes(e, io)
    else:
        end_written(e, io)


cdef inline void complete_range(Engine *e, Io *io, int32_t result) noexcept nogil:
    """End a range that is done; zeroes that the image cannot make are written."""
    if result == -EOPNOTSUPP and io.kind != IO_DISCARD:
        submit_zeroes(e, io)
    elif result < 0:
        finish(e, io, result)
    else:
        io.offset += io.left
        io.left = 0
        end_written(e, io)


cdef inline void complete_sync(Engine *e, Io *io, int32_t result) noexcept nogil:
    """End all that a sync was for: `io` and those that are chained behind it."""
    cdef Io *following
    e.syncing = False
    result = sync_result(e, result)
    while io != NULL:
        following = io.next
        if result < 0:
            end_unsynced(e, io, result)
        else:
            finish(e, io, 0)
        if following != NULL:
            add(&e.worker.slot.events.merged, 1)
        io = following


cdef inline void complete_rarely(Engine *e, Io *io, int32_t result) noexcept nogil:
    """Take any result but that a transfer has moved something."""
    if io.step == STEP_PAUSE:
        io.step = io.paused_step
        repeat_step(e, io)
    elif is_undone(e, io, result) and try_again(e, io):
        return
    elif result == -EFAULT and io.fixed:
        io.fixed, io.plain = False, True
        submit_transfer(e, io)      # the fault may be the registration's, not the front end's
    elif io.step == STEP_RANGE:
        complete_range(e, io, result)
    elif io.step == STEP_SYNC:
        complete_sync(e, io, result)
    elif result > 0:
        complete_zeroes(e, io, result)
    else:
        finish(e, io, result if result < 0 else PAST_END)
