# SPDX-License-Identifier: Apache-2.0
"""The packed virtqueue (virtio 1.3, 2.8): one ring of descriptors, written by both sides.

A buffer id is the driver's own: it is given back as it came and is no index of ours.
"""

from libc.errno cimport EINVAL, ELOOP, ERANGE
from libc.stdint cimport uint16_t, uint32_t

from sys.atomics cimport (
    copy_once, full_fence, load_acquire_u16, load_relaxed_u16, store_relaxed_u16, store_relaxed_u32,
    store_release_u16,
)
from sys.hints cimport unlikely
from virtio.flaw cimport FLAW_INDIRECT_NOT_ALONE, FLAW_LOOP, found_flaw
from virtio.guestmem cimport GuestMemory
from virtio.layouts cimport (
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, EVENT_WRAP,
    EventSuppress, PACKED_F_AVAIL, PACKED_F_USED, PackedDesc,
)
from virtio.virtq cimport (
    CHAINS_AHEAD, Chain, Position, Segment, UsedChain, Virtq, add_segments, event_passed,
    expect_header, indirect_table,
)


cdef enum:
    WRAP_SHIFT = 15             # of a position: an offset, and above it the wrap counter
    USED_SHIFT = 16             # of a base: avail position below, used position above
    FIRST_BASE = 0x80008000     # nothing fetched yet, both counters 1 (2.8.1)
    OWNER = PACKED_F_AVAIL | PACKED_F_USED  # whose a descriptor is, against the wrap counter


cdef inline PackedDesc *packed_ring(const Virtq *vq) noexcept nogil:
    return <PackedDesc *>vq.desc


cdef inline EventSuppress *driver_events(const Virtq *vq) noexcept nogil:
    """When the driver wants to be called (2.8.10)."""
    return <EventSuppress *>vq.driver


cdef inline EventSuppress *device_events(const Virtq *vq) noexcept nogil:
    """When we want to be kicked (2.8.10)."""
    return <EventSuppress *>vq.device


cdef inline void advance(Position *position, uint32_t descriptors, uint32_t size) noexcept nogil:
    """Move so many `descriptors` on in a ring of `size`, once round at the most.

    The wrap counter changes where the ring begins again (2.8.1).
    """
    cdef uint32_t index = position.index + descriptors
    if unlikely(index >= size):
        index -= size
        position.wrap = not position.wrap
    position.index = <uint16_t>index


cdef inline void retreat(Position *position, uint32_t descriptors, uint32_t size) noexcept nogil:
    """Move so many `descriptors` back, once round at the most."""
    cdef uint32_t index = position.index
    if unlikely(index < descriptors):
        index += size
        position.wrap = not position.wrap
    position.index = <uint16_t>(index - descriptors)


cdef inline uint32_t position_word(Position position) noexcept nogil:
    """A position as one half of a base has it."""
    return position.index | <uint32_t>position.wrap << WRAP_SHIFT


cdef inline Position position_of(uint32_t word) noexcept nogil:
    """The position that one half of a base says."""
    cdef Position position
    position.index, position.wrap = word & (1 << WRAP_SHIFT) - 1, word >> WRAP_SHIFT & 1
    return position


cdef inline uint32_t packed_base(const Virtq *vq) noexcept nogil:
    """The ring's position as GET_VRING_BASE gives it."""
    return position_word(vq.avail) | position_word(vq.used) << USED_SHIFT


cdef inline int start_packed(Virtq *vq, uint32_t base) noexcept nogil:
    """Begin at a position that `packed_base` may have given: 0, or -ERANGE.

    Some front ends know no used position, which then is that of avail: nothing is in flight.
    """
    cdef uint32_t avail = base & (1 << USED_SHIFT) - 1
    cdef uint32_t used = base >> USED_SHIFT if base >> USED_SHIFT else avail
    vq.avail, vq.used = position_of(avail), position_of(used)
    return 0 if max(vq.avail.index, vq.used.index) < vq.size else -ERANGE


cdef inline bint is_no_fresh_ring(const Virtq *vq) noexcept nogil:
    """Whether a ring that is to begin at FIRST_BASE was left somewhere else.

    A front end whose back end went away cannot know where: QEMU says FIRST_BASE then.  What
    was used in a first round, or an indirect chain of a second one, shows it; a fresh ring is
    zero (2.8.13), and of one that has come round to its beginning nothing is left to do.
    """
    cdef uint32_t i
    cdef uint16_t flags
    for i in range(vq.size):
        flags = load_relaxed_u16(&packed_ring(vq)[i].flags)
        if flags & PACKED_F_USED and flags & (PACKED_F_AVAIL | DESC_F_INDIRECT):
            return True
    return False


cdef inline bint is_untouched(const Virtq *vq) noexcept nogil:
    """Whether nothing of a ring was ever used: what is available there is of the first round."""
    cdef uint32_t i
    cdef const PackedDesc *d
    for i in range(vq.size):
        d = &packed_ring(vq)[i]
        if not is_available(load_relaxed_u16(&d.flags), True) and (
            d.addr or d.len or d.id or d.flags
        ):
            return False
    return True


cdef inline bint is_available(uint16_t flags, bint wrap) noexcept nogil:
    """Whether the driver has made a descriptor available in this round (2.8.1)."""
    return flags & OWNER == (PACKED_F_AVAIL if wrap else PACKED_F_USED)


cdef inline bint is_used(uint16_t flags, bint wrap) noexcept nogil:
    """Whether we have marked a descriptor used in this round (2.8.1)."""
    return flags & OWNER == (OWNER if wrap else 0)


cdef inline bint packed_has_more(const Virtq *vq) noexcept nogil:
    """Whether the driver has made more available than was fetched."""
    return is_available(load_relaxed_u16(&packed_ring(vq)[vq.avail.index].flags), vq.avail.wrap)


cdef inline int add_table(
    Virtq *vq, const GuestMemory *memory, const PackedDesc *d, Segment *out, uint32_t room
) noexcept nogil:
    """Resolve all buffers of an indirect table: the number of segments, or -errno.

    Of the flags in a table only WRITE has a meaning (2.8.7).
    """
    cdef const PackedDesc *table = NULL
    cdef PackedDesc entry
    cdef Segment *first = out
    cdef int i, rc, count = indirect_table(vq, memory, d.addr, d.len, <const void **>&table)
    if unlikely(count < 0):
        return count
    for i in range(count):
        copy_once(&entry, &table[i], sizeof(PackedDesc))
        rc = add_segments(vq, memory, entry.addr, entry.len, entry.flags, out, room)
        if unlikely(rc < 0):
            return rc
        out += rc
        room -= rc
    return <int>(out - first)


cdef inline int add_packed(
    Virtq *vq, const GuestMemory *memory, const PackedDesc *d, uint32_t number,
    Segment *out, uint32_t room,
) noexcept nogil:
    """Resolve what descriptor `number` of a chain, from 0, stands for: as `add_segments`.

    An indirect one stands alone (2.8.7).
    """
    if not d.flags & DESC_F_INDIRECT:
        return add_segments(vq, memory, d.addr, d.len, d.flags, out, room)
    if unlikely(number or d.flags & DESC_F_NEXT):
        return found_flaw(&vq.flaw, FLAW_INDIRECT_NOT_ALONE, number, 0, 0, EINVAL)
    return add_table(vq, memory, d, out, room)


cdef inline int walk_packed(
    Virtq *vq, const GuestMemory *memory, Segment *out, uint32_t room, Chain *chain
) noexcept nogil:
    """Resolve the available chain at `vq.avail` into `out` and step behind it: 0, or -errno.

    The id stands in the chain's last descriptor (2.8.6).
    """
    cdef Segment *first = out
    cdef PackedDesc d
    cdef int rc
    chain.descriptors = 0
    while True:
        if unlikely(chain.descriptors == vq.size):
            return found_flaw(&vq.flaw, FLAW_LOOP, vq.avail.index, 0, vq.size, ELOOP)
        copy_once(&d, &packed_ring(vq)[vq.avail.index], sizeof(PackedDesc))
        advance(&vq.avail, 1, vq.size)
        rc = add_packed(vq, memory, &d, chain.descriptors, out, room)
        if unlikely(rc < 0):
            return rc
        chain.descriptors += 1
        out += rc
        room -= rc
        if not d.flags & DESC_F_NEXT:
            chain.id = d.id
            chain.segments = <uint32_t>(out - first)
            return 0


cdef inline int skip_packed(Virtq *vq, Chain *chain) noexcept nogil:
    """Step behind the available chain at `vq.avail`, whatever it has: 1, or -ELOOP."""
    cdef const PackedDesc *d
    for chain.descriptors in range(1, vq.size + 1):
        d = &packed_ring(vq)[vq.avail.index]
        advance(&vq.avail, 1, vq.size)
        if not load_relaxed_u16(&d.flags) & DESC_F_NEXT:
            return 1
    return found_flaw(&vq.flaw, FLAW_LOOP, vq.avail.index, 0, vq.size, ELOOP)


cdef inline int walk_skipped_packed(
    Virtq *vq, const GuestMemory *memory, Position at, Segment *out, uint32_t room, Chain *chain
) noexcept nogil:
    """Resolve the chain of `chain.descriptors` at a position into `out`: 0, or -errno."""
    cdef PackedDesc d
    cdef uint32_t i, n = 0
    cdef int rc
    d.id = 0
    for i in range(chain.descriptors):
        copy_once(&d, &packed_ring(vq)[at.index], sizeof(PackedDesc))
        rc = add_packed(vq, memory, &d, i, out + n, room - n)
        if rc < 0:
            return rc
        n += rc
        advance(&at, 1, vq.size)
    chain.id, chain.segments = d.id, n
    return 0


cdef inline void look_ahead_packed(const Virtq *vq, const GuestMemory *memory) noexcept nogil:
    """Have what a later chain needs on its way before it is walked, if one is known of."""
    cdef Position at = vq.avail
    cdef const PackedDesc *d
    cdef uint16_t flags
    advance(&at, CHAINS_AHEAD, vq.size)
    if unlikely(at.index >= vq.size):
        return                  # the ring is shorter than that
    d = &packed_ring(vq)[at.index]
    flags = load_relaxed_u16(&d.flags)
    if flags & DESC_F_INDIRECT and is_available(flags, at.wrap):
        expect_header(vq, memory, &d.addr)


cdef inline int take_packed(
    Virtq *vq, const GuestMemory *memory, Segment *out, uint32_t room, Chain *chain
) noexcept nogil:
    """Fetch and resolve the next available chain: 1, 0 if there is none, or -errno."""
    cdef int rc
    if not is_available(
        load_acquire_u16(&packed_ring(vq)[vq.avail.index].flags), vq.avail.wrap
    ):
        return 0
    look_ahead_packed(vq, memory)
    rc = walk_packed(vq, memory, out, room, chain)
    return rc if rc < 0 else 1


cdef inline bint packed_wants_call(const Virtq *vq, uint32_t descriptors) noexcept nogil:
    """Whether the driver wants to be called for the last `descriptors` used (2.8.10)."""
    cdef uint16_t flags = load_acquire_u16(&driver_events(vq).flags)
    cdef uint16_t where, event
    if flags != EVENT_DESC or not vq.event_idx:
        return flags != EVENT_DISABLE
    where = load_relaxed_u16(&driver_events(vq).desc)
    event = where & (EVENT_WRAP - 1)
    if (where & EVENT_WRAP != 0) != (vq.used.wrap != 0):
        event -= vq.size        # it lies in the round before
    return event_passed(event, vq.used.index, <uint16_t>(vq.used.index - descriptors))


cdef inline bint publish_packed(Virtq *vq, const UsedChain *used, uint32_t count) noexcept nogil:
    """Show the driver `count` answered chains at once: whether it wants to be called.

    The first one's flags are written last: until then the driver looks at none behind it.
    """
    cdef PackedDesc *d
    cdef uint16_t *first = &packed_ring(vq)[vq.used.index].flags
    cdef uint16_t flags, first_flags = 0
    cdef uint32_t i, descriptors = 0
    for i in range(count):
        d = &packed_ring(vq)[vq.used.index]
        flags = DESC_F_WRITE | (OWNER if vq.used.wrap else 0)
        store_relaxed_u16(&d.id, <uint16_t>used[i].id)
        store_relaxed_u32(&d.len, used[i].written)
        if i == 0:
            first_flags = flags
        else:
            store_release_u16(&d.flags, flags)
        descriptors += used[i].descriptors
        advance(&vq.used, used[i].descriptors, vq.size)
    store_release_u16(first, first_flags)
    full_fence()                # the descriptors before the driver's wish is read
    return packed_wants_call(vq, descriptors)


cdef inline void suppress_packed(Virtq *vq) noexcept nogil:
    """Tell the driver that we are looking anyway."""
    store_relaxed_u16(&device_events(vq).flags, EVENT_DISABLE)


cdef inline bint rearm_packed(Virtq *vq) noexcept nogil:
    """Ask for a kick at the next chain: whether one has come meanwhile, so look again."""
    if vq.event_idx:
        store_relaxed_u16(&device_events(vq).desc, <uint16_t>position_word(vq.avail))
        store_release_u16(&device_events(vq).flags, EVENT_DESC)
    else:
        store_relaxed_u16(&device_events(vq).flags, EVENT_ENABLE)
    full_fence()                # our wish before the descriptor is read once more
    return packed_has_more(vq)
