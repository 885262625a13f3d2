# SPDX-License-Identifier: Apache-2.0
"""A split ring's requests in flight: recorded when fetched, given back by the batch."""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memset

from inflight.region cimport (
    INFLIGHT_VERSION, Inflight, SplitEntry, SplitRegion, add_again, order_again,
)
from sys.atomics cimport (
    load_relaxed_u16, store_relaxed_u16, store_relaxed_u64, store_release_u8, store_release_u16,
    store_release_u64,
)
from virtio.virtq cimport Chain, UsedChain, Virtq


cdef inline SplitRegion *split_region(const Inflight *f) noexcept nogil:
    return <SplitRegion *>f.region


cdef inline SplitEntry *split_entries(const Inflight *f) noexcept nogil:
    """The entries behind the region's head, by the descriptor that a chain begins with."""
    return <SplitEntry *>(<SplitRegion *>f.region + 1)


cdef inline void record_split(Inflight *f, const Chain *chain) noexcept nogil:
    """Note that a chain was fetched."""
    cdef SplitEntry *entry = split_entries(f) + chain.id
    store_relaxed_u64(&entry.counter, f.counter)
    store_release_u8(&entry.inflight, 1)
    f.counter += 1


cdef inline void unrecord_split(Inflight *f, const Chain *chain) noexcept nogil:
    """Forget the chain that was recorded last, which is never carried out."""
    store_release_u8(&split_entries(f)[chain.id].inflight, 0)


cdef inline void link_split(Inflight *f, const UsedChain *used, uint32_t count) noexcept nogil:
    """Say which chains are about to be given back: before the driver sees any of them."""
    cdef SplitEntry *entries = split_entries(f)
    cdef uint32_t i
    cdef uint16_t head = f.head
    for i in range(count):
        store_relaxed_u16(&entries[used[i].id].next, head)
        head = <uint16_t>used[i].id
    f.head = head
    store_release_u16(&split_region(f).last_batch_head, head)


cdef inline void settle_split(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Note that the driver has them back: after it can see that."""
    cdef SplitEntry *entries = split_entries(f)
    cdef uint32_t i
    for i in range(count):
        store_release_u8(&entries[used[i].id].inflight, 0)
    store_release_u16(&split_region(f).used_idx, vq.used.index)


cdef inline void renew_split(Inflight *f, const Virtq *vq) noexcept nogil:
    """Make a region's record that of a ring of which nothing is in flight."""
    cdef SplitRegion *region = split_region(f)
    store_release_u16(&region.version, 0)
    memset(split_entries(f), 0, f.entries * sizeof(SplitEntry))
    region.features = 0
    region.desc_num = <uint16_t>f.entries
    region.last_batch_head = f.head = 0
    region.used_idx = vq.used.index
    f.counter = f.again_count = f.again_done = 0
    store_release_u16(&region.version, INFLIGHT_VERSION)


cdef inline void forget_given_back(Inflight *f, const Virtq *vq, uint32_t count) noexcept nogil:
    """Clear the last batch, of `count` chains, that the driver had seen when we died.

    The list has the latest first, and as many as the used index went on.
    """
    cdef SplitEntry *entries = split_entries(f)
    cdef uint32_t at = f.head, _
    for _ in range(count):
        if at >= vq.size:
            break               # nothing that we wrote
        store_release_u8(&entries[at].inflight, 0)
        at = load_relaxed_u16(&entries[at].next)
    store_release_u16(&split_region(f).used_idx, vq.used.index)


cdef inline void recover_split(Inflight *f, Virtq *vq) noexcept nogil:
    """Find what is in flight in a ring that was placed with `start_split`.

    Where that is something, the ring's position is behind it; else it is that of the base.
    A region that is fresh, or of a used index that no ring of this size can have come from,
    is begun anew.
    """
    cdef SplitRegion *region = split_region(f)
    cdef SplitEntry *entries = split_entries(f)
    cdef uint32_t i, missing = <uint16_t>(vq.used.index - region.used_idx)
    if region.version != INFLIGHT_VERSION or missing > vq.size:
        renew_split(f, vq)
        return
    f.head = region.last_batch_head
    f.again_count = 0
    if missing:
        forget_given_back(f, vq, missing)
    for i in range(vq.size):
        if entries[i].inflight:
            add_again(f, entries[i].counter, <uint16_t>i, 1)
    order_again(f)
    for i in range(f.again_count):
        store_release_u64(&entries[f.again[i].entry].counter, i)
    if f.again_count:
        vq.avail.index = vq.avail_seen = <uint16_t>(vq.used.index + f.again_count)
