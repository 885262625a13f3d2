# SPDX-License-Identifier: Apache-2.0
"""Bytes out of a chain's buffers and into them, however the driver has cut them (1.3, 2.6.4)."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from sys.atomics cimport copy_once
from virtio.virtq cimport Segment


cdef inline uint32_t readable_of(const Segment *segments, uint32_t count) noexcept nogil:
    """How many segments at the front are to be read; those behind are to be written (2.6.4.2)."""
    cdef uint32_t n = 0
    while n < count and not segments[n].device_writes:
        n += 1
    return n


cdef inline uint32_t take_bytes(
    Segment **segments, uint32_t *count, uint8_t *out, uint32_t length
) noexcept nogil:
    """Copy up to `length` bytes off the front of the segments; the number of bytes."""
    cdef uint32_t done = 0, piece
    cdef Segment *first
    while done < length and count[0]:
        first = segments[0]
        piece = min(length - done, first.len)
        copy_once(out + done, first.base, piece)
        done += piece
        first.base += piece
        first.len -= piece
        if first.len == 0:
            segments[0] += 1
            count[0] -= 1
    return done


cdef inline uint32_t give_bytes(
    const Segment *segments, uint32_t count, const uint8_t *source, uint32_t length
) noexcept nogil:
    """Copy up to `length` bytes into the segments; the number of bytes."""
    cdef uint32_t i, piece, done = 0
    for i in range(count):
        piece = min(length - done, segments[i].len)
        memcpy(segments[i].base, source + done, piece)
        done += piece
    return done


cdef inline uint32_t put_bytes(
    Segment **segments, uint32_t *count, const uint8_t *source, uint32_t length
) noexcept nogil:
    """Copy up to `length` bytes into the front of the segments, which is then behind them; how many
    bytes.
    """
    cdef uint32_t done = 0, piece
    cdef Segment *first
    while done < length and count[0]:
        first = segments[0]
        piece = min(length - done, first.len)
        memcpy(first.base, source + done, piece)
        done += piece
        first.base += piece
        first.len -= piece
        if first.len == 0:
            segments[0] += 1
            count[0] -= 1
    return done
