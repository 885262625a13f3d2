# SPDX-License-Identifier: Apache-2.0
"""What Python sees of a block device on the data path: its part of a worker, and its engines.

A worker (`blkd.ring`) calls the functions of `blk.serving`, and knows no more of block devices.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.errno cimport EINVAL
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from blk.layouts cimport BlkRange
from blk.limits cimport BlkLimits, MAX_RANGES
from blk.request cimport BlkVring, Request
from blk.serving cimport be_blk
from blk.state cimport Blk
from engine.engine cimport (
    BOUNCE_BUFFERS, BOUNCE_BYTES, ENGINE_CAPSULE, ENGINE_FOREIGN, ENGINE_INLINE, ENGINE_NULL,
    ENGINE_URING, Engine as EngineState, EngineFunctions, FAULT_DELAY, FAULT_FAIL, FAULT_SHORTEN,
    Fault, IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, IO_ZEROES, Io, MAX_FAULTS, MAX_IOVECS,
    REPEAT_DELAYS, REPORT_SYNC, ZERO_BYTES,
)
from sys.atomics cimport load_acquire_i32, load_relaxed_u64, store_once, store_relaxed_u64
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


# ---- engines ----

FAULT_ACTIONS = {"fail": FAULT_FAIL, "delay": FAULT_DELAY, "short": FAULT_SHORTEN}
KINDS = {
    "read": IO_READ, "write": IO_WRITE, "flush": IO_FLUSH, "discard": IO_DISCARD,
    "zeroes": IO_ZEROES,
}


cdef Fault fault_of(rule):
    """One rule of a faulty image."""
    cdef Fault f
    action, operations, every, start, end, delay = rule
    f.action, f.every, f.start, f.end = FAULT_ACTIONS[action], every, start, end
    f.kinds = sum(1 << KINDS[name] for name in operations)
    f.delay.tv_sec, f.delay.tv_nsec = divmod(delay, 1000000000)
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

    A rule is a tuple of action, operations, every, start, end and delay in nanoseconds, as
    `image.engine.Fault` has them.
    """

    def __init__(self, Engine inner not None, faults):
        if len(faults) > MAX_FAULTS:
            raise ValueError(f"{len(faults)} faults, not {MAX_FAULTS} at most")
        self.state, self.kept = inner.state, (inner,)
        self.state.fault_count = len(faults)
        for i, fault in enumerate(faults):
            self.state.faults[i] = fault_of(fault)


# ---- a block device's part of a worker ----

cdef class BlkPart:
    """A block device's part of one `ring.Worker`, which has up to `rings` vrings.

    It has a request for each of a vring's up to `largest` descriptors, and does its I/O by
    `engine`, which is its alone.
    """

    cdef Blk blk
    cdef Engine given           # what `blk.engine` points to
    cdef void *reserved
    cdef Py_ssize_t bytes_reserved
    cdef readonly object capsule    # as `ring.Worker` takes it

    def __cinit__(self, Engine engine not None, *, uint32_t rings, uint32_t largest,
                  uint32_t longest_chain):
        cdef uint32_t i, room = max(largest, longest_chain) + SPARE_SEGMENTS
        cdef size_t of_ring = largest * (
            sizeof(Request) + room * sizeof(iovec) + MAX_RANGES * sizeof(BlkRange)
            + sizeof(uint32_t)
        )
        cdef uint8_t *at
        self.given, self.blk.engine = engine, engine.state
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
        e.delays[i].tv_sec = delay // 1000000000
        e.delays[i].tv_nsec = delay % 1000000000
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
           bytes serial) -> bytes:
    """What the device allows, as `ring.Worker.configure` takes it; capacity in bytes."""
    cdef BlkLimits out
    if max_ranges > MAX_RANGES:
        raise ValueError(f"{max_ranges} segments for a discard, not {MAX_RANGES} at most")
    memset(&out, 0, sizeof(out))
    out.capacity, out.block_mask = capacity, block_size - 1
    out.max_discard_sectors = max_discard_sectors
    out.max_zero_sectors = max_zero_sectors
    out.max_ranges = max_ranges
    out.read_only, out.write_through = read_only, write_through
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
