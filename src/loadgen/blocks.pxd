# SPDX-License-Identifier: Apache-2.0
"""Blocks that describe themselves, so that what comes back can be judged by itself.

A block is a head and words that follow from it; a checksum covers all of it.  What is lost,
old, torn, damaged or in the wrong place shows, and where.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #define BLKD_BLOCK_MAGIC 0x31304b4c42444b42ULL      /* reads BKDBLK01 */
    #define BLKD_ODD_1 0x9e3779b97f4a7c15ULL            /* splitmix64's constants: odd, */
    #define BLKD_ODD_2 0xbf58476d1ce4e5b9ULL            /* and their bits well mixed */
    """
    const uint64_t MAGIC "BLKD_BLOCK_MAGIC"
    const uint64_t ODD_1 "BLKD_ODD_1"
    const uint64_t ODD_2 "BLKD_ODD_2"


cdef enum:                      # the words of a block's head, 8 bytes each
    HEAD_MAGIC
    HEAD_CHECKSUM               # of all words but this one
    HEAD_OFFSET                 # bytes on the disk
    HEAD_SEED
    HEAD_GENERATION             # the pass over the disk that wrote it, from 1
    HEAD_SEQUENCE               # where in that pass it was written
    HEAD_WORDS


cdef enum What:                 # is the matter with a block
    INTACT
    FOREIGN                     # no block of ours: never written, lost, or overwritten
    DAMAGED
    MISPLACED                   # whole, but of another offset
    OTHER_SEED                  # whole, but of another run
    STALE                       # whole, but not the last that was written here


cdef struct Block:              # what a block is made of
    uint64_t offset
    uint64_t seed
    uint64_t generation
    uint64_t sequence


cdef struct Judgement:
    What what
    uint32_t at                 # byte of the block where it shows
    uint64_t found
    uint64_t expected


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """Spread every bit of `x` over the result; one to one."""
    x = (x ^ (x >> 30)) * ODD_2
    return x ^ (x >> 31)


cdef inline uint64_t body_key(const Block *b) noexcept nogil:
    """What a block's body follows from."""
    return mix(mix(b.offset + ODD_1) ^ mix(b.seed * ODD_1) ^ b.generation)


cdef inline uint64_t body_word(uint64_t key, uint32_t i) noexcept nogil:
    """Word `i` of the body: different in each place."""
    return (key + i) * ODD_1


cdef inline uint64_t head_word(const Block *b, uint32_t i) noexcept nogil:
    """Word `i` of the head, the checksum left out."""
    if i == HEAD_MAGIC:
        return MAGIC
    if i == HEAD_OFFSET:
        return b.offset
    if i == HEAD_SEED:
        return b.seed
    if i == HEAD_GENERATION:
        return b.generation
    return b.sequence


cdef inline uint64_t checksum(const uint64_t *words, uint32_t count) noexcept nogil:
    """Of `count` words, a multiple of 4, but HEAD_CHECKSUM; the order counts."""
    cdef uint64_t a = words[0], b = 0, c = words[2], d = words[3]
    cdef uint32_t i
    for i in range(4, count, 4):
        a = (a ^ words[i]) * ODD_1
        b = (b ^ words[i + 1]) * ODD_1
        c = (c ^ words[i + 2]) * ODD_1
        d = (d ^ words[i + 3]) * ODD_1
    return mix(mix(mix(mix(a) + b) + c) + d)


cdef inline void fill_block(uint64_t *words, uint32_t count, const Block *b) noexcept nogil:
    """Make block `b` of `count` words."""
    cdef uint64_t key = body_key(b)
    cdef uint32_t i
    for i in range(<uint32_t>HEAD_WORDS):
        words[i] = head_word(b, i)
    for i in range(<uint32_t>HEAD_WORDS, count):
        words[i] = body_word(key, i)
    words[HEAD_CHECKSUM] = checksum(words, count)


cdef inline Judgement judge(
    What what, uint32_t word, uint64_t found, uint64_t expected
) noexcept nogil:
    """A judgement that shows in `word`; of its bytes, the first that differs."""
    cdef Judgement j
    cdef uint64_t difference = found ^ expected
    j.what, j.found, j.expected = what, found, expected
    j.at = word * sizeof(uint64_t)
    while difference and not difference & 0xff:
        difference >>= 8
        j.at += 1
    return j


cdef inline Judgement find_damage(
    const uint64_t *words, uint32_t count, const Block *b
) noexcept nogil:
    """Where a block that fails its checksum first differs from what it should hold."""
    cdef uint64_t key = body_key(b)
    cdef uint32_t i
    for i in range(count):
        if i < <uint32_t>HEAD_WORDS:
            if i != HEAD_CHECKSUM and words[i] != head_word(b, i):
                return judge(DAMAGED, i, words[i], head_word(b, i))
        elif words[i] != body_word(key, i):
            return judge(DAMAGED, i, words[i], body_word(key, i))
    return judge(DAMAGED, HEAD_CHECKSUM, words[HEAD_CHECKSUM], checksum(words, count))


cdef inline Judgement check_block(
    const uint64_t *words, uint32_t count, Block *b, bint any_generation
) noexcept nogil:
    """Compare a block with `b`; with `any_generation`, take its last two fields over from it."""
    if words[HEAD_MAGIC] != MAGIC:
        return judge(FOREIGN, HEAD_MAGIC, words[HEAD_MAGIC], MAGIC)
    if any_generation:
        b.generation, b.sequence = words[HEAD_GENERATION], words[HEAD_SEQUENCE]
    if words[HEAD_CHECKSUM] != checksum(words, count):
        return find_damage(words, count, b)
    if words[HEAD_OFFSET] != b.offset:
        return judge(MISPLACED, HEAD_OFFSET, words[HEAD_OFFSET], b.offset)
    if words[HEAD_SEED] != b.seed:
        return judge(OTHER_SEED, HEAD_SEED, words[HEAD_SEED], b.seed)
    if words[HEAD_GENERATION] != b.generation:
        return judge(STALE, HEAD_GENERATION, words[HEAD_GENERATION], b.generation)
    return judge(INTACT, 0, 0, 0)


cdef inline uint64_t place_of(uint64_t sequence, uint64_t blocks, uint64_t seed) noexcept nogil:
    """The block that is `sequence`th in a pass in random order: each of `blocks` once.

    A one-to-one map of the next power of two onto itself, walked until it falls inside.
    """
    cdef uint64_t mask = 1, x = sequence
    cdef uint32_t half = 1
    while mask < blocks - 1:
        mask = mask << 1 | 1
    while mask >> (2 * half):
        half += 1
    while True:
        x = (x * ODD_1 + seed) & mask
        x ^= x >> half
        x = (x * ODD_2 + ODD_1) & mask
        x ^= x >> half
        if x < blocks:
            return x
