# SPDX-License-Identifier: Apache-2.0
"""Times and sizes of requests, counted in the cells of a slot."""

from libc.stdint cimport uint32_t, uint64_t

from figures.slot cimport BUCKETS, Cell, Operation, SIZE_CLASSES, Slot, add

cdef extern from *:
    """
    #define blkd_bits(v) (64 - __builtin_clzll(v))
    """
    uint32_t bits "blkd_bits"(uint64_t v) noexcept nogil    # of a number that is not 0


cdef enum:
    LEAST_BITS = 4              # the first bucket ends at 2^4 nanoseconds ...
    LEAST_SIZE_BITS = 12        # ... and the first class at 2^12 bytes


cdef struct Times:              # nanoseconds, one after the other
    uint64_t ring
    uint64_t throttle
    uint64_t disk


cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    """The bucket that a time falls into; a bucket has its upper bound."""
    cdef uint32_t found = bits((ns - (ns != 0)) | (1 << LEAST_BITS) - 1) - LEAST_BITS
    return min(found, <uint32_t>(BUCKETS - 1))


cdef inline uint32_t size_class_of(uint64_t bytes) noexcept nogil:
    """The class of size of a request; a class has its upper bound."""
    cdef uint32_t found = bits((bytes - (bytes != 0)) | (1 << LEAST_SIZE_BITS) - 1)
    return min((found - LEAST_SIZE_BITS + 1) // 2, <uint32_t>(SIZE_CLASSES - 1))


cdef inline void measure(
    Slot *slot, Operation operation, uint64_t bytes, uint64_t n, const Times *times
) noexcept nogil:
    """Count `n` equal requests, of so many bytes and so long each.

    What took no time at the disk, or was not throttled, whoever reads counts.
    """
    cdef uint32_t number = operation * SIZE_CLASSES + size_class_of(bytes)
    cdef Cell *cell = &slot.cells[number]
    add(&cell.ring[bucket_of(times.ring)], n)
    add(&cell.ring_ns, n * times.ring)
    if times.disk:
        add(&cell.disk[bucket_of(times.disk)], n)
        add(&cell.disk_ns, n * times.disk)
    if times.throttle:
        add(&cell.throttle[bucket_of(times.throttle)], n)
        add(&cell.throttle_ns, n * times.throttle)
    add(&slot.bytes[number], n * bytes)
    add(&slot.counts[number], n)
