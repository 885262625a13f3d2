# SPDX-License-Identifier: Apache-2.0
"""The role of an engine: how what a disk holds is read and written.

The device fills an `Io` and has it started (`engine.dispatch`); whichever engine does it puts it
among the engine's ended ones, `end_io`, once there is nothing left to do, and the device takes it
from there when its turn comes: no engine calls the device.  An engine knows neither chains nor
rings nor what a guest is answered.

The engines: `uring`, and beside it `durable` for syncs; `inline`, which tries first what cannot
wait and leaves the rest to `uring`; `null`; `foreign` for those of libraries with threads of their
own; `faulty` in front of any of them.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from sys.clock cimport KernelTimespec
from sys.uring cimport iovec
from virtio.virtq cimport Segment
from worker.completions cimport Completion
from worker.state cimport Worker

cdef extern from *:
    """
    #define BLKD_ENGINE_CAPSULE "blkd.engine"
    """
    const char *ENGINE_CAPSULE "BLKD_ENGINE_CAPSULE"


cdef enum:
    MAX_IOVECS = 1024           # buffers the kernel takes in one call (UIO_MAXIOV)
    BOUNCE_BUFFERS = 16
    BOUNCE_BYTES = 1 << 17
    ZERO_BYTES = 1 << 20        # of the buffer that zeroes are written from
    MAX_FAULTS = 8              # rules of a faulty image
    REPEATS_AT_ONCE = 16        # of a step that the kernel gave up with EAGAIN or EINTR
    REPEAT_DELAYS = 12          # further ones, after 1, 2, 4 ... 2048 ms: 4 seconds in all
    PAST_END = 1                # a result: the image ends before the transfer does
    REPORT_SYNC = 64            # a worker's report: a sync has failed, the image's first


cdef enum IoKind:
    IO_NONE                     # nothing: a device answers that by itself
    IO_READ
    IO_WRITE
    IO_FLUSH                    # what was written and has ended is durable when this ends
    IO_DISCARD                  # the contents of a range do not matter any more
    IO_ZEROES                   # a range reads as zeroes
    IO_KINDS


cdef enum EngineKind:
    ENGINE_URING                # everything through the worker's io_uring
    ENGINE_INLINE               # what cannot wait at once, the rest through io_uring
    ENGINE_NULL                 # nothing behind the disk: done at once, untouched
    ENGINE_FOREIGN              # by `EngineFunctions`


cdef enum Step:
    STEP_TRANSFER               # data between the file and the guest
    STEP_RANGE                  # discard, or fallocate
    STEP_ZEROES                 # zeroes written where fallocate cannot do it
    STEP_SYNC                   # all that came before made durable
    STEP_UNBOUNCED              # nothing yet: it waits for a bounce buffer
    STEP_UNSYNCED               # nothing any more: it waits for the next sync
    STEP_DELAY                  # nothing yet: a faulty image has it wait
    STEP_PAUSE                  # nothing for a moment: the kernel wanted to be asked again


cdef struct IoSpec:
    # What is wanted, before anything is kept of it.
    IoKind kind
    bint durable                # as in Io
    uint64_t offset             # bytes
    uint64_t length             # bytes
    Segment *data
    uint32_t data_count


cdef struct Io:
    Completion completion       # of a foreign engine; has to be the first
    Io *next                    # in the one queue that it waits in
    Engine *engine              # foreign: which has started it
    IoKind kind
    int32_t result              # 0, -errno or PAST_END, once it has ended
    bint durable                # on stable storage before it ends; always so of a flush
    bint may_unmap              # of zeroes: the space may be given back
    uint64_t offset             # bytes; of what is left, or of what failed
    uint64_t left               # bytes; 0 once all is done
    uint64_t length             # bytes asked for
    iovec *iov                  # what is left to transfer
    uint32_t iov_count
    # What follows belongs to the engine while it is started.
    uint32_t entry_done         # bytes of the first entry that are cut off it
    uint8_t *bounce             # an aligned buffer in the place of the entries, or NULL
    Step step                   # what the kernel is doing
    Step paused_step            # ... and will again after STEP_PAUSE
    uint32_t repeats            # of the present step, since it last did anything
    bint shorten                # a faulty image has a part asked for first
    bint fixed                  # its last entry named a registered chunk
    bint plain                  # its entries are to name none
    Io *older                   # foreign: of those that are started
    Io *newer


cdef struct IoQueue:
    Io *first
    Io *last


cdef enum FaultAction:
    FAULT_FAIL                  # ends with an error, nothing done
    FAULT_DELAY                 # done later
    FAULT_SHORTEN               # the kernel is asked for a part first


cdef struct Fault:
    FaultAction action
    uint32_t kinds              # bits 1 << IoKind
    uint32_t every              # n-th Io that it touches
    uint64_t start              # bytes
    uint64_t end                # bytes, not included
    uint64_t most               # Ios that it strikes
    int32_t error               # -errno, of FAULT_FAIL
    KernelTimespec delay


cdef struct EngineFunctions:
    # What a module gives that is an engine of its own, in a capsule named ENGINE_CAPSULE.  Workers
    # call these, several at a time; none takes the GIL, and none waits.
    size_t io_size              # of an Io, as who made this has it
    void *image                 # the module's own
    # Begin `io`, whose entries stay as they are until it ends.  It ends exactly once, by
    # `foreign.complete_foreign`, from any thread, perhaps before this returns.
    void (*start)(void *image, Io *io) noexcept nogil
    # Have a started one end soon; NULL where that cannot be.  One that has just ended may still be
    # asked for, and one that has not ends all the same.
    void (*cancel)(void *image, Io *io) noexcept nogil


cdef struct Engine:
    # One worker's engine; all fields are the worker's once it runs.
    EngineKind kind
    Worker *worker
    IoQueue ended               # what the device has to take
    # io_uring and at once
    int fd                      # the image
    int sync_fd                 # the same, open once more for this worker's syncs alone
    bint direct                 # open for direct I/O: writes have their own errors
    int inline_flags            # RWF_NOWAIT where the file might block without it
    uint32_t block_mask         # logical block size - 1
    uint32_t memory_mask        # alignment of buffers - 1
    bint discard_by_command     # by io_uring's command for block devices, not by a hole
    uint8_t *free_bounces[BOUNCE_BUFFERS]
    uint32_t free_bounce_count
    IoQueue unbounced           # wait for a bounce buffer
    IoQueue unsynced            # wait for the next sync
    bint syncing                # a sync is in the kernel; one at a time
    int32_t *sync_error         # shared by all workers: -errno of the first failed sync, or 0
    KernelTimespec delays[REPEAT_DELAYS]    # constant
    uint8_t *zeros              # ZERO_BYTES, never written
    iovec *iovecs               # MAX_IOVECS, scratch for one transfer
    # foreign
    const EngineFunctions *functions
    Io *started                 # the newest of those that have not ended
    # faulty
    uint32_t fault_count        # 0 for any image that is not made to fail
    Fault faults[MAX_FAULTS]
    uint64_t fault_hits[MAX_FAULTS]     # Ios that each rule has touched
    Fault *struck               # the rule that strikes the Io started next, or NULL


cdef inline void append(IoQueue *queue, Io *io) noexcept nogil:
    """Put an Io last in a queue."""
    io.next = NULL
    if queue.first == NULL:
        queue.first = io
    else:
        queue.last.next = io
    queue.last = io


cdef inline Io *take_first(IoQueue *queue) noexcept nogil:
    """Take the first Io of a queue that is not empty."""
    cdef Io *io = queue.first
    queue.first = io.next
    return io


cdef inline void end_io(Engine *e, Io *io, int32_t result) noexcept nogil:
    """Give an Io to the device as ended: 0, -errno or PAST_END."""
    io.result = result
    append(&e.ended, io)


cdef inline void advance(Io *io, uint64_t n) noexcept nogil:
    """Step over `n` bytes that were transferred; entries that are done are whole again."""
    cdef size_t piece
    io.offset += n
    io.left -= n
    while n:
        piece = min(n, io.iov.iov_len)
        n -= piece
        if piece == io.iov.iov_len:
            io.iov.iov_base = <uint8_t *>io.iov.iov_base - io.entry_done
            io.iov.iov_len += io.entry_done
            io.entry_done = 0
            io.iov += 1
            io.iov_count -= 1
        else:
            io.iov.iov_base = <uint8_t *>io.iov.iov_base + piece
            io.iov.iov_len -= piece
            io.entry_done += <uint32_t>piece


cdef inline uint64_t start_of(const Io *io) noexcept nogil:
    """Where an Io began, in bytes."""
    return io.offset - (io.length - io.left)


cdef inline void make_whole(Io *io) noexcept nogil:
    """Have every entry as it was when the Io was started; it has ended."""
    if io.entry_done:
        io.iov.iov_base = <uint8_t *>io.iov.iov_base - io.entry_done
        io.iov.iov_len += io.entry_done
        io.entry_done = 0
