# SPDX-License-Identifier: Apache-2.0
"""Requests in flight, recorded where they outlive us (vhost-user, "Inflight I/O tracking").

The front end keeps the region; who serves the ring next recovers from it what was fetched and
never given back.  It is read in one place only, when a ring is first served: all that
is needed in between has a copy of our own, so nothing that is done to the region does harm.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort


cdef enum:
    INFLIGHT_VERSION = 1        # 0: a region that nobody has used yet
    MAX_ENTRIES = 1024          # the longest ring that the session lets start


cdef struct SplitEntry:         # of the descriptor that a chain begins with
    uint8_t inflight
    uint8_t padding[5]
    uint16_t next               # given back before this one; ends nowhere
    uint64_t counter            # in which order the chains were fetched


cdef struct SplitRegion:        # SplitEntry[desc_num] behind it
    uint64_t features
    uint16_t version
    uint16_t desc_num
    uint16_t last_batch_head    # given back last
    uint16_t used_idx           # up to which the entries are known to be right


cdef struct PackedEntry:        # of one descriptor; the first of a chain speaks for all of it
    uint64_t state              # inflight u8, padding u8, next, last, num: see `state_word`
    uint64_t counter            # in which order the chains were fetched
    uint64_t copy               # id, flags, len: what is used is written over the ring's own
    uint64_t addr


cdef struct PackedRegion:       # PackedEntry[desc_num] behind it
    uint64_t features
    uint16_t version
    uint16_t desc_num
    uint32_t heads              # free_head, old_free_head; `desc_num` where nothing is free
    uint64_t positions          # used_idx, old_used_idx, used_ and old_used_wrap_counter, padding
    uint64_t padding


cdef struct Again:              # a chain to be carried out once more
    uint64_t counter
    uint16_t entry
    uint16_t descriptors


cdef struct Inflight:
    # All fields are the worker's once the ring is started.
    void *region                # SplitRegion or PackedRegion; NULL: nothing is recorded
    uint32_t entries            # of the region
    bint is_lent                # by the front end, to each who serves the ring
    uint64_t counter            # of the next chain
    uint16_t head               # split: given back last; packed: first free entry
    uint16_t *next              # packed: our copy of the entries' links
    uint16_t *last              # packed: and of where each chain ends
    Again *again                # chains to be carried out before any other, in this order
    uint32_t again_count
    uint32_t again_done


cdef inline bint is_recorded(const Inflight *f) noexcept nogil:
    """Whether this ring's requests are recorded."""
    return f.region != NULL


cdef inline bint has_again(const Inflight *f) noexcept nogil:
    """Whether requests of an earlier life wait to be carried out."""
    return f.again_done < f.again_count


cdef inline void add_again(
    Inflight *f, uint64_t counter, uint16_t entry, uint16_t descriptors
) noexcept nogil:
    """Have a chain carried out again."""
    cdef Again *again = &f.again[f.again_count]
    again.counter, again.entry, again.descriptors = counter, entry, descriptors
    f.again_count += 1


cdef inline int by_counter(const void *a, const void *b) noexcept nogil:
    """Which of two chains was fetched first, as qsort wants to know it."""
    cdef uint64_t first = (<const Again *>a).counter, second = (<const Again *>b).counter
    return (first > second) - (first < second)


cdef inline void order_again(Inflight *f) noexcept nogil:
    """Put the chains to be carried out again in the order in which they were fetched."""
    qsort(f.again, f.again_count, sizeof(Again), &by_counter)
    f.counter = f.again_count   # theirs are given anew, from 0 on
    f.again_done = 0
