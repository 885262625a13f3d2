# SPDX-License-Identifier: Apache-2.0
"""Latencies in a log-linear histogram: fixed size, the same relative error everywhere."""

from libc.stdint cimport uint32_t, uint64_t

from loadgen.clock cimport log2_u64


cdef enum:
    SUB_BITS = 7                # 128 buckets a power of two: a bucket is 1/128 wide at the most
    SUB_BUCKETS = 1 << SUB_BITS
    BUCKETS = (64 - SUB_BITS + 1) << SUB_BITS


cdef struct Histogram:
    # All fields are the polling thread's while it runs; nanoseconds.
    uint64_t count
    uint64_t sum
    uint64_t least
    uint64_t most
    uint64_t buckets[BUCKETS]


cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    """Values below SUB_BUCKETS have one each, then each power of two has SUB_BUCKETS."""
    cdef int shift
    if ns < SUB_BUCKETS:
        return <uint32_t>ns
    shift = log2_u64(ns) - SUB_BITS
    return <uint32_t>((<uint64_t>shift << SUB_BITS) + (ns >> shift))


cdef inline uint64_t lowest_of(uint32_t bucket) noexcept nogil:
    """The smallest value that belongs to a bucket."""
    cdef uint32_t shift
    if bucket < SUB_BUCKETS:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    return <uint64_t>(bucket - (shift << SUB_BITS)) << shift


cdef inline void record(Histogram *h, uint64_t ns) noexcept nogil:
    """Count one latency."""
    h.count += 1
    h.sum += ns
    h.least = min(h.least, ns)
    h.most = max(h.most, ns)
    h.buckets[bucket_of(ns)] += 1
