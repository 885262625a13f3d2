# SPDX-License-Identifier: Apache-2.0
"""A packed ring's requests in flight: every descriptor copied, for the ring forgets them.

What is used is written over the ring's beginning, whatever chain lies there.  Fields that
belong together are written in one store: it is quicker, and no death can tear them apart.
"""

from libc.errno cimport EINVAL, ELOOP, ENOBUFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from inflight.region cimport (
    INFLIGHT_VERSION, Inflight, MAX_ENTRIES, PackedEntry, PackedRegion, add_again, order_again,
)
from sys.atomics cimport (
    copy_once, load_acquire_u32, load_relaxed_u16, load_relaxed_u64, store_release_u8,
    store_release_u16, store_release_u32, store_release_u64,
)
from virtio.flaw cimport (
    FLAW_INFLIGHT_CHAIN, FLAW_INFLIGHT_COUNT, FLAW_INFLIGHT_FREE_LIST, FLAW_INFLIGHT_FULL,
    FLAW_INFLIGHT_POSITION, found_flaw,
)
from virtio.guestmem cimport GuestMemory
from virtio.layouts cimport PACKED_F_AVAIL, PACKED_F_USED, PackedDesc
from virtio.packed cimport (
    add_packed, advance, is_available, is_used, packed_ring, retreat,
)
from virtio.virtq cimport Chain, Position, Segment, UsedChain, Virtq

cdef enum:                      # bits to the left of a word's lowest
    NEXT_AT = 16                # in an entry's state; below it the mark `inflight`
    LAST_AT = 32
    NUM_AT = 48
    FLAGS_AT = 16               # in its copy; below it `id`
    LEN_AT = 32
    OLD_AT = 16                 # in the region's heads and positions; below it the new one
    WRAP_AT = 32
    OLD_WRAP_AT = 40


cdef enum:
    MARK = 0xff                 # of an entry's state: `inflight`


cdef inline PackedRegion *packed_region(const Inflight *f) noexcept nogil:
    return <PackedRegion *>f.region


cdef inline PackedEntry *packed_entries(const Inflight *f) noexcept nogil:
    """The entries behind the region's head."""
    return <PackedEntry *>(<PackedRegion *>f.region + 1)


cdef inline uint64_t state_word(
    bint inflight, uint32_t next, uint32_t last, uint32_t descriptors
) noexcept nogil:
    """An entry's state; `last` and the number of descriptors count in a chain's first only."""
    return (
        (inflight != 0) | <uint64_t>next << NEXT_AT | <uint64_t>last << LAST_AT
        | <uint64_t>descriptors << NUM_AT
    )


cdef inline void forget(PackedEntry *entry) noexcept nogil:
    """Clear the mark of a chain's first entry."""
    store_release_u8(<uint8_t *>&entry.state, 0)


cdef inline void write_heads(PackedRegion *region, uint32_t head, uint32_t old) noexcept nogil:
    """Say where the free list begins, and where it did when it was last sure."""
    store_release_u32(&region.heads, head | old << OLD_AT)


cdef inline void write_positions(
    PackedRegion *region, Position position, Position old
) noexcept nogil:
    """Say up to where the driver has its chains back, and up to where that was last sure."""
    store_release_u64(
        &region.positions,
        position.index | <uint64_t>old.index << OLD_AT
        | <uint64_t>(position.wrap != 0) << WRAP_AT | <uint64_t>(old.wrap != 0) << OLD_WRAP_AT,
    )


cdef inline int record_packed(Inflight *f, Virtq *vq, Chain *chain) noexcept nogil:
    """Copy a chain that was just fetched: 0, or -ENOBUFS if more is in flight than there can be.

    The descriptors are read once more, for what they say is checked whenever it is used.
    """
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t head = f.head, at = head, last = head, _
    cdef Position where = vq.avail
    cdef PackedDesc d
    retreat(&where, chain.descriptors, vq.size)
    for _ in range(chain.descriptors):
        if at >= f.entries:
            return found_flaw(&vq.flaw, FLAW_INFLIGHT_FULL, 0, 0, f.entries, ENOBUFS)
        copy_once(&d, &packed_ring(vq)[where.index], sizeof(PackedDesc))
        entries[at].addr = d.addr
        entries[at].copy = d.id | <uint64_t>d.flags << FLAGS_AT | <uint64_t>d.len << LEN_AT
        last, at = at, f.next[at]
        advance(&where, 1, vq.size)
    chain.entry = head
    f.last[head] = <uint16_t>last
    f.head = <uint16_t>at
    entries[head].counter = f.counter
    f.counter += 1
    store_release_u64(
        &entries[head].state, state_word(True, f.next[head], last, chain.descriptors)
    )
    write_heads(packed_region(f), at, at)
    return 0


cdef inline void unrecord_packed(Inflight *f, const Chain *chain) noexcept nogil:
    """Forget the chain that was recorded last, which is not carried out now.

    Others may have been given back since then: its entries come before theirs in the free list.
    """
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t last = f.last[chain.entry]
    f.next[last] = f.head
    store_release_u64(
        &entries[last].state, state_word(last == chain.entry, f.head, last, chain.descriptors)
    )
    f.head = <uint16_t>chain.entry
    write_heads(packed_region(f), f.head, f.head)
    forget(&entries[chain.entry])


cdef inline void link_packed(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Say which chains are about to be given back: before the driver sees any of them."""
    cdef PackedEntry *entries = packed_entries(f)
    cdef Position after = vq.used
    cdef uint32_t i, entry, last, descriptors = 0
    cdef uint16_t head = f.head
    for i in range(count):
        entry = used[i].entry
        last = f.last[entry]
        f.next[last] = head
        store_release_u64(
            &entries[last].state, state_word(last == entry, head, last, used[i].descriptors)
        )
        head = <uint16_t>entry
        descriptors += used[i].descriptors
    write_heads(packed_region(f), head, f.head)
    f.head = head
    advance(&after, descriptors, vq.size)
    write_positions(packed_region(f), after, vq.used)


cdef inline void settle_packed(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Note that the driver has them back: after it can see that."""
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t i
    for i in range(count):
        forget(&entries[used[i].entry])
    write_heads(packed_region(f), f.head, f.head)
    write_positions(packed_region(f), vq.used, vq.used)


cdef inline void renew_packed(Inflight *f, const Virtq *vq) noexcept nogil:
    """Make a region's record that of a ring of which nothing is in flight."""
    cdef PackedRegion *region = packed_region(f)
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t i
    store_release_u16(&region.version, 0)
    memset(entries, 0, f.entries * sizeof(PackedEntry))
    for i in range(f.entries):
        f.next[i] = <uint16_t>(i + 1)
        entries[i].state = state_word(False, i + 1, 0, 0)
    region.features = 0
    region.desc_num = <uint16_t>f.entries
    f.head = 0
    write_heads(region, 0, 0)
    write_positions(region, vq.used, vq.used)
    f.counter = f.again_count = f.again_done = 0
    store_release_u16(&region.version, INFLIGHT_VERSION)


cdef inline int end_last_batch(Inflight *f, Virtq *vq) noexcept nogil:
    """Place the ring behind the last batch that its driver has seen: 0, or -EINVAL.

    A batch was seen if its first descriptor is not available any more; else it is undone.
    """
    cdef PackedRegion *region = packed_region(f)
    cdef uint64_t positions = load_relaxed_u64(&region.positions)
    cdef uint32_t heads = load_acquire_u32(&region.heads)
    cdef Position now, old
    now.index, now.wrap = <uint16_t>positions, positions >> WRAP_AT & 1
    old.index, old.wrap = <uint16_t>(positions >> OLD_AT), positions >> OLD_WRAP_AT & 1
    if max(now.index, old.index) >= vq.size:
        return found_flaw(
            &vq.flaw, FLAW_INFLIGHT_POSITION, 0, max(now.index, old.index), vq.size, EINVAL
        )
    f.head = <uint16_t>(heads >> OLD_AT)
    if (now.index != old.index or now.wrap != old.wrap) and not is_available(
        load_relaxed_u16(&packed_ring(vq)[old.index].flags), old.wrap
    ):
        f.head = <uint16_t>heads
        old = now
    write_heads(region, f.head, f.head)
    write_positions(region, old, old)
    vq.used = old
    return 0


cdef inline void withdraw_used(Virtq *vq, uint32_t descriptors) noexcept nogil:
    """Make all that is in flight, so many descriptors, look available again.

    Who died in the middle of showing a batch had marked all but its first one used; the driver
    would take them for given back as soon as it came there.
    """
    cdef Position position = vq.used
    cdef uint16_t *flags
    cdef uint32_t _
    for _ in range(descriptors):
        flags = &packed_ring(vq)[position.index].flags
        if is_used(load_relaxed_u16(flags), position.wrap):
            store_release_u16(flags, PACKED_F_AVAIL if position.wrap else PACKED_F_USED)
        advance(&position, 1, vq.size)


cdef inline int read_free_list(Inflight *f, Virtq *vq, bint *seen) noexcept nogil:
    """Copy the links, and note what is free: 0, or -ELOOP."""
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t i, at = f.head
    for i in range(f.entries):
        f.next[i] = <uint16_t>(load_relaxed_u64(&entries[i].state) >> NEXT_AT)
    while at < f.entries:
        if seen[at]:
            return found_flaw(&vq.flaw, FLAW_INFLIGHT_FREE_LIST, at, 0, 0, ELOOP)
        seen[at] = True
        forget(&entries[at])
        at = f.next[at]
    return 0


cdef inline bint is_whole(
    const Inflight *f, const Virtq *vq, uint32_t head, uint64_t state, bint *seen
) noexcept nogil:
    """Whether a recorded chain ends where its first entry's state says; notes what it has."""
    cdef uint32_t at = head, _, descriptors = <uint32_t>(state >> NUM_AT)
    if not 0 < descriptors <= vq.size:
        return False
    seen[head] = True
    for _ in range(descriptors - 1):
        at = f.next[at]
        if at >= f.entries or seen[at]:
            return False
        seen[at] = True
    return at == <uint16_t>(state >> LAST_AT)


cdef inline int read_chain(Inflight *f, Virtq *vq, uint32_t head, bint *seen) noexcept nogil:
    """Have a recorded chain carried out again: the number of its descriptors, or -EINVAL."""
    cdef const PackedEntry *entry = packed_entries(f) + head
    cdef uint64_t state = load_relaxed_u64(&entry.state)
    cdef uint16_t descriptors = <uint16_t>(state >> NUM_AT)
    if not is_whole(f, vq, head, state, seen):
        return found_flaw(&vq.flaw, FLAW_INFLIGHT_CHAIN, head, 0, 0, EINVAL)
    f.last[head] = <uint16_t>(state >> LAST_AT)
    add_again(f, load_relaxed_u64(&entry.counter), <uint16_t>head, descriptors)
    return descriptors


cdef inline int recover_packed(Inflight *f, Virtq *vq) noexcept nogil:
    """Find what is in flight and place the ring behind it: 0, or -errno on a damaged region.

    The region knows the ring's position better than the front end does.  Only of chains that
    were fetched and broke the ring it knows nothing: the base may be behind them.
    """
    cdef bint seen[MAX_ENTRIES]
    cdef uint32_t i, descriptors = 0
    cdef Position based = vq.used
    cdef int rc = end_last_batch(f, vq)
    if rc < 0:
        return rc
    memset(seen, 0, sizeof(seen))
    f.again_count = 0
    rc = read_free_list(f, vq, seen)
    for i in range(f.entries):
        if rc >= 0 and not seen[i] and packed_entries(f)[i].state & MARK:
            rc = read_chain(f, vq, i, seen)
            descriptors += max(rc, 0)
    if rc >= 0 and descriptors > vq.size:
        rc = found_flaw(&vq.flaw, FLAW_INFLIGHT_COUNT, 0, descriptors, vq.size, EINVAL)
    if rc < 0:
        f.again_count = 0
        return rc
    order_again(f)
    for i in range(f.again_count):
        store_release_u64(&packed_entries(f)[f.again[i].entry].counter, i)
    if not descriptors and based.index == vq.used.index and based.wrap == vq.used.wrap:
        return 0
    withdraw_used(vq, descriptors)
    vq.avail = vq.used
    advance(&vq.avail, descriptors, vq.size)
    return 0


cdef inline int walk_recorded(
    const Inflight *f, Virtq *vq, const GuestMemory *memory, uint32_t entry,
    Segment *out, uint32_t room, Chain *chain,
) noexcept nogil:
    """Resolve a recorded chain of `chain.descriptors` into `out`: 0, or -errno."""
    cdef PackedEntry recorded
    cdef PackedDesc d
    cdef uint32_t i, at = entry, n = 0
    cdef int rc
    chain.entry, d.id = entry, 0
    for i in range(chain.descriptors):
        copy_once(&recorded, packed_entries(f) + at, sizeof(PackedEntry))
        d.addr, d.len = recorded.addr, <uint32_t>(recorded.copy >> LEN_AT)
        d.id, d.flags = <uint16_t>recorded.copy, <uint16_t>(recorded.copy >> FLAGS_AT)
        rc = add_packed(vq, memory, &d, i, out + n, room - n)
        if rc < 0:
            return rc
        n += rc
        at = f.next[at]
    chain.id, chain.segments = d.id, n
    return 0
