# SPDX-License-Identifier: Apache-2.0
"""What Python sees of the data path: memory mapped for workers, and the workers themselves.

What runs without the GIL, and neither allocates, logs nor raises, stands in the folders beside
this file; `worker.loop.serve` is a worker's life.
"""

from cpython cimport Py_INCREF
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EBUSY, EINVAL, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from figures.slot cimport Slot
from inflight.region cimport Again
from sys.atomics cimport load_relaxed_u64
from sys.faults cimport fault_fd, forget_mapping, install_fault_handler, watch_mapping
from sys.pages cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE,
    PROT_READ, PROT_WRITE, mmap, munmap, reserve,
)
from sys.uring cimport (
    IORING_OP_ASYNC_CANCEL, IORING_OP_FALLOCATE, IORING_OP_FSYNC, IORING_OP_MSG_RING,
    IORING_OP_POLL_ADD, IORING_OP_READ, IORING_OP_READV, IORING_OP_WRITE, IORING_OP_WRITEV,
    IORING_SETUP_R_DISABLED, enable_uring, io_uring, io_uring_free_probe, io_uring_get_probe_ring,
    io_uring_opcode_supported, io_uring_probe, io_uring_queue_exit, iovec,
)
from sys.usdt cimport HAS_PROBES
from virtio.dirtylog cimport DirtyLog
from virtio.flaw cimport Flaw
from virtio.guestmem cimport GuestMemory, MemoryView, Region
from virtio.iotlb cimport Iotlb as IotlbState, iotlb_bytes, lay_out_iotlb
from virtio.layouts cimport Desc
from virtio.virtq cimport Segment, UsedChain
from virtio.virtqueue cimport vring_base
from worker.commands cimport MemoryChange, Placement, VringStart
from worker.loop cimport open_uring, serve
from worker.mailbox cimport (
    Answer, CMD_CONFIGURE, CMD_DENY_IOTLB, CMD_ENABLE, CMD_INVALIDATE_IOTLB, CMD_LOSE_PATIENCE,
    CMD_MOVE, CMD_PAUSE, CMD_PREPARE, CMD_QUIT, CMD_REGISTER, CMD_RESUME, CMD_RETRY, CMD_SET_CALL,
    CMD_SET_ERROR, CMD_SET_IOTLB, CMD_SET_KICK, CMD_SET_LOG, CMD_SET_MEMORY, CMD_START, CMD_STOP,
    CMD_UPDATE_IOTLB, Command, CommandKind, MAILBOX_SLOTS, Miss, REPORT_RECOVERED, post_command,
    take_answer, take_miss,
)
from worker.state cimport (
    DEVICE_CAPSULE, Device, FETCH_BUDGET, MAX_RINGS, SPARE_SEGMENTS, Worker as WorkerState,
)
from worker.states cimport BROKEN, LOST, STOPPED, WAITING
from worker.translating cimport Invalidation, Translation
from worker.vring cimport Parked, Vring, is_started

cdef extern from "<sys/mman.h>" nogil:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    enum:
        MADV_DONTDUMP
        MREMAP_FIXED
        MREMAP_MAYMOVE
        MADV_POPULATE_WRITE     # Linux 5.14
    void *mremap(void *at, size_t length, size_t new_length, int flags, void *new_at)
    int madvise(void *at, size_t length, int advice)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    enum:
        SIG_BLOCK
        SIGBUS
        SIGFPE
        SIGILL
        SIGSEGV
    int sigfillset(sigset_t *signals)
    int sigdelset(sigset_t *signals, int number)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *old)

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_NAME
    int prctl(int option, const char *name)


cdef enum:
    BUSY_PART = 4               # of the longest poll, while something is in flight


# ---- Python face ----

import os

RECOVERED = REPORT_RECOVERED    # as `Worker.answers` has it
SLOT_BYTES = sizeof(Slot)


# ---- guest memory ----

PAGE = 4096                     # bytes: what an IOMMU may have each anywhere
LARGEST_CHUNK = 1 << 30         # bytes that io_uring registers as one buffer

cdef enum:
    POPULATED_PIECE = 1 << 24   # bytes; some milliseconds' work, and whole huge pages of most kinds


cdef class Mapping:
    """One region of the front end's memory, mapped shared and writable until collected.

    Mapped in whole `page`s of the file, so that an offset or a size that is no multiple of a
    huge page can be mapped, and unmapped again.

    Raises:
        OSError: The kernel refuses the mapping.
    """

    cdef void *base
    cdef size_t length
    cdef uint64_t within        # bytes of the mapping before the region
    cdef readonly uint64_t guest_address, user_address, size

    def __init__(self, int fd, uint64_t offset, uint64_t size, uint64_t guest_address,
                 uint64_t user_address, uint64_t page):
        cdef uint64_t start = offset // page * page
        cdef uint64_t length = (offset + size - start + page - 1) // page * page
        cdef void *base = mmap(
            NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, <int64_t>start
        )
        if base == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        madvise(base, length, MADV_DONTDUMP)    # a guest's memory is not ours to dump
        watch_mapping(base, length, page)
        self.base = base
        self.length = length
        self.within = offset - start
        self.size = size
        self.guest_address = guest_address
        self.user_address = user_address

    @property
    def address(self):
        """Where the region's first byte is mapped here."""
        return <uint64_t>self.base + self.within

    def __dealloc__(self):
        if self.base != NULL:
            forget_mapping(self.base)
            with nogil:         # pages to free, or a file that is waited for
                munmap(self.base, self.length)


cdef class Joined:
    """Pieces of guest memory, one behind the other, (address, length) each as mapped here.

    They are mapped once more: what one piece is to an IOMMU may lie anywhere.  All but the first
    begin where a page does, and all but the last end so; none is of more than one Mapping.

    Raises:
        OSError: The kernel cannot map them so, as pages that are huge.
    """

    cdef void *base
    cdef size_t length
    cdef uint64_t within        # bytes of the mapping before the first piece

    def __init__(self, pieces):
        cdef uint64_t start, end, at = 0
        spans = [
            (address // PAGE * PAGE, (address + length + PAGE - 1) // PAGE * PAGE)
            for address, length in pieces
        ]
        self.within = pieces[0][0] % PAGE
        self.length = sum(end - start for start, end in spans)
        self.base = reserve(self.length)
        if self.base == NULL:
            raise OSError(errno, os.strerror(errno))
        watch_mapping(self.base, self.length, PAGE)
        for start, end in spans:
            # What is shared is mapped a second time where none of it is to move.
            if mremap(<void *>start, 0, end - start, MREMAP_MAYMOVE | MREMAP_FIXED,
                      <uint8_t *>self.base + at) == MAP_FAILED:
                error = errno
                # What was there may be gone: nobody else is to be given the place.
                mmap(<uint8_t *>self.base + at, end - start, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
                raise OSError(error, os.strerror(error))
            at += end - start
        madvise(self.base, self.length, MADV_DONTDUMP)

    @property
    def address(self):
        """Where the first piece is mapped."""
        return <uint64_t>self.base + self.within

    def __dealloc__(self):
        if self.base != NULL:
            forget_mapping(self.base)
            with nogil:
                munmap(self.base, self.length)


cdef class MemoryMap:
    """All of a front end's memory at one time; immutable, shared by the workers."""

    cdef GuestMemory memory
    cdef Region *regions        # by guest address, then the same by where they are mapped
    cdef iovec *chunks
    cdef readonly tuple mappings

    def __cinit__(self, mappings):
        cdef Region *region
        self.mappings = tuple(sorted(mappings, key=lambda m: m.guest_address))
        by_base = sorted(self.mappings, key=lambda m: m.address)
        self.regions = <Region *>calloc(2 * len(self.mappings) + 1, sizeof(Region))
        if self.regions == NULL:
            raise MemoryError
        for i, mapping in enumerate([*self.mappings, *by_base]):
            region = &self.regions[i]
            region.guest_address = mapping.guest_address
            region.size = mapping.size
            region.base = <uint8_t *><uint64_t>mapping.address
        self.memory.regions = self.regions
        self.memory.by_base = self.regions + len(self.mappings)
        self.memory.count = len(self.mappings)
        self.cut_up()

    cdef void cut_up(self) except *:
        """Lay out the chunks that the memory can be registered in."""
        pieces = [
            (m.address + at, min(m.size - at, LARGEST_CHUNK))
            for m in sorted(self.mappings, key=lambda m: m.address)
            for at in range(0, m.size, LARGEST_CHUNK)
        ]
        self.chunks = <iovec *>calloc(max(len(pieces), 1), sizeof(iovec))
        if self.chunks == NULL:
            raise MemoryError
        for i, (address, length) in enumerate(pieces):
            self.chunks[i].iov_base = <void *><uint64_t>address
            self.chunks[i].iov_len = length
        self.memory.chunks, self.memory.chunk_count = self.chunks, len(pieces)

    def __dealloc__(self):
        free(self.regions)
        free(self.chunks)

    def populate(self, wanted) -> None:
        """Have every page there, so that to pin them is quick; blocks for as long as that takes.

        Piece by piece, and no further once `wanted()` is false.

        Raises:
            OSError: There is no room for all, or no such memory any more.
        """
        cdef Mapping mapping
        cdef size_t at, length
        cdef int rc
        for mapping in self.mappings:
            for at in range(0, mapping.length, POPULATED_PIECE):
                if not wanted():
                    return
                length = min(mapping.length - at, <size_t>POPULATED_PIECE)
                with nogil:
                    rc = madvise(<uint8_t *>mapping.base + at, length, MADV_POPULATE_WRITE)
                if rc < 0:
                    raise OSError(errno, os.strerror(errno))

    def locate(self, address: int, length: int) -> int:
        """Where `length` bytes at the front end's own `address` are mapped here, or 0."""
        for m in self.mappings:
            if m.user_address <= address and address + length <= m.user_address + m.size:
                return m.address + (address - m.user_address)
        return 0

    def pieces(self, address: int, length: int) -> list:
        """Where these bytes of the front end's own are mapped here: (address, length) each.

        None is of more than one mapping.  Empty where not all bytes are in memory.
        """
        return [(at, size) for at, _, size in self.spans(address, length)]

    def spans(self, address: int, length: int) -> list:
        """Where these bytes of the front end's own are: (address, guest address, length) each.

        The first is where a piece is mapped here; none is of more than one mapping.  Empty where
        not all bytes are in memory.
        """
        found, mappings = [], sorted(self.mappings, key=lambda m: m.user_address)
        for m in mappings:
            if length and m.user_address <= address < m.user_address + m.size:
                piece, within = min(length, m.user_address + m.size - address), (
                    address - m.user_address
                )
                found.append((m.address + within, m.guest_address + within, piece))
                address, length = address + piece, length - piece
        return [] if length else found

    def guest_address(self, address: int) -> int:
        """The guest address of what the front end has at its own `address`, in the map."""
        for m in self.mappings:
            if m.user_address <= address < m.user_address + m.size:
                return m.guest_address + (address - m.user_address)
        raise ValueError(f"{address:#x} is in no region")


cdef class View:
    """One worker's hold on a memory map."""

    cdef MemoryView state
    cdef readonly MemoryMap map

    def __cinit__(self, MemoryMap map):
        self.map = map
        self.state.memory = &map.memory


MOST_TRANSLATIONS = 1 << 18     # ranges: each other page of 2 GiB, in 10 MiB of a worker's


cdef class Iotlb:
    """What one worker knows of IOVAs; it has room for tables of `longest` descriptors."""

    cdef IotlbState *state
    cdef Py_ssize_t length

    def __cinit__(self, uint32_t longest):
        self.length = iotlb_bytes(MOST_TRANSLATIONS, longest * sizeof(Desc))
        at = reserve(self.length)
        if at == NULL:
            raise MemoryError(f"cannot reserve {self.length} bytes")
        self.state = lay_out_iotlb(at, MOST_TRANSLATIONS)

    def __dealloc__(self):
        if self.state != NULL:
            munmap(self.state, self.length)


def fault_eventfd() -> int:
    """An eventfd, readable once a front end's memory shrank while it was in use; ours to keep.

    From the first call on such memory reads as zeroes instead of ending the process.

    Raises:
        OSError: There is no descriptor left.
    """
    cdef int fd = install_fault_handler()
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


# ---- what Python passes to a worker, as the data path takes it ----

cdef Placement placement(where) noexcept:
    """A ring's place from (desc, driver, device, logged, kept), or from None where it has none.

    `logged` has (guest address, length) of each piece of its areas that we write and log.
    """
    cdef Placement p
    memset(&p, 0, sizeof(p))
    if where is not None:
        p.desc = <void *><uint64_t>where[0]
        p.driver = <void *><uint64_t>where[1]
        p.device = <void *><uint64_t>where[2]
        p.log.count = len(where[3])
        for i, (address, length) in enumerate(where[3]):
            p.log.pieces[i].address, p.log.pieces[i].length = address, length
    return p


# ---- workers ----

cdef Device *device_of(capsule, uint32_t rings, uint32_t largest, uint32_t chain) except NULL:
    """The device's part of a worker with so many rings, and descriptors of a ring and a chain."""
    cdef Device *device = <Device *>PyCapsule_GetPointer(capsule, DEVICE_CAPSULE)
    if (
        device.device_size != sizeof(Device) or device.worker_size != sizeof(WorkerState)
        or device.vring_size != sizeof(Vring)
    ):
        raise ValueError("the device was made for another worker: build it anew")
    if device.vrings < rings or device.largest < largest or device.longest_chain < chain:
        raise ValueError(
            f"the device has room for {device.vrings} rings of {device.largest} descriptors, and"
            f" for chains of {device.longest_chain}"
        )
    return device


cdef void lay_out(Vring *r, uint32_t number, uint8_t *at, uint32_t largest) noexcept:
    """Give a vring its tables, out of what was reserved for it."""
    r.number = number
    r.state = STOPPED
    r.kick.fd = r.kick.next_fd = r.error = -1
    r.used = <UsedChain *>at
    r.inflight.again = <Again *>(r.used + largest + FETCH_BUDGET)
    r.parked = <Parked *>(r.inflight.again + largest)
    r.inflight.next = <uint16_t *>(r.parked + largest)
    r.inflight.last = r.inflight.next + largest


cdef class Worker:
    """A data path thread to be: `run` is its body, all else is for the control thread.

    Commands return a ticket; `answers` gives it back with its result once `answers_fd` is
    readable.  A worker has `rings` vrings, numbered from 0, of up to `largest` descriptors, and
    serves by `part`, the device's part of it, which is its alone: that has a `capsule` as
    DEVICE_CAPSULE names it, and `counters(ring)`.
    Before it sleeps it polls for up to `longest_poll` nanoseconds, where that pays.
    It counts and measures in `slot`, memory of SLOT_BYTES, or in memory of its own.
    """

    cdef WorkerState state
    cdef Py_ssize_t bytes_reserved
    cdef void *reserved
    cdef uint64_t tickets
    cdef dict kept              # ticket -> what the worker may still point to
    cdef View view
    cdef Mapping log
    cdef Iotlb iotlb
    cdef dict places            # ring -> where it lies, with what keeps that mapped
    cdef readonly object part
    cdef object capsule         # what `state.device` points to
    cdef uint8_t[::1] slot      # what `state.slot` points to, unless it is our own
    cdef Slot *own_slot

    def __cinit__(self, part, *, uint32_t rings, uint32_t largest, uint32_t longest_chain,
                  uint64_t longest_poll, slot=None):
        self.state.mailbox.commands_fd = self.state.mailbox.answers_fd = -1
        self.state.completions.fd = -1
        if not 0 < rings <= MAX_RINGS:
            raise ValueError(f"{rings} rings for one worker")
        self.kept, self.places = {}, {}
        self.part, self.capsule = part, part.capsule
        self.state.device = device_of(self.capsule, rings, largest, longest_chain)
        self.state.count = rings
        self.state.longest_chain = longest_chain
        self.state.when_idle.longest = longest_poll
        # What a disk takes is no matter of some microseconds: a sleep costs less than to poll.
        self.state.when_busy.longest = longest_poll // BUSY_PART
        self.state.submitted = 1
        self.state.fault_fd = fault_fd
        self.state.segment_room = max(largest, longest_chain) + SPARE_SEGMENTS
        self.state.vrings = <Vring *>calloc(rings, sizeof(Vring))
        self.state.segments = <Segment *>calloc(self.state.segment_room, sizeof(Segment))
        if self.state.vrings == NULL or self.state.segments == NULL:
            raise MemoryError
        self.reserve_tables(largest)
        self.use_slot(slot)
        self.state.mailbox.commands_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.state.mailbox.answers_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if self.state.device.has_threads:
            self.state.completions.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    cdef void reserve_tables(self, uint32_t largest) except *:
        """Give every vring its tables."""
        cdef uint32_t i
        cdef size_t of_ring = (largest + FETCH_BUDGET) * sizeof(UsedChain) + largest * (
            sizeof(Again) + 2 * sizeof(uint16_t) + sizeof(Parked)
        )
        self.bytes_reserved = self.state.count * of_ring
        self.reserved = reserve(self.bytes_reserved)
        if self.reserved == NULL:
            raise MemoryError(f"cannot reserve {self.bytes_reserved} bytes")
        for i in range(self.state.count):
            lay_out(&self.state.vrings[i], i, <uint8_t *>self.reserved + i * of_ring, largest)

    cdef void use_slot(self, slot) except *:
        """Have the worker count in this memory, or in its own."""
        if slot is None:
            self.own_slot = <Slot *>reserve(sizeof(Slot))
            if self.own_slot == NULL:
                raise MemoryError
            self.state.slot = self.own_slot
            return
        if len(slot) != SLOT_BYTES:
            raise ValueError(f"a slot of {len(slot)} bytes, not {SLOT_BYTES}")
        self.slot = slot
        self.state.slot = <Slot *>&self.slot[0]

    def __dealloc__(self):
        if self.reserved != NULL:
            munmap(self.reserved, self.bytes_reserved)
        if self.own_slot != NULL:
            munmap(self.own_slot, sizeof(Slot))
        free(self.state.vrings)
        free(self.state.segments)
        for fd in (
            self.state.mailbox.commands_fd, self.state.mailbox.answers_fd,
            self.state.completions.fd,
        ):
            if fd >= 0:
                os.close(fd)

    def run(self, name: str) -> None:
        """Serve until `quit`, with the GIL released and every signal left to other threads.

        Raises:
            OSError: io_uring failed; nothing is served any more.
        """
        cdef int rc
        cdef sigset_t signals
        cdef bytes title = name.encode()
        sigfillset(&signals)
        for fault in (SIGBUS, SIGFPE, SIGILL, SIGSEGV):
            sigdelset(&signals, fault)      # this thread's own, and not to be put off
        pthread_sigmask(SIG_BLOCK, &signals, NULL)
        prctl(PR_SET_NAME, title)
        with nogil:
            rc = serve(&self.state)
        if self.state.abandoned:
            Py_INCREF(self)     # never freed, nor what it keeps, for as long as the process lives
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    cdef set mappings(self):
        """All memory that it may still point to."""
        found = set() if self.view is None else set(self.view.map.mappings)
        for _, kept, _ in self.kept.values():
            if isinstance(kept, View):
                found.update((<View>kept).map.mappings)
        return found

    @property
    def has_abandoned(self) -> bool:
        """Whether `run` has left chains whose memory somebody may still be at."""
        return bool(self.state.abandoned)

    @property
    def answers_fd(self) -> int:
        """An eventfd, readable when `answers` has something to give."""
        return self.state.mailbox.answers_fd

    @property
    def registered(self) -> int:
        """1 if the present guest memory is registered, -errno if it could not be, else 0."""
        return self.state.registered

    @property
    def is_restricted(self) -> bool:
        """Whether its io_uring does only what worker and device ask for; once it has answered."""
        return bool(self.state.is_restricted)

    @property
    def in_flight(self) -> int:
        """Requests fetched and not answered yet, of all rings; a moment's view."""
        return sum(self.state.vrings[i].in_flight for i in range(self.state.count))

    def answers(self) -> list:
        """What the worker has answered since: (ticket, ring, result) each.

        Ticket 0 is a report: below 0 that the ring was broken, with the -errno that says why; from
        RECOVERED on, how many requests were left in flight there; between them the device's own.
        """
        cdef Answer a
        taken = []
        try:
            os.eventfd_read(self.state.mailbox.answers_fd)
        except BlockingIOError:
            return taken
        while take_answer(&self.state.mailbox, &a):
            self.kept.pop(a.ticket, None)
            taken.append((a.ticket, a.vring, a.result))
        return taken

    cdef uint64_t post(self, CommandKind kind, uint32_t ring, int64_t value, bytes data,
                       object keep=None, object keep_too=None) except 0:
        cdef Command c
        if len(self.kept) >= MAILBOX_SLOTS - 1:
            raise OSError(EBUSY, "the worker has stopped answering")
        if ring >= self.state.count:
            raise IndexError(f"ring {ring} of {self.state.count}")
        self.tickets += 1
        self.kept[self.tickets] = (data, keep, keep_too)
        c.kind, c.vring, c.ticket, c.value = kind, ring, self.tickets, value
        c.data = NULL if data is None else <void *><char *>data
        post_command(&self.state.mailbox, &c)
        return self.tickets

    def set_memory(self, MemoryMap map, places: list) -> int:
        """Serve from another memory map; `places` has a ring's, as `start`, or None a ring.

        The answer comes when no request uses the old map any more.
        """
        cdef MemoryChange change
        cdef View view = None if map is None else View(map)
        memset(&change, 0, sizeof(change))
        change.view = NULL if view is None else &view.state
        for i, where in enumerate(places):
            change.places[i] = placement(where)
        ticket = self.post(
            CMD_SET_MEMORY, 0, 0, (<char *>&change)[:sizeof(change)], self.view, self.places
        )
        self.view = view        # the old one is kept under the ticket until the answer
        self.places = {i: where for i, where in enumerate(places) if where is not None}
        return ticket

    def set_iotlb(self, bint on) -> int:
        """Take addresses of chains for IOVAs, of which nothing is known, or not any more.

        No ring is started, until the answer.
        """
        cdef Iotlb iotlb = Iotlb(self.state.segment_room) if on else None
        cdef IotlbState *state = NULL if iotlb is None else iotlb.state
        ticket = self.post(CMD_SET_IOTLB, 0, 0, (<char *>&state)[:sizeof(state)], self.iotlb)
        self.iotlb = iotlb      # the old one is kept under the ticket until the answer
        return ticket

    def update_iotlb(self, uint64_t iova, uint64_t size, uint64_t address, uint32_t access) -> int:
        """Have `size` bytes from an IOVA lie at this address, in one region of the present map."""
        cdef Translation what
        what.range.guest_address, what.range.size = iova, size
        what.range.base, what.access = <uint8_t *>address, access
        return self.post(CMD_UPDATE_IOTLB, 0, 0, (<char *>&what)[:sizeof(what)])

    def invalidate_iotlb(self, uint64_t first, uint64_t last, rings) -> int:
        """Forget IOVAs from `first` to `last`, and where these rings lie, by their numbers.

        The answer comes when no request that has begun touches what was there.
        """
        cdef Invalidation what
        what.first, what.last, what.vrings = first, last, sum(1 << ring for ring in rings)
        left = [self.places.pop(ring, None) for ring in rings]
        return self.post(CMD_INVALIDATE_IOTLB, 0, 0, (<char *>&what)[:sizeof(what)], left)

    def lose_patience(self) -> int:
        """Have rings go on that wait for a translation since the last call, if they can.

        The answer is 0 where none waits any more.
        """
        return self.post(CMD_LOSE_PATIENCE, 0, 0, None)

    def deny_iotlb(self, uint64_t iova, uint32_t access) -> int:
        """Fail every request that waits for this miss."""
        cdef Miss what
        what.iova, what.access = iova, access
        return self.post(CMD_DENY_IOTLB, 0, 0, (<char *>&what)[:sizeof(what)])

    def misses(self) -> list:
        """What has to be asked for since: (IOVA of a page, access) each."""
        cdef Miss miss
        taken = []
        while take_miss(&self.state.mailbox, &miss):
            taken.append((miss.iova, miss.access))
        return taken

    def register_memory(self) -> int:
        """Pin the present memory map once, not at each request; its `populate` has come before.

        Answered once that was tried, or another map has come; `registered` says how it went.
        """
        return self.post(CMD_REGISTER, 0, 0, None)

    def set_log(self, Mapping log, bint of_data) -> int:
        """Set bits in another dirty log, or in none; `of_data` for what requests write, too.

        A ring whose writes are to be logged and that has no bit for one is broken.  Without any
        log nobody looks, whatever is to be logged.
        """
        cdef DirtyLog change
        memset(&change, 0, sizeof(change))
        if log is not None:
            change.bits, change.pages = <uint8_t *><uint64_t>log.address, 8 * log.size
            change.of_data = of_data
        ticket = self.post(CMD_SET_LOG, 0, 0, (<char *>&change)[:sizeof(change)], self.log)
        self.log = log          # the old one is kept under the ticket until the answer
        return ticket

    def configure(self, bytes what not None) -> int:
        """Give the device other parameters, as bytes of its own, from the next request on."""
        return self.post(CMD_CONFIGURE, 0, 0, what)

    def start(self, uint32_t ring, place, *, uint32_t index, uint32_t size, uint32_t base,
              bint packed, bint event_idx, bint indirect, uint64_t inflight=0, uint32_t entries=0,
              bint is_lent=False, bint taken_over=False, bint broken=False) -> int:
        """Start a stopped ring of `size` descriptors at `base`, as SET_VRING_BASE gives it.

        `index` is the device's number of it.

        What is in flight is recorded at the address `inflight`, if that is not 0: a region of
        `entries` descriptors that is mapped for as long as the ring may run.  One that `is_lent`
        is given to whoever serves the ring next.

        `place` is (desc, driver, device, logged, kept): `logged` has the pieces of guest memory
        that we write there, where that is logged, and `kept` is kept for as long as it lies there.

        One that is `taken_over` goes on exactly where it was left, `broken` if it was so.
        """
        cdef VringStart how
        memset(&how, 0, sizeof(how))
        how.place = placement(place)
        how.index, how.size, how.base, how.packed = index, size, base, packed
        how.inflight, how.entries = <void *>inflight, entries
        how.is_lent = is_lent
        how.event_idx, how.indirect = event_idx, indirect
        how.taken_over, how.broken = taken_over, broken
        return self.post_placement(CMD_START, ring, (<char *>&how)[:sizeof(how)], place)

    def move(self, uint32_t ring, place) -> int:
        """Tell a running ring where it lies now."""
        cdef Placement where = placement(place)
        return self.post_placement(CMD_MOVE, ring, (<char *>&where)[:sizeof(where)], place)

    cdef uint64_t post_placement(self, CommandKind kind, uint32_t ring, bytes data, place) except 0:
        """Post a command that gives a ring this place; it may be at the old one until the answer.
        """
        ticket = self.post(kind, ring, 0, data, self.places.get(ring))
        self.places[ring] = place
        return ticket

    def stop(self, uint32_t ring) -> int:
        """Drain and stop a ring; the answer is its next base, as GET_VRING_BASE gives it."""
        return self.post(CMD_STOP, ring, 0, None, self.places.pop(ring, None))

    def enable(self, uint32_t ring, bint enabled) -> int:
        """Let a ring be served, or have it wait."""
        return self.post(CMD_ENABLE, ring, enabled, None)

    def set_kick(self, uint32_t ring, int fd) -> int:
        """Listen to this eventfd, -1 for none; the old one is unused after the answer."""
        return self.post(CMD_SET_KICK, ring, fd, None)

    def set_call(self, uint32_t ring, int fd) -> int:
        """Notify this eventfd, -1 for none; the old one is unused after the answer."""
        return self.post(CMD_SET_CALL, ring, fd, None)

    def set_error(self, uint32_t ring, int fd) -> int:
        """Report a broken ring to this eventfd, -1 for none; the old one is then unused."""
        return self.post(CMD_SET_ERROR, ring, fd, None)

    def prepare(self) -> int:
        """Have all made that is else made when a ring first needs it."""
        return self.post(CMD_PREPARE, 0, 0, None)

    def pause(self) -> int:
        """Fetch no more; answered once nothing is in flight, or -ECANCELED by `resume`."""
        return self.post(CMD_PAUSE, 0, 0, None)

    def resume(self) -> int:
        """Fetch again."""
        return self.post(CMD_RESUME, 0, 0, None)

    def retry(self, uint32_t count) -> int:
        """Have the device begin up to `count` requests again that it has put off."""
        return self.post(CMD_RETRY, 0, count, None)

    def quit(self) -> int:
        """Leave `run` at once; what is in flight is abandoned to the kernel."""
        return self.post(CMD_QUIT, 0, 0, None)

    def counters(self, uint32_t ring) -> dict:
        """The counters of one ring since the worker was made, by name."""
        if ring >= self.state.count:
            raise IndexError(f"ring {ring} of {self.state.count}")
        return {
            **self.part.counters(ring),
            "kicks": load_relaxed_u64(&self.state.vrings[ring].kick.count),
            "calls": load_relaxed_u64(&self.state.vrings[ring].call.count),
        }

    def ring_state(self, uint32_t ring) -> dict:
        """A moment's view of one ring; `base` is what `stop` would answer."""
        cdef const Vring *r
        if ring >= self.state.count:
            raise IndexError(f"ring {ring} of {self.state.count}")
        r = &self.state.vrings[ring]
        return {
            "started": is_started(r), "enabled": bool(r.enabled),
            "broken": r.state in (BROKEN, LOST),
            "lost": is_started(r) and not r.is_placed and r.state != WAITING, "size": r.vq.size,
            "in_flight": r.in_flight, "next_avail": r.vq.avail.index,
            "base": vring_base(&r.vq),
        }

    def flaw(self, uint32_t ring) -> tuple:
        """Why a ring is served no more, as `virtio.flaws.Flaw` has it, once that was reported."""
        cdef const Flaw *flaw
        if ring >= self.state.count:
            raise IndexError(f"ring {ring} of {self.state.count}")
        flaw = &self.state.vrings[ring].vq.flaw
        return flaw.kind, flaw.where, flaw.value, flaw.limit


# ---- what a worker was left with ----

def cut_off(workers) -> None:
    """Put private memory in the place of all guest memory that abandoned chains of `workers` name.

    A library that cannot be stopped may go on reading and writing there for as long as it likes:
    it reads what was there, and what it writes reaches no guest.  The threads of all workers that
    know this memory have ended.

    Raises:
        OSError: There is no room for that.
    """
    cdef Device *device
    cdef Mapping mapping
    cdef void *private
    for mapping in set().union(*((<Worker>worker).mappings() for worker in workers)):
        private = reserve(mapping.length)
        if private == NULL:
            raise MemoryError(f"cannot reserve {mapping.length} bytes")
        for worker in workers:
            device = (<Worker>worker).state.device
            device.copy_read(
                device, <const uint8_t *>mapping.base, mapping.length, <uint8_t *>private
            )
        if mremap(private, mapping.length, mapping.length, MREMAP_MAYMOVE | MREMAP_FIXED,
                  mapping.base) == MAP_FAILED:
            error = errno
            munmap(private, mapping.length)
            raise OSError(error, os.strerror(error))
        forget_mapping(mapping.base)


# ---- how this was built ----

def has_usdt_probes() -> bool:
    """Whether the extensions have the USDT probes of `sys.usdt`."""
    return HAS_PROBES


# ---- what this kernel's io_uring can do ----

def restricts_io_uring() -> bool:
    """Whether this kernel keeps an io_uring to what it was made for.

    Raises:
        OSError: There is no io_uring, or it is forbidden.
    """
    cdef io_uring ring
    cdef int rc = open_uring(&ring, IORING_SETUP_R_DISABLED)
    if rc >= 0:
        rc = enable_uring(&ring, 0, 0, 0)
        io_uring_queue_exit(&ring)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc == 1


def probe_io_uring() -> dict:
    """Whether this kernel's io_uring has each operation that the data path uses, by name.

    Raises:
        OSError: There is no io_uring, or it is forbidden.
    """
    cdef io_uring ring
    cdef io_uring_probe *probe
    cdef int rc = open_uring(&ring)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    probe = io_uring_get_probe_ring(&ring)
    try:
        if probe == NULL:
            raise OSError(EINVAL, "io_uring cannot be probed")
        return {
            "READ": bool(io_uring_opcode_supported(probe, IORING_OP_READ)),
            "READV": bool(io_uring_opcode_supported(probe, IORING_OP_READV)),
            "WRITE": bool(io_uring_opcode_supported(probe, IORING_OP_WRITE)),
            "WRITEV": bool(io_uring_opcode_supported(probe, IORING_OP_WRITEV)),
            "FSYNC": bool(io_uring_opcode_supported(probe, IORING_OP_FSYNC)),
            "FALLOCATE": bool(io_uring_opcode_supported(probe, IORING_OP_FALLOCATE)),
            "POLL_ADD": bool(io_uring_opcode_supported(probe, IORING_OP_POLL_ADD)),
            "ASYNC_CANCEL": bool(io_uring_opcode_supported(probe, IORING_OP_ASYNC_CANCEL)),
            "MSG_RING": bool(io_uring_opcode_supported(probe, IORING_OP_MSG_RING)),
        }
    finally:
        io_uring_free_probe(probe)
        io_uring_queue_exit(&ring)
