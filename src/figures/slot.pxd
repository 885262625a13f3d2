# SPDX-License-Identifier: Apache-2.0
"""A worker's slot of the statistics area: what it counts and measures, which others read.

`blkd/statistics/area_layout.py` has the same layout; a test compares.  Only the worker writes here,
by whole words, so whoever reads sees each as it was at some moment.
"""

from libc.stdint cimport uint64_t

from sys.atomics cimport load_relaxed_u64, store_relaxed_u64


cdef enum Operation:            # `OPERATIONS` of blkd/statistics/figures.py
    OF_READ
    OF_WRITE
    OF_FLUSH
    OF_DISCARD
    OF_WRITE_ZEROES
    OF_OTHER
    OPERATIONS


cdef enum:
    SIZE_CLASSES = 6
    CELLS = OPERATIONS * SIZE_CLASSES
    BUCKETS = 34                # up to 2^4, 2^5 ... 2^36 nanoseconds, and beyond
    SLOT_HEAD_WORDS = 512


cdef struct Errors:             # requests that were answered with an error
    uint64_t no_space           # ENOSPC, EDQUOT
    uint64_t io                 # EIO
    uint64_t other              # any other errno, or the image's end
    uint64_t unsupported
    uint64_t refused            # asked for what cannot be
    uint64_t unused[3]


cdef struct Events:
    uint64_t bounced            # transfers that went through a bounce buffer
    uint64_t unaligned          # requests whose buffers the image cannot take as they are
    uint64_t merged             # requests that a sync begun for another one made durable
    uint64_t kicks
    uint64_t calls
    uint64_t sleeps
    uint64_t sleeps_spared      # times that something came while the worker polled
    uint64_t unused[9]


cdef struct Cell:               # requests of one operation and one class of size
    uint64_t ring_ns            # sums of the times that are counted below
    uint64_t throttle_ns
    uint64_t disk_ns
    uint64_t unused
    uint64_t ring[BUCKETS]
    uint64_t throttle[BUCKETS]  # without those that were not throttled
    uint64_t disk[BUCKETS]
    uint64_t unused_too[22]


cdef struct Slot:
    uint64_t in_flight
    uint64_t oldest_at          # ns of CLOCK_MONOTONIC at which the oldest was fetched, or 0
    uint64_t throttled
    uint64_t held
    uint64_t busy_ns
    uint64_t cpu_ns
    uint64_t unused[2]
    Errors errors
    Events events
    uint64_t counts[CELLS]      # requests answered, whatever their status
    uint64_t bytes[CELLS]       # that they moved
    uint64_t unused_too[SLOT_HEAD_WORDS - 32 - 2 * CELLS]
    Cell cells[CELLS]


cdef inline void add(uint64_t *counter, uint64_t n) noexcept nogil:
    """Add to a counter of which this thread is the only writer."""
    store_relaxed_u64(counter, load_relaxed_u64(counter) + n)
