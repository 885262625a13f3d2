# SPDX-License-Identifier: Apache-2.0
"""What a polling thread needs of the processor: a cheap clock and cheap chance."""

from libc.stdint cimport uint64_t


cdef extern from *:
    """
    #include <time.h>

    static inline unsigned long long blkd_monotonic_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000000ULL + t.tv_nsec;
    }

    #if defined(__x86_64__)
    #define BLKD_HAS_TSC 1
    #define blkd_counter() __builtin_ia32_rdtsc()
    #else
    #define BLKD_HAS_TSC 0
    #define blkd_counter() blkd_monotonic_ns()
    #endif

    /* The upper half of a product: `random` of 64 bits becomes one of `n` numbers. */
    static inline unsigned long long blkd_scale(unsigned long long random,
                                                unsigned long long n) {
        return (unsigned long long)(((unsigned __int128)random * n) >> 64);
    }

    #define blkd_log2(v) (63 - __builtin_clzll(v))
    """
    bint HAS_COUNTER "BLKD_HAS_TSC"
    uint64_t monotonic_ns "blkd_monotonic_ns"() noexcept nogil
    uint64_t counter "blkd_counter"() noexcept nogil
    uint64_t scale "blkd_scale"(uint64_t random, uint64_t n) noexcept nogil
    int log2_u64 "blkd_log2"(uint64_t v) noexcept nogil


cdef enum:
    RATIO_SHIFT = 20            # fixed point of `Clock.ratio`: an error below 3 in a million
    CALIBRATION_NS = 20000000
    CALIBRATION_TICKS = 2000    # a microsecond or less: both clocks take a tenth of that
    CALIBRATION_TRIES = 100


cdef struct Clock:
    bint by_counter             # the processor's counter, or else CLOCK_MONOTONIC
    uint64_t ratio              # nanoseconds a tick, times 2^RATIO_SHIFT


cdef inline uint64_t ticks(const Clock *clock) noexcept nogil:
    """Now; only differences mean something, see `ns_of`."""
    return counter() if clock.by_counter else monotonic_ns()


cdef inline uint64_t ns_of(const Clock *clock, uint64_t ticks) noexcept nogil:
    """A difference of ticks in nanoseconds; right up to an hour and more."""
    return (ticks * clock.ratio) >> RATIO_SHIFT


cdef inline uint64_t ticks_of(const Clock *clock, uint64_t ns) noexcept nogil:
    """A time in ticks, to within a millionth."""
    return <uint64_t>(<double>ns * (1 << RATIO_SHIFT) / <double>clock.ratio)


cdef inline uint64_t both(uint64_t *ns) noexcept nogil:
    """The counter, and CLOCK_MONOTONIC at the same moment.

    We may lose the processor between the two: then it takes too long, and is done again.
    """
    cdef uint64_t before, after
    cdef int _
    for _ in range(CALIBRATION_TRIES):
        before = counter()
        ns[0] = monotonic_ns()
        after = counter()
        if after - before < CALIBRATION_TICKS:
            break
    return before


cdef inline void calibrate(Clock *clock) noexcept nogil:
    """Find how long a tick is; takes CALIBRATION_NS, spinning."""
    cdef uint64_t began, ended, from_tick, to_tick
    clock.ratio = 1 << RATIO_SHIFT
    if not clock.by_counter:
        return
    from_tick = both(&began)
    while True:
        to_tick = both(&ended)
        if ended - began >= <uint64_t>CALIBRATION_NS:
            break
    clock.ratio = ((ended - began) << RATIO_SHIFT) // (to_tick - from_tick)


cdef inline uint64_t next_random(uint64_t *state) noexcept nogil:
    """The next number of a xorshift64 sequence; the state is never 0."""
    cdef uint64_t x = state[0]
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    state[0] = x
    return x
