# SPDX-License-Identifier: Apache-2.0
"""A circular buffer of bytes, and the ends of messages in it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from sys.uring cimport iovec
from virtio.segments cimport put_bytes, take_bytes
from virtio.virtq cimport Segment


cdef extern from *:
    """
    #define blkd_lowest_bit(word) ((uint32_t)__builtin_ctzll(word))
    """
    uint32_t lowest_bit "blkd_lowest_bit"(uint64_t word) noexcept nogil


cdef struct Buffer:
    uint8_t *base
    uint32_t size               # bytes, a power of two
    uint32_t head               # of the first byte that is kept; free-running
    uint32_t tail               # behind the last
    uint64_t *ends              # a bit a byte: a message ends with it; NULL for a stream
    uint64_t *records           # ... and a record does


cdef inline void clear(Buffer *b) noexcept nogil:
    """Forget all that is kept; a buffer of messages has no mark left."""
    cdef uint32_t i
    if b.ends != NULL and b.head != b.tail:
        for i in range(b.size // 64):
            b.ends[i] = b.records[i] = 0
    b.head = b.tail = 0


cdef inline uint32_t kept(const Buffer *b) noexcept nogil:
    """Bytes in it."""
    return b.tail - b.head


cdef inline uint32_t room(const Buffer *b, uint8_t **at) noexcept nogil:
    """Room in one piece, and where; less than there is where that goes round the end."""
    cdef uint32_t place = b.tail & (b.size - 1)
    at[0] = b.base + place
    return min(b.size - kept(b), b.size - place)


cdef inline uint32_t first_piece(const Buffer *b, uint8_t **at) noexcept nogil:
    """What is kept first, in one piece, and where."""
    cdef uint32_t place = b.head & (b.size - 1)
    at[0] = b.base + place
    return min(kept(b), b.size - place)


cdef inline uint32_t pieces(const Buffer *b, uint32_t length, iovec *out) noexcept nogil:
    """The first `length` bytes, which are kept, as one or two pieces: how many."""
    cdef uint8_t *at
    cdef uint32_t first = first_piece(b, &at)
    out[0].iov_base, out[0].iov_len = at, min(first, length)
    if length <= first:
        return 1
    out[1].iov_base, out[1].iov_len = b.base, length - first
    return 2


cdef inline void add_from(
    Buffer *b, Segment **segments, uint32_t *count, uint32_t length
) noexcept nogil:
    """Add bytes off the front of a chain's segments, which have as many; there is room."""
    cdef uint8_t *at
    cdef uint32_t piece
    while length:
        piece = min(room(b, &at), length)
        take_bytes(segments, count, at, piece)
        b.tail += piece
        length -= piece


cdef inline void give_to(
    Buffer *b, Segment **segments, uint32_t *count, uint32_t length
) noexcept nogil:
    """Move bytes that are kept to the front of a chain's segments, which have room."""
    cdef uint8_t *at
    cdef uint32_t piece
    while length:
        piece = min(first_piece(b, &at), length)
        put_bytes(segments, count, at, piece)
        b.head += piece
        length -= piece


cdef inline void mark_end(Buffer *b, bint is_record) noexcept nogil:
    """Have a message end with the last byte, unless one does, or was sent on: it is empty."""
    cdef uint32_t at = (b.tail - 1) & (b.size - 1)
    if kept(b) == 0 or (b.ends[at >> 6] >> (at & 63)) & 1:
        return
    b.ends[at >> 6] |= <uint64_t>1 << (at & 63)
    if is_record:
        b.records[at >> 6] |= <uint64_t>1 << (at & 63)


cdef inline uint32_t first_message(const Buffer *b, bint *is_record) noexcept nogil:
    """Bytes of the first message, once all of it is kept, else 0; and whether it ends a record."""
    cdef uint32_t at = b.head, left = kept(b), place, step
    cdef uint64_t word
    while left:
        place = at & (b.size - 1)
        step = min(64 - (place & 63), left)
        word = b.ends[place >> 6] >> (place & 63)
        if word and lowest_bit(word) < step:
            at += lowest_bit(word)
            place = at & (b.size - 1)
            is_record[0] = (b.records[place >> 6] >> (place & 63)) & 1
            return at - b.head + 1
        at += step
        left -= step
    return 0


cdef inline void drop_message(Buffer *b, uint32_t length) noexcept nogil:
    """Take the first message, of `length` bytes, out, with its marks."""
    cdef uint32_t at = (b.head + length - 1) & (b.size - 1)
    cdef uint64_t bit = <uint64_t>1 << (at & 63)
    b.ends[at >> 6] &= ~bit
    b.records[at >> 6] &= ~bit
    b.head += length
