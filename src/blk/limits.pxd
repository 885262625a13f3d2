# SPDX-License-Identifier: Apache-2.0
"""What a guest's requests are checked against, and what they are answered from."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.layouts cimport ID_BYTES


cdef enum:
    MAX_RANGES = 256            # segments of one DISCARD or WRITE_ZEROES, at the most


cdef struct BlkLimits:
    # The device as the data path needs it; a copy of the worker's own.
    uint64_t capacity           # bytes
    uint32_t block_mask         # logical block size - 1
    uint32_t max_discard_sectors    # 0: DISCARD is not offered
    uint32_t max_zero_sectors       # 0: WRITE_ZEROES is not offered
    uint32_t max_ranges
    bint read_only
    bint write_through          # each write is durable before it is answered
    uint8_t serial[ID_BYTES]
    bint hold_no_space          # requests for which the image has no space are held
    bint hold_errors            # and those that fail otherwise
    uint64_t longest_held       # nanoseconds that such a one is held; 0 for as long as it takes
    uint64_t slow               # nanoseconds from which on a request is slow; 0: none is
