# SPDX-License-Identifier: Apache-2.0
"""Hints to the compiler: how often something happens."""


cdef extern from *:
    """
    #define blkd_unlikely(x) __builtin_expect(!!(x), 0)
    """
    # Has the compiler lay what happens only now and then out of everything else's way.
    bint unlikely "blkd_unlikely"(bint condition) noexcept nogil
