# SPDX-License-Identifier: Apache-2.0
"""Connections that wait for their turn, by number, each once: so there is always room."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef enum:
    CONNECTIONS = 2048          # of one guest; a power of two


cdef struct Fifo:
    uint16_t numbers[CONNECTIONS]
    uint8_t has[CONNECTIONS]
    uint32_t head               # free-running
    uint32_t tail


cdef inline bint is_empty(const Fifo *f) noexcept nogil:
    return f.head == f.tail


cdef inline void add(Fifo *f, uint32_t number) noexcept nogil:
    """Have a connection wait, behind the others, unless it does."""
    if f.has[number]:
        return
    f.has[number] = True
    f.numbers[f.tail & (CONNECTIONS - 1)] = <uint16_t>number
    f.tail += 1


cdef inline uint32_t first(const Fifo *f) noexcept nogil:
    """The one that has waited longest; there is one."""
    return f.numbers[f.head & (CONNECTIONS - 1)]


cdef inline uint32_t take(Fifo *f) noexcept nogil:
    """The one that has waited longest, which waits no more; there is one."""
    cdef uint32_t number = first(f)
    f.head += 1
    f.has[number] = False
    return number
