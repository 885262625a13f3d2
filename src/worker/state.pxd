# SPDX-License-Identifier: Apache-2.0
"""One worker: its io_uring, its vrings, and the device that it serves."""

from libc.errno cimport EAGAIN, ETIME
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from figures.slot cimport Slot
from sys.clock cimport KernelTimespec, SECOND
from sys.eventfds cimport Signal
from sys.uring cimport (
    io_uring, io_uring_cqe, io_uring_get_events, io_uring_get_sqe, io_uring_sq_ready, io_uring_sqe,
    io_uring_submit, io_uring_submit_and_wait, io_uring_submit_and_wait_timeout,
)
from virtio.dirtylog cimport DirtyLog
from virtio.guestmem cimport GuestMemory, MemoryView, Region
from virtio.iotlb cimport Iotlb
from virtio.virtq cimport Chain, Segment
from worker.completions cimport Completions
from worker.mailbox cimport Mailbox
from worker.vring cimport Vring


cdef enum:
    MAX_RINGS = 64              # of one worker
    FETCH_BUDGET = 32           # chains of one ring before the others have their turn
    SPARE_SEGMENTS = 16         # of a chain's buffers that cross from one region into another

    # What a completion is for: the low bits of its user_data, a pointer above them.
    TAG_DEVICE = 0              # the device's own
    TAG_KICK = 1
    TAG_MAILBOX = 2
    TAG_NOBODY = 3
    TAG_COMPLETIONS = 4
    TAG_MASK = 7


cdef extern from *:
    """
    #define BLKD_DEVICE_CAPSULE "blkd.device"
    """
    const char *DEVICE_CAPSULE "BLKD_DEVICE_CAPSULE"


cdef struct Worker


cdef struct Patience:
    # How long to poll before a sleep, in nanoseconds.
    uint64_t longest            # control thread, before the worker runs; 0 for never
    uint64_t now                # worker: what has paid of late


ctypedef int (*Begin)(Worker *w, Vring *r, const Chain *chain) noexcept nogil


cdef struct Device:
    # What one worker serves, as the device's module gives it in a capsule named DEVICE_CAPSULE.
    # It is the first member of what that module keeps for a worker.  Workers call its functions,
    # each once a turn, a ring's turn or a batch; none takes the GIL, and none waits.
    #
    # A device has chains fetched (`fetching.fetch`) as long as it has a use for them, `wanted` of
    # the vring: an eager device for as many as it has room, one that serves on demand for as many
    # as it has something to put in.  It gives back (`vring.give_back`) in `begin_turn`, or to the
    # vring whose turn it is: what is given back to one whose turn is over, nobody publishes.
    size_t device_size          # of this, a Worker and a Vring, as who made this has them
    size_t worker_size
    size_t vring_size
    uint32_t vrings             # that it has room for, and descriptors of each
    uint32_t largest
    uint32_t longest_chain      # descriptors, where a vring is not longer
    uint64_t operations         # of io_uring that it queues, by `operation`; no others will do
    bint has_threads            # some of its work ends on threads of others: see Completions
    # The worker's thread begins: be ready for its vrings.
    void (*open)(Worker *w) noexcept nogil
    # Take what Worker.configure was given, as the device's own module has laid it out.
    void (*configure)(Worker *w, const void *what) noexcept nogil
    # A vring starts, with nothing in flight: say what is wanted of it.
    void (*start)(Worker *w, Vring *r) noexcept nogil
    # Every turn, before any vring has its own: give back what has ended.
    void (*begin_turn)(Worker *w) noexcept nogil
    # Fetch from a vring and begin what is fetched: 1 if there may be more, 0, or -errno, which
    # breaks the vring.
    int (*serve)(Worker *w, Vring *r) noexcept nogil
    # Begin one chain: its share of a turn's budget, or -errno, which breaks the vring.  It may have
    # been in flight before the vring started, whatever is wanted now.
    Begin begin
    # Answer one chain with an error, in the last byte that it gives to write; of its other buffers
    # nothing may be known.  1, or -errno, which breaks the vring.  NULL where no answer can say so.
    Begin fail
    # Whether a chain that was begun may still touch what is mapped at one of so many ranges, by
    # their `base`.  NULL for any.
    bint (*uses)(Worker *w, const Region *ranges, uint32_t count) noexcept nogil
    # Begin up to `count` chains again that it has put off because of errors.  NULL where it never
    # does.
    void (*retry)(Worker *w, uint32_t count) noexcept nogil
    # A vring is to stop: give back what was put off, or leave it recorded.  NULL likewise.
    void (*stop)(Worker *w, Vring *r) noexcept nogil
    # Some IOVAs mean nothing any more, `removed` of the IOTLB: put nothing off that names them.
    # NULL likewise.
    void (*invalidate)(Worker *w) noexcept nogil
    # Take completions of the worker's io_uring; those tagged TAG_DEVICE are the device's, which
    # knows what their pointers are: blk's are all of an Io.
    void (*complete)(Worker *w, io_uring_cqe **cqes, unsigned count) noexcept nogil
    # Every turn, after all vrings have had theirs.
    void (*end_turn)(Worker *w) noexcept nogil
    # The worker ends: whether somebody may still be at memory that chains name.
    bint (*quit)(Worker *w) noexcept nogil
    # ... then, threads ended: copy what that one still reads of `length` bytes at `base` to `to`.
    void (*copy_read)(
        const Device *d, const uint8_t *base, size_t length, uint8_t *to
    ) noexcept nogil


cdef struct Worker:
    io_uring uring              # worker thread only, made and ended there
    Device *device              # what it serves
    Slot *slot                  # worker: what it counts and measures, for others to read
    bint has_begun              # worker: it was to serve at least once: until then it writes none
    uint64_t now                # worker: nanoseconds, as of its latest look at the clock
    uint64_t turn_at            # worker: when its turn began
    uint64_t seen_at            # worker: since when it knows of what it fetches now
    uint64_t idle_at            # worker: since when it has had nothing to do in this turn, or 0
    uint64_t cpu_at             # worker: CPU time that it has told of
    uint64_t cpu_due            # worker: when it is to tell of it again
    bint has_served             # worker: something was answered in this turn
    bint clock_is_read          # worker: since this turn began it has done nothing that takes time
    DirtyLog log                # worker, replaced by CMD_SET_LOG
    MemoryView *view            # worker; the map that new requests use
    const GuestMemory *addresses    # worker: what chains are walked by, that map's or the IOTLB's
    Iotlb *iotlb                # worker, replaced by CMD_SET_IOTLB: NULL without an IOMMU
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
    uint64_t submitted          # worker: number of the first entry that the kernel has not taken
    Signal error                # worker: bound to a broken ring's error eventfd while it is sent
    Patience when_idle          # while nothing is in flight
    Patience when_busy          # while something is
    uint32_t in_flight          # chains that the device has, of all vrings
    uint32_t put_off            # chains at rest that it has besides: see `Device.retry`
    int fault_fd                # eventfd: that a front end's memory is gone; -1 without one
    uint64_t wake_at            # nanoseconds: when the device wants its turn at the latest; or 0
    bint unfinished             # there is more to do before it sleeps
    bint abandoned              # it has ended, and somebody may still be at what was in flight
    uint64_t pause_ticket       # CMD_PAUSE to be answered, or 0
    bint paused
    bint quit
    bint is_restricted          # worker: its io_uring does only what it was made for
    Completions completions     # see its fields
    Mailbox mailbox             # see its fields


cdef inline MemoryView *keep(Worker *w, Vring *r) noexcept nogil:
    """Count a chain that the device keeps for later; the memory it names stays until `let_go`."""
    r.in_flight += 1
    w.in_flight += 1
    w.view.pins += 1
    return w.view


cdef inline void let_go(Worker *w, Vring *r, MemoryView *view) noexcept nogil:
    """Count a chain that was kept as given back."""
    r.in_flight -= 1
    w.in_flight -= 1
    view.pins -= 1


cdef inline void want(Worker *w, Vring *r, uint32_t chains) noexcept nogil:
    """Have the device asked to fetch this many more chains from a vring, as soon as it has them."""
    r.wanted += chains
    r.wants_look = w.unfinished = True


cdef inline uint64_t next_entry(const Worker *w) noexcept nogil:
    """The number of the entry that is queued next; those below `submitted` are with the kernel."""
    return w.submitted + io_uring_sq_ready(&w.uring)


cdef inline int submitted(Worker *w, unsigned queued, int rc) noexcept nogil:
    """Note how many of the `queued` entries the kernel took, perhaps only some: `rc` again."""
    w.submitted += queued - io_uring_sq_ready(&w.uring)
    if rc == -EAGAIN:
        # There is no memory for a request.  Those that have ended can be used again, but the kernel
        # brings them home (DEFER_TASKRUN) only in a call that submits nothing.
        io_uring_get_events(&w.uring)
    return rc


cdef inline int submit_queued(Worker *w) noexcept nogil:
    """Give the kernel what is queued, if anything: not negative, or -errno."""
    cdef unsigned queued = io_uring_sq_ready(&w.uring)
    if queued == 0:
        return 0
    return submitted(w, queued, io_uring_submit(&w.uring))


cdef inline int submit_and_sleep(Worker *w) noexcept nogil:
    """Give the kernel what is queued and sleep until a completion: not negative, or -errno."""
    cdef unsigned queued = io_uring_sq_ready(&w.uring)
    return submitted(w, queued, io_uring_submit_and_wait(&w.uring, 1))


cdef inline int submit_and_sleep_for(Worker *w, uint64_t limit) noexcept nogil:
    """The same, but for `limit` nanoseconds at the most: not negative, or -errno."""
    cdef unsigned queued = io_uring_sq_ready(&w.uring)
    cdef KernelTimespec t
    cdef io_uring_cqe *first
    cdef int rc
    t.tv_sec, t.tv_nsec = limit // SECOND, limit % SECOND
    rc = io_uring_submit_and_wait_timeout(&w.uring, &first, 1, &t, NULL)
    return submitted(w, queued, 0 if rc == -ETIME else rc)


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
