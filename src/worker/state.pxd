# SPDX-License-Identifier: Apache-2.0
"""One worker: its io_uring, its rings and the buffers they share."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from blk.limits cimport BlkLimits
from sys.eventfds cimport Signal
from sys.uring cimport (
    io_uring, io_uring_get_sqe, io_uring_sq_ready, io_uring_sqe, io_uring_submit,
    io_uring_submit_and_wait, iovec,
)
from virtio.dirtylog cimport DirtyLog
from virtio.guestmem cimport MemoryView
from virtio.virtq cimport Segment
from worker.completions cimport Completions
from worker.mailbox cimport Mailbox
from worker.vring cimport Vring


cdef enum:
    MAX_RINGS = 64              # of one worker
    FETCH_BUDGET = 32           # chains of one ring before the others have their turn

    # What a completion is for: the low bits of its user_data, a pointer above them.
    TAG_REQUEST = 0
    TAG_KICK = 1
    TAG_MAILBOX = 2
    TAG_NOBODY = 3
    TAG_COMPLETIONS = 4
    TAG_MASK = 7

    REPORT_SYNC = 64            # a report's result: a sync has failed, the image's first
    FAILURE_KINDS = 6           # of what an engine can fail at: `engine.IoKind`


cdef struct Patience:
    # How long to look on before a sleep, in nanoseconds.
    uint64_t longest            # control thread, before the worker runs; 0 for never
    uint64_t now                # worker: what has paid of late


cdef struct Failure:
    # What became of the requests of one kind that could not be carried out.
    uint64_t count              # worker
    uint64_t round              # worker: in which the last one was reported
    uint64_t offset             # worker: bytes; of the one reported
    int error                   # worker: likewise: -errno, or 0 at the image's end


cdef struct Worker:
    io_uring uring              # worker thread only, made and ended there
    BlkLimits limits            # worker, replaced by CMD_SET_LIMITS
    DirtyLog log                # worker, replaced by CMD_SET_LOG
    MemoryView *view            # worker; the map that new requests use
    int registered              # worker: 1 if the map of `view` is registered, 0 or -errno if not
    bint has_registered         # worker: the kernel has a map registered, of `view` or an older one
    bint register_due           # worker: an older one is to be unregistered, or `view`'s registered
    uint64_t register_ticket    # worker: CMD_REGISTER to be answered, or 0
    MemoryView *old_views       # worker; wait for their pins, the latest first
    Vring *vrings               # `count` of them
    Vring *started[MAX_RINGS]   # worker: the first `started_count` are those that it serves
    Segment *segments           # scratch for one chain
    uint32_t segment_room
    uint32_t count
    uint32_t started_count      # worker
    uint32_t longest_chain      # descriptors, where a ring is not longer itself
    void *engine                # the `Engine` that does its I/O
    Failure failures[FAILURE_KINDS]
    uint64_t failure_round      # control thread: each one has the first of a kind reported
    uint64_t submitted          # worker: number of the first entry that the kernel has not taken
    Signal error                # worker: bound to a broken ring's error eventfd while it is sent
    Patience with_driver        # while no request is in flight
    Patience with_disk          # while one is
    uint32_t in_disk            # requests in flight, of all rings
    uint64_t pause_ticket       # CMD_PAUSE to be answered, or 0
    bint paused
    bint quit
    Completions completions     # see its fields
    Mailbox mailbox             # see its fields


cdef inline uint64_t next_entry(const Worker *w) noexcept nogil:
    """The number of the entry that is queued next; those below `submitted` are with the kernel."""
    return w.submitted + io_uring_sq_ready(&w.uring)


cdef inline void count_submitted(Worker *w, unsigned queued) noexcept nogil:
    """Note how many of the `queued` entries the kernel took: it may take only some of them."""
    w.submitted += queued - io_uring_sq_ready(&w.uring)


cdef inline int submit_queued(Worker *w) noexcept nogil:
    """Give the kernel what is queued, if anything: not negative, or -errno."""
    cdef unsigned queued = io_uring_sq_ready(&w.uring)
    cdef int rc
    if queued == 0:
        return 0
    rc = io_uring_submit(&w.uring)
    count_submitted(w, queued)
    return rc


cdef inline int submit_and_sleep(Worker *w) noexcept nogil:
    """Give the kernel what is queued and sleep until a completion: not negative, or -errno."""
    cdef unsigned queued = io_uring_sq_ready(&w.uring)
    cdef int rc = io_uring_submit_and_wait(&w.uring, 1)
    count_submitted(w, queued)
    return rc


cdef inline io_uring_sqe *next_sqe(Worker *w) noexcept nogil:
    """A free submission entry; what is queued goes to the kernel first when it is full."""
    cdef io_uring_sqe *sqe = io_uring_get_sqe(&w.uring)
    while sqe == NULL:
        submit_queued(w)
        sqe = io_uring_get_sqe(&w.uring)
    return sqe


cdef inline uint64_t tagged(const void *pointer, uint64_t tag) noexcept nogil:
    """The user_data that says what a completion is for."""
    return <uint64_t>pointer | tag


cdef inline uint64_t tag_of(uint64_t user_data) noexcept nogil:
    return user_data & TAG_MASK


cdef inline void *pointer_of(uint64_t user_data) noexcept nogil:
    return <void *>(user_data & ~<uint64_t>TAG_MASK)
