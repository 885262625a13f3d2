# SPDX-License-Identifier: Apache-2.0
"""What Python sees of a block device on the data path: its part of a worker, and its engines.

A worker (`blkd.ring`) calls the functions of `blk.serving`, and knows no more of block devices.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.errno cimport EINVAL
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from blk.budgets cimport bend, is_behind, line_at, read_line, write_line
from blk.holding cimport REPORT_HELD
from blk.layouts cimport (
    BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES, BlkRange,
)
from blk.limits cimport BlkLimits, MAX_RANGES
from blk.limits_page cimport (
    Budget, DIMENSIONS, LIMITS_LAYOUT, LIMITS_PAGE_BYTES, LimitsPage, Line,
)
from blk.request cimport BlkVring, Request
from blk.serving cimport be_blk
from blk.slow cimport REPORT_SLOW
from blk.state cimport Blk, Held, SLOW_KEPT, SlowRequest, SlowRequests
from engine.engine cimport (
    BOUNCE_BUFFERS, BOUNCE_BYTES, ENGINE_CAPSULE, ENGINE_FOREIGN, ENGINE_INLINE, ENGINE_NULL,
    ENGINE_URING, Engine as EngineState, EngineFunctions, FAULT_DELAY, FAULT_FAIL,
    FAULT_SHORTEN, Fault, IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, IO_ZEROES, Io, MAX_FAULTS,
    MAX_IOVECS, REPEAT_DELAYS, REPORT_SYNC, STEP_DELAY, STEP_PAUSE, STEP_RANGE, STEP_SYNC,
    STEP_TRANSFER, STEP_UNBOUNCED, STEP_UNSYNCED, STEP_ZEROES, ZERO_BYTES,
)
from sys.atomics cimport (
    load_acquire_i32, load_acquire_u32, load_relaxed_u32, load_relaxed_u64, replace_u64,
    store_once, store_relaxed_u64, store_release_u32,
)
from sys.clock cimport SECOND, now
from sys.pages cimport munmap, reserve
from sys.uring cimport (
    RWF_NOWAIT, io_uring, io_uring_cqe, io_uring_get_sqe, io_uring_peek_batch_cqe,
    io_uring_queue_exit, io_uring_submit_and_wait, iovec, prep_discard,
)
from worker.loop cimport open_uring
from worker.state cimport DEVICE_CAPSULE, SPARE_SEGMENTS


# ---- Python face ----

import os

SYNC_FAILED = REPORT_SYNC       # as `ring.Worker.answers` has it: the image's first failed sync
HELD = REPORT_HELD              # likewise: a request is held, and none was before
SLOW = REPORT_SLOW              # likewise: `BlkPart.take_slow` has something


# ---- engines ----

FAULT_ACTIONS = {"fail": FAULT_FAIL, "delay": FAULT_DELAY, "short": FAULT_SHORTEN}
KINDS = {
    "read": IO_READ, "write": IO_WRITE, "flush": IO_FLUSH, "discard": IO_DISCARD,
    "zeroes": IO_ZEROES,
}


NAMES = {kind: name for name, kind in KINDS.items()}


cdef Fault fault_of(rule):
    """One rule of a faulty image."""
    cdef Fault f
    action, operations, every, start, end, delay, most, error = rule
    f.action, f.every, f.start, f.end = FAULT_ACTIONS[action], every, start, end
    f.most, f.error = most, -error
    f.kinds = sum(1 << KINDS[name] for name in operations)
    f.delay.tv_sec, f.delay.tv_nsec = divmod(delay, <uint64_t>SECOND)
    return f


cdef class SyncState:
    """What all workers of an image know of its syncs: the first failure, which stays."""

    cdef int32_t state          # -errno, or 0; the first to write it is the last

    @property
    def error(self) -> int:
        """The errno of the first sync that failed, 0 without one."""
        return -load_acquire_i32(&self.state)

    def fail(self, int32_t error) -> bool:
        """Note that a sync failed with this errno: whether it is the first."""
        return bool(store_once(&self.state, -error))


cdef class Engine:
    """How one worker is to do I/O on an image; a subclass says which way."""

    cdef EngineState state      # as the worker's is to begin
    cdef tuple kept             # what that points to


cdef class FileEngine(Engine):
    """A file or block device that the kernel reads and writes.

    `fd` is the image; `sync_fd` the same, as no other worker has it open, and `syncs` is what all
    of them know of their syncs.  `direct` says whether it is open for direct I/O.  With `at_once`
    a worker tries first what cannot wait, and with `nowait` also asks the file not to.  A block
    device is discarded on `discard_by_command`, else by punching a hole.
    """

    def __init__(self, *, int fd, int sync_fd, bint direct, bint at_once, bint nowait,
                 uint32_t block_size, uint32_t memory_alignment, bint discard_by_command,
                 SyncState syncs not None):
        self.state.kind = ENGINE_INLINE if at_once else ENGINE_URING
        self.state.fd, self.state.sync_fd, self.state.direct = fd, sync_fd, direct
        self.state.inline_flags = RWF_NOWAIT if nowait else 0
        self.state.block_mask, self.state.memory_mask = block_size - 1, memory_alignment - 1
        self.state.discard_by_command = discard_by_command
        self.state.sync_error = &syncs.state
        self.kept = (syncs,)


cdef class NullEngine(Engine):
    """Nothing behind the disk."""

    def __init__(self):
        self.state.kind = ENGINE_NULL


cdef class ForeignEngine(Engine):
    """What another module gives: a capsule named ENGINE_CAPSULE around its `EngineFunctions`.

    The capsule owns what they need, so it is kept until nothing is started any more.
    """

    def __init__(self, capsule):
        cdef const EngineFunctions *functions = <const EngineFunctions *>PyCapsule_GetPointer(
            capsule, ENGINE_CAPSULE
        )
        if functions.io_size != sizeof(Io):
            raise ValueError(f"an engine made for Ios of {functions.io_size} bytes: build it anew")
        self.state.kind = ENGINE_FOREIGN
        self.state.functions = functions
        self.kept = (capsule,)


cdef class FaultyEngine(Engine):
    """Another engine that is to go wrong by rules.

    A rule is a tuple of action, operations, every, start, end, delay in nanoseconds, most and
    error, as `image.engine.Fault` has them.
    """

    def __init__(self, Engine inner not None, faults):
        if len(faults) > MAX_FAULTS:
            raise ValueError(f"{len(faults)} faults, not {MAX_FAULTS} at most")
        self.state, self.kept = inner.state, (inner,)
        self.state.fault_count = len(faults)
        for i, fault in enumerate(faults):
            self.state.faults[i] = fault_of(fault)


# ---- rates ----


cdef class Rates:
    """What a disk may do in a second, in a page that all its workers share.

    `memory` is the page, LIMITS_PAGE_BYTES that may be written and that outlive this process;
    None for one that does not.  What another process has counted there still counts.
    """

    cdef LimitsPage *page
    cdef uint8_t[::1] memory

    def __init__(self, memory=None):
        cdef uint64_t present = now()
        cdef uint32_t i
        self.memory = bytearray(LIMITS_PAGE_BYTES) if memory is None else memory
        if self.memory.shape[0] < LIMITS_PAGE_BYTES:
            raise ValueError(f"a page of {self.memory.shape[0]} bytes, not {LIMITS_PAGE_BYTES}")
        self.page = <LimitsPage *>&self.memory[0]
        if self.page.layout != LIMITS_LAYOUT:
            memset(self.page, 0, LIMITS_PAGE_BYTES)
            self.page.layout = LIMITS_LAYOUT
        self.page.waiting = 0       # who waited there has been begun, or will be anew
        for i in range(<uint32_t>DIMENSIONS):
            self.page.shares[i].waiting = 0
            mend(&self.page.budgets[i].average, present)
            mend(&self.page.budgets[i].burst, present)

    def limit(self, uint32_t dimension, *, uint64_t average, uint64_t burst, uint64_t credit,
              uint64_t present=0):
        """Have so many units a second be begun on average, 0 for any number.

        A `burst` allows so many a second as long as there is credit, earned while less than the
        average is begun, up to so many units.  Nothing is earned or lost by a change.
        Workers keep it once they are configured.  Tests say what time it is.
        """
        cdef Budget *budget
        present = present or now()
        if dimension >= <uint32_t>DIMENSIONS:
            raise IndexError(f"dimension {dimension} of {<int>DIMENSIONS}")
        budget = &self.page.budgets[dimension]
        if credit != budget.credit:
            spend(&budget.average, &budget.position, budget.credit, present)
        if average != budget.average.rate:
            bend(&budget.average, average, present, budget.position)
        if burst != budget.burst.rate:
            bend(&budget.burst, burst, present, budget.burst_position)
        budget.credit = credit

    @property
    def iops_size(self) -> int:
        """Bytes of a read or write that count as one request; 0 for any number."""
        return self.page.iops_size

    @iops_size.setter
    def iops_size(self, uint64_t size):
        self.page.iops_size = size

    @property
    def waiting(self) -> int:
        """Queues of vrings in which requests wait, a moment's view."""
        return self.page.waiting


cdef void spend(Line *line, uint64_t *position, uint64_t credit, uint64_t present) noexcept:
    """Have no more saved up than `credit`, as a place that is taken now would find it."""
    cdef uint64_t at = load_relaxed_u64(position), floor = line_at(line, present) - credit
    if line.rate and is_behind(at, floor):
        replace_u64(position, at, floor)


cdef void mend(Line *line, uint64_t present) noexcept:
    """Have no limit in the place of a line that was being written, or is of the future."""
    cdef Line found
    if not read_line(line, &found) or found.since > present:
        write_line(line, 0, 0, 0)


# ---- a block device's part of a worker ----

PLACES = {
    STEP_TRANSFER: "disk", STEP_RANGE: "disk", STEP_ZEROES: "disk", STEP_SYNC: "sync",
    STEP_UNBOUNCED: "buffer", STEP_UNSYNCED: "sync", STEP_DELAY: "delay", STEP_PAUSE: "repeat",
}


TYPES = {
    BLK_T_IN: "read", BLK_T_OUT: "write", BLK_T_FLUSH: "flush", BLK_T_DISCARD: "discard",
    BLK_T_WRITE_ZEROES: "zeroes",
}


cdef where_is(const Request *q):
    """Where a request in flight is, in a word."""
    if q.held_since and q.pinned == NULL:
        return "held"
    if q.started_at == 0:
        return "throttle"
    return PLACES.get(q.io.step, "disk")


cdef class BlkPart:
    """A block device's part of one `ring.Worker`, which has up to `rings` vrings.

    It has a request for each of a vring's up to `largest` descriptors, and does its I/O by
    `engine`, which is its alone.  All parts of a disk keep `rates`; where a request waits for what
    its group grants, the eventfd `grants_fd`, borrowed, is written to.
    """

    cdef Blk blk
    cdef Engine given           # what `blk.engine` points to
    cdef Rates rates            # ... and what `blk.page` does
    cdef void *reserved
    cdef Py_ssize_t bytes_reserved
    cdef readonly object capsule    # as `ring.Worker` takes it

    def __cinit__(self, Engine engine not None, Rates rates not None, *, uint32_t rings,
                  uint32_t largest, uint32_t longest_chain, int grants_fd=-1):
        cdef uint32_t i, room = max(largest, longest_chain) + SPARE_SEGMENTS
        cdef size_t of_ring = largest * (
            sizeof(Request) + room * sizeof(iovec) + MAX_RANGES * sizeof(BlkRange)
            + sizeof(uint32_t)
        )
        cdef uint8_t *at
        self.given, self.blk.engine = engine, engine.state
        self.rates, self.blk.page = rates, rates.page
        self.blk.throttle.grants_fd = grants_fd
        self.blk.failure_round = 1
        be_blk(&self.blk.device)
        self.blk.device.vrings, self.blk.device.largest = rings, largest
        self.blk.device.longest_chain = longest_chain
        self.blk.device.has_threads = engine.state.kind == ENGINE_FOREIGN
        self.blk.vrings = <BlkVring *>calloc(rings, sizeof(BlkVring))
        self.blk.engine.iovecs = <iovec *>calloc(MAX_IOVECS, sizeof(iovec))
        if self.blk.vrings == NULL or self.blk.engine.iovecs == NULL:
            raise MemoryError
        self.bytes_reserved = ZERO_BYTES + BOUNCE_BUFFERS * BOUNCE_BYTES + rings * of_ring
        self.reserved = reserve(self.bytes_reserved)
        if self.reserved == NULL:
            raise MemoryError(f"cannot reserve {self.bytes_reserved} bytes")
        at = lay_out_engine(&self.blk.engine, <uint8_t *>self.reserved)
        for i in range(rings):
            lay_out(&self.blk.vrings[i], at + i * of_ring, largest, room)
        self.capsule = PyCapsule_New(&self.blk.device, DEVICE_CAPSULE, NULL)

    def __dealloc__(self):
        if self.reserved != NULL:
            munmap(self.reserved, self.bytes_reserved)
        free(self.blk.vrings)
        free(self.blk.engine.iovecs)

    @property
    def failures(self) -> dict:
        """What could not be carried out, by kind: name, count, and of the one last reported the
        byte offset and the errno, 0 where the image was at its end.
        """
        return {
            kind: (
                name, load_relaxed_u64(&self.blk.failures[kind].count),
                self.blk.failures[kind].offset, -self.blk.failures[kind].error,
            )
            for name, kind in KINDS.items()
        }

    @property
    def held(self) -> tuple:
        """A moment's view of the requests that are held or being tried again.

        How many, for how many of them the image has no space, since when in nanoseconds of
        CLOCK_MONOTONIC, and of the one held last its kind, its byte offset and the errno, 0 where
        the image was at its end.
        """
        cdef const Held *held = &self.blk.held
        return (
            load_relaxed_u32(&held.count), load_relaxed_u32(&held.no_space),
            load_relaxed_u64(&held.since), NAMES.get(held.kind, ""), held.offset, -held.error,
        )

    def in_flight(self) -> list:
        """A moment's view of the requests in flight, those that are held included.

        Of each: the device's vring, operation, byte offset and bytes of what is being done, when it
        was fetched in nanoseconds of CLOCK_MONOTONIC, and where it is.  The worker goes on
        meanwhile: what a request says may be of two that had its place one after the other.
        """
        cdef const BlkVring *b
        cdef const Request *q
        cdef uint32_t ring, i
        found = []
        for ring in range(self.blk.device.vrings):
            b = &self.blk.vrings[ring]
            for i in range(min(b.size, self.blk.device.largest)):
                q = &b.requests[i]
                begun_at = load_relaxed_u64(&q.begun_at)
                if begun_at:
                    found.append((
                        b.index, NAMES.get(q.io.kind, ""), q.io.offset, q.io.length, begun_at,
                        where_is(q),
                    ))
        return found

    def take_slow(self) -> tuple:
        """What is kept of slow requests, and how many in all there was no room for.

        Of each: the device's vring, type, byte offset, bytes, nanoseconds in ring, throttle and
        disk, the errno or 0, whether it went through a bounce buffer, and whether it had to be
        durable.
        """
        cdef SlowRequests *slow = &self.blk.slow
        cdef SlowRequest *q
        cdef uint32_t taken = slow.taken
        found = []
        store_release_u32(&slow.is_reported, 0)
        while taken != load_acquire_u32(&slow.written):
            q = &slow.kept[taken % SLOW_KEPT]
            found.append((
                q.ring, TYPES.get(q.type, "other"), q.offset, q.bytes,
                (q.times.ring, q.times.throttle, q.times.disk), max(-q.result, 0),
                bool(q.bounced), bool(q.durable),
            ))
            taken += 1
            store_release_u32(&slow.taken, taken)
        return found, load_relaxed_u64(&slow.missed)

    def report_failures(self) -> None:
        """Have the next request of each kind that fails reported again."""
        store_relaxed_u64(&self.blk.failure_round, self.blk.failure_round + 1)

    def counters(self, uint32_t ring) -> dict:
        """What was answered on one vring since this was made, by name."""
        if ring >= self.blk.device.vrings:
            raise IndexError(f"ring {ring} of {self.blk.device.vrings}")
        return self.blk.vrings[ring].counters


cdef uint8_t *lay_out_engine(EngineState *e, uint8_t *at) noexcept:
    """Give an engine its buffers, out of what was reserved at `at`: the end of them."""
    cdef uint64_t delay
    e.zeros = at
    at += ZERO_BYTES
    e.free_bounce_count = BOUNCE_BUFFERS
    for i in range(<uint32_t>BOUNCE_BUFFERS):
        e.free_bounces[i] = at
        at += BOUNCE_BYTES
    for i in range(<uint32_t>REPEAT_DELAYS):
        delay = <uint64_t>1000000 << i
        e.delays[i].tv_sec = delay // SECOND
        e.delays[i].tv_nsec = delay % SECOND
    return at


cdef void lay_out(BlkVring *b, uint8_t *at, uint32_t largest, uint32_t room) noexcept:
    """Give a vring's part its tables, out of what was reserved for it."""
    b.iov_room = room
    b.requests = <Request *>at
    b.iovecs = <iovec *>(b.requests + largest)
    b.ranges = <BlkRange *>(b.iovecs + <size_t>largest * room)
    b.free = <uint32_t *>(b.ranges + <size_t>largest * MAX_RANGES)


def limits(*, uint64_t capacity, uint32_t block_size, uint32_t max_discard_sectors,
           uint32_t max_zero_sectors, uint32_t max_ranges, bint read_only, bint write_through,
           bytes serial, bint hold_no_space=False, bint hold_errors=False,
           uint64_t longest_held=0, uint64_t slow=0) -> bytes:
    """What the device allows, as `ring.Worker.configure` takes it; capacity in bytes.

    Requests are held for which the image has no space, or that fail otherwise: those up to
    `longest_held` nanoseconds, 0 for as long as it takes.  Those that take `slow` nanoseconds or
    longer are kept for `BlkPart.take_slow`, unless that is 0.
    """
    cdef BlkLimits out
    if max_ranges > MAX_RANGES:
        raise ValueError(f"{max_ranges} segments for a discard, not {MAX_RANGES} at most")
    memset(&out, 0, sizeof(out))
    out.capacity, out.block_mask = capacity, block_size - 1
    out.max_discard_sectors = max_discard_sectors
    out.max_zero_sectors = max_zero_sectors
    out.max_ranges = max_ranges
    out.read_only, out.write_through = read_only, write_through
    out.hold_no_space, out.hold_errors = hold_no_space, hold_errors
    out.longest_held, out.slow = longest_held, slow
    for i, byte in enumerate(serial[:sizeof(out.serial)]):
        out.serial[i] = byte
    return (<char *>&out)[:sizeof(out)]


# ---- what this kernel's io_uring can do ----

def probe_discard(int fd) -> bool:
    """Whether this kernel's io_uring discards on the block device that `fd` is, open to write.

    No byte is discarded: the kernel that knows the command refuses a range without any.

    Raises:
        OSError: There is no io_uring, or it is forbidden.
    """
    cdef io_uring ring
    cdef io_uring_cqe *cqe
    cdef int32_t result = 0
    cdef int rc = open_uring(&ring)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    prep_discard(io_uring_get_sqe(&ring), fd, 0, 0)
    rc = io_uring_submit_and_wait(&ring, 1)
    if rc >= 0 and io_uring_peek_batch_cqe(&ring, &cqe, 1) == 1:
        result = cqe.res
    io_uring_queue_exit(&ring)
    return result == -EINVAL
