# SPDX-License-Identifier: Apache-2.0
"""The device as the data path needs it: its limits, its image, and the faults it is to show."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from virtio.layouts cimport ID_BYTES

cdef extern from "<linux/time_types.h>" nogil:
    cdef struct KernelTimespec "__kernel_timespec":
        int64_t tv_sec
        int64_t tv_nsec


cdef enum:
    MAX_FAULTS = 8              # rules of a faulty image
    MAX_RANGES = 256            # segments of one DISCARD or WRITE_ZEROES, at the most


cdef enum Engine:
    ENGINE_URING                # every request through io_uring
    ENGINE_INLINE               # what cannot block at once, the rest through io_uring
    ENGINE_NULL                 # nothing behind the disk: answered at once, untouched


cdef enum FaultAction:
    FAULT_FAIL                  # answered with an error, nothing done
    FAULT_DELAY                 # done later
    FAULT_SHORTEN               # the kernel is asked for a part first


cdef struct Fault:
    FaultAction action
    uint32_t kinds              # bits 1 << OperationKind
    uint32_t every              # n-th request that it touches
    uint64_t start              # bytes
    uint64_t end                # bytes, not included
    KernelTimespec delay


cdef struct BlkLimits:
    # The device as the data path needs it; a copy of the worker's own.
    int fd                      # the image; -1 for a null one
    int sync_fd                 # the same, open once more for this worker's syncs alone
    bint direct                 # open for direct I/O: writes have their own errors
    Engine engine
    int inline_flags            # RWF_NOWAIT where the file might block without it
    uint64_t capacity           # bytes
    uint32_t block_mask         # logical block size - 1
    uint32_t memory_mask        # alignment of buffers for the image's I/O - 1
    bint discard_by_command         # by io_uring's command for block devices, not by a hole
    uint32_t max_discard_sectors    # 0: DISCARD is not offered
    uint32_t max_zero_sectors       # 0: WRITE_ZEROES is not offered
    uint32_t max_ranges
    bint read_only
    bint write_through          # each write is durable before it is answered
    uint8_t serial[ID_BYTES]
    uint32_t fault_count        # 0 for any image that is not made to fail
    Fault faults[MAX_FAULTS]
