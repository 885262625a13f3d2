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
        CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec *now)


cdef enum:
    SECOND = 1000000000         # nanoseconds


cdef inline uint64_t now() noexcept nogil:
    """Nanoseconds of a clock that only advances."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * SECOND + <uint64_t>t.tv_nsec


cdef inline uint64_t thread_cpu() noexcept nogil:
    """Nanoseconds for which this thread has had a processor; a system call."""
    cdef timespec t
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t)
    return <uint64_t>t.tv_sec * SECOND + <uint64_t>t.tv_nsec
