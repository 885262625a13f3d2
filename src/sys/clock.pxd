# SPDX-License-Identifier: Apache-2.0
"""A clock for what is measured in nanoseconds, and how long io_uring is to wait."""

from libc.stdint cimport int64_t, uint64_t

cdef extern from "<linux/time_types.h>" nogil:
    cdef struct KernelTimespec "__kernel_timespec":
        int64_t tv_sec
        int64_t tv_nsec


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
