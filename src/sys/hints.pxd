# SPDX-License-Identifier: Apache-2.0
"""Hints to the compiler: how often something happens."""


cdef extern from *:
    """
    #define blkd_unlikely(x) __builtin_expect(!!(x), 0)

    /* A function, as a pointer of which gcc knows nothing: it cannot put it into its caller, where
     * it would take registers from what happens all the time.  Declared where it is used, with the
     * type of that function. */
    #define blkd_apart(function) ({ \
        __typeof__(*(function)) *blkd_pointer = (function); \
        __asm__("" : "+r"(blkd_pointer)); \
        blkd_pointer; \
    })
    """
    # Has the compiler lay what happens only now and then out of everything else's way.
    bint unlikely "blkd_unlikely"(bint condition) noexcept nogil
