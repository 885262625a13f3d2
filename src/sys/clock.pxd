# SPDX-License-Identifier: Apache-2.0
"""A clock for what is measured in nanoseconds."""

from libc.stdint cimport uint64_t

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)


cdef inline uint64_t now() noexcept nogil:
    """Nanoseconds of a clock that only advances."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec
