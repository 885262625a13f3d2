# SPDX-License-Identifier: Apache-2.0
"""A packed ring's requests in flight: every descriptor copied, for the ring forgets them.

What is used is written over the ring's beginning, whatever chain lies there.
"""

from libc.errno cimport EINVAL, ELOOP, ENOBUFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from atomics cimport (
    copy_once, load_relaxed_u16, load_relaxed_u64, store_relaxed_u16, store_release_u8,
    store_release_u16, store_release_u64,
)
from guestmem cimport GuestMemory
from inflight cimport (
    INFLIGHT_VERSION, Inflight, MAX_ENTRIES, PackedEntry, PackedRegion, add_again, order_again,
)
from layouts cimport PackedDesc
from packed cimport add_packed, is_available, packed_ring
from virtq cimport Chain, Segment, UsedChain, Virtq

cdef enum:
    OLD_SHIFT = 16              # in the region's `positions`
    WRAP_SHIFT = 32
    OLD_WRAP_SHIFT = 40


cdef struct UsedPosition:
    uint16_t index
    bint wrap


cdef inline PackedRegion *packed_region(const Inflight *f) noexcept nogil:
    return <PackedRegion *>f.region


cdef inline PackedEntry *packed_entries(const Inflight *f) noexcept nogil:
    """The entries behind the region's head."""
    return <PackedEntry *>(<PackedRegion *>f.region + 1)


cdef inline UsedPosition used_position(const Virtq *vq) noexcept nogil:
    """Up to where the driver has its chains back."""
    cdef UsedPosition position
    position.index, position.wrap = vq.next_used, vq.used_wrap
    return position


cdef inline UsedPosition advanced(
    const Virtq *vq, UsedPosition position, uint32_t descriptors
) noexcept nogil:
    """A position `descriptors` further on, a whole ring at the most."""
    cdef uint32_t index = position.index + descriptors
    if index >= vq.size:
        index -= vq.size
        position.wrap = not position.wrap
    position.index = <uint16_t>index
    return position


cdef inline void write_positions(
    PackedRegion *region, UsedPosition position, UsedPosition old
) noexcept nogil:
    """Set both used positions in one store: no death can tear them apart."""
    store_release_u64(
        &region.positions,
        position.index | <uint64_t>old.index << OLD_SHIFT
        | <uint64_t>(position.wrap != 0) << WRAP_SHIFT
        | <uint64_t>(old.wrap != 0) << OLD_WRAP_SHIFT,
    )


cdef inline int record_packed(Inflight *f, const Virtq *vq, Chain *chain) noexcept nogil:
    """Copy a chain that was just fetched: 0, or -ENOBUFS if more is in flight than there can be.

    The descriptors are read once more, for what they say is checked whenever it is used.
    """
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t at = f.head, where = vq.next_avail, _
    cdef PackedDesc d
    if where < chain.descriptors:
        where += vq.size
    where -= chain.descriptors
    chain.entry = at
    for _ in range(chain.descriptors):
        if at >= f.entries:
            return -ENOBUFS
        copy_once(&d, &packed_ring(vq)[where], sizeof(PackedDesc))
        entries[at].id, entries[at].flags, entries[at].len, entries[at].addr = (
            d.id, d.flags, d.len, d.addr
        )
        f.last[chain.entry] = <uint16_t>at
        at = f.next[at]
        where = 0 if where + 1 == vq.size else where + 1
    entries[chain.entry].counter = f.counter
    entries[chain.entry].num = <uint16_t>chain.descriptors
    entries[chain.entry].last = f.last[chain.entry]
    store_release_u8(&entries[chain.entry].inflight, 1)
    f.counter += 1
    f.head = <uint16_t>at
    store_release_u16(&packed_region(f).free_head, f.head)
    store_release_u16(&packed_region(f).old_free_head, f.head)
    return 0


cdef inline void link_packed(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Say which chains are about to be given back: before the driver sees any of them."""
    cdef PackedEntry *entries = packed_entries(f)
    cdef UsedPosition old = used_position(vq)
    cdef uint32_t i, last, descriptors = 0
    for i in range(count):
        last = f.last[used[i].entry]
        f.next[last] = f.head
        store_relaxed_u16(&entries[last].next, f.head)
        f.head = <uint16_t>used[i].entry
        descriptors += used[i].descriptors
    store_release_u16(&packed_region(f).free_head, f.head)
    write_positions(packed_region(f), advanced(vq, old, descriptors), old)


cdef inline void settle_packed(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Note that the driver has them back: after it can see that."""
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t i
    for i in range(count):
        store_release_u8(&entries[used[i].entry].inflight, 0)
    store_release_u16(&packed_region(f).old_free_head, f.head)
    write_positions(packed_region(f), used_position(vq), used_position(vq))


cdef inline void renew_packed(Inflight *f, const Virtq *vq) noexcept nogil:
    """Make a region's record that of a ring of which nothing is in flight."""
    cdef PackedRegion *region = packed_region(f)
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t i
    store_release_u16(&region.version, 0)
    memset(entries, 0, f.entries * sizeof(PackedEntry))
    for i in range(f.entries):
        f.next[i] = entries[i].next = <uint16_t>(i + 1)
    region.features = 0
    region.desc_num = <uint16_t>f.entries
    region.free_head = region.old_free_head = f.head = 0
    write_positions(region, used_position(vq), used_position(vq))
    f.counter = f.again_count = f.again_done = 0
    store_release_u16(&region.version, INFLIGHT_VERSION)


cdef inline int end_last_batch(Inflight *f, Virtq *vq) noexcept nogil:
    """Place the ring behind the last batch that its driver has seen: 0, or -EINVAL.

    A batch was seen if its first descriptor is not available any more; else it is undone.
    """
    cdef PackedRegion *region = packed_region(f)
    cdef uint64_t positions = load_relaxed_u64(&region.positions)
    cdef UsedPosition now, old
    now.index, now.wrap = <uint16_t>positions, positions >> WRAP_SHIFT & 1
    old.index, old.wrap = <uint16_t>(positions >> OLD_SHIFT), positions >> OLD_WRAP_SHIFT & 1
    if max(now.index, old.index) >= vq.size:
        return -EINVAL
    f.head = load_relaxed_u16(&region.old_free_head)
    if (now.index != old.index or now.wrap != old.wrap) and not is_available(
        load_relaxed_u16(&packed_ring(vq)[old.index].flags), old.wrap
    ):
        f.head = load_relaxed_u16(&region.free_head)
        old = now
    store_release_u16(&region.free_head, f.head)
    store_release_u16(&region.old_free_head, f.head)
    write_positions(region, old, old)
    vq.next_used, vq.used_wrap = old.index, old.wrap
    return 0


cdef inline int read_free_list(Inflight *f, bint *seen) noexcept nogil:
    """Copy the links, and note what is free: 0, or -ELOOP."""
    cdef PackedEntry *entries = packed_entries(f)
    cdef uint32_t i, at = f.head
    for i in range(f.entries):
        f.next[i] = load_relaxed_u16(&entries[i].next)
    while at < f.entries:
        if seen[at]:
            return -ELOOP
        seen[at] = True
        store_release_u8(&entries[at].inflight, 0)
        at = f.next[at]
    return 0


cdef inline int read_chain(Inflight *f, const Virtq *vq, uint32_t head, bint *seen) noexcept nogil:
    """Have a recorded chain carried out again: the number of its descriptors, or -EINVAL."""
    cdef PackedEntry *entry = packed_entries(f) + head
    cdef uint32_t at = head, _, descriptors = load_relaxed_u16(&entry.num)
    if not 0 < descriptors <= vq.size:
        return -EINVAL
    seen[head] = True
    for _ in range(descriptors - 1):
        at = f.next[at]
        if at >= f.entries or seen[at]:
            return -EINVAL
        seen[at] = True
    if at != load_relaxed_u16(&entry.last):
        return -EINVAL
    f.last[head] = <uint16_t>at
    add_again(f, load_relaxed_u64(&entry.counter), <uint16_t>head, <uint16_t>descriptors)
    return <int>descriptors


cdef inline int recover_packed(Inflight *f, Virtq *vq) noexcept nogil:
    """Find what is in flight and place the ring behind it: 0, or -errno on a damaged region.

    The region knows the ring's position better than the front end does.
    """
    cdef bint seen[MAX_ENTRIES]
    cdef uint32_t i, descriptors = 0
    cdef UsedPosition avail
    cdef int rc = end_last_batch(f, vq)
    if rc < 0:
        return rc
    memset(seen, 0, sizeof(seen))
    f.again_count = 0
    rc = read_free_list(f, seen)
    for i in range(f.entries):
        if rc >= 0 and not seen[i] and packed_entries(f)[i].inflight:
            rc = read_chain(f, vq, i, seen)
            descriptors += max(rc, 0)
    if rc < 0 or descriptors > vq.size:
        f.again_count = 0
        return rc if rc < 0 else -EINVAL
    order_again(f)
    for i in range(f.again_count):
        store_release_u64(&packed_entries(f)[f.again[i].entry].counter, i)
    avail = advanced(vq, used_position(vq), descriptors)
    vq.next_avail, vq.avail_wrap = avail.index, avail.wrap
    return 0


cdef inline int walk_recorded(
    const Inflight *f, const Virtq *vq, const GuestMemory *memory, uint32_t entry,
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
        d.addr, d.len, d.id, d.flags = (
            recorded.addr, recorded.len, recorded.id, recorded.flags
        )
        rc = add_packed(vq, memory, &d, i == 0, out + n, room - n)
        if rc < 0:
            return rc
        n += rc
        at = f.next[at]
    chain.id, chain.segments = d.id, n
    return 0
