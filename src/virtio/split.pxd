# SPDX-License-Identifier: Apache-2.0
"""The split virtqueue (virtio 1.3, 2.7): fetching chains, filling the used ring, notifying."""

from libc.errno cimport EINVAL, ELOOP, ERANGE
from libc.stdint cimport uint16_t, uint32_t

from sys.atomics cimport (
    copy_once, full_fence, load_acquire_u16, load_relaxed_u16, prefetch, prefetch_to_write,
    store_relaxed_u16, store_relaxed_u32, store_release_u16,
)
from sys.hints cimport unlikely
from virtio.flaw cimport (
    FLAW_AVAIL_INDEX, FLAW_HEAD, FLAW_INDIRECT_NEXT, FLAW_LOOP, FLAW_NEXT, FLAW_TABLE_INDIRECT,
    FLAW_TABLE_LOOP, FLAW_TABLE_NEXT, FlawKind, found_flaw,
)
from virtio.guestmem cimport GuestMemory
from virtio.layouts cimport (
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, Desc, USED_F_NO_NOTIFY, UsedElem,
)
from virtio.virtq cimport (
    CHAINS_AHEAD, Chain, Segment, UsedChain, Virtq, add_segments, event_passed, expect_header,
    indirect_table,
)


cdef inline const Desc *split_table(const Virtq *vq) noexcept nogil:
    return <const Desc *>vq.desc


cdef inline uint16_t *avail_ring(const Virtq *vq) noexcept nogil:
    """flags, idx, ring[size], used_event (2.7.6)."""
    return <uint16_t *>vq.driver


cdef inline uint16_t *used_ring(const Virtq *vq) noexcept nogil:
    """flags, idx, then UsedElem[size], then avail_event (2.7.8)."""
    return <uint16_t *>vq.device


cdef inline uint16_t *used_event(const Virtq *vq) noexcept nogil:
    """Where the driver says at which used index it wants to be called (2.7.7)."""
    return avail_ring(vq) + 2 + vq.size


cdef inline uint16_t *avail_event(const Virtq *vq) noexcept nogil:
    """Where the device says at which avail index it wants to be kicked (2.7.10)."""
    return used_ring(vq) + 2 + 4 * vq.size


cdef inline UsedElem *used_elements(const Virtq *vq) noexcept nogil:
    """The used ring's elements, 4-byte aligned behind flags and index."""
    return <UsedElem *>(used_ring(vq) + 2)


cdef inline UsedElem *used_element(const Virtq *vq, uint16_t index) noexcept nogil:
    """The used ring's element of a free-running index."""
    return used_elements(vq) + (index & (vq.size - 1))


cdef inline void start_split(Virtq *vq, uint16_t base) noexcept nogil:
    """Begin at avail index `base`; the used index goes on from where the ring has it.

    A front end that lost its back end may have read the used index too early, while the last
    requests were still being given back: what was given back is not done again.
    """
    cdef uint16_t behind
    vq.used.index = load_relaxed_u16(&used_ring(vq)[1])
    behind = vq.used.index - base
    vq.avail.index = vq.avail_seen = vq.used.index if behind <= vq.size else base


cdef inline uint32_t split_base(const Virtq *vq) noexcept nogil:
    """The ring's position as GET_VRING_BASE gives it."""
    return vq.avail.index


cdef inline bint split_has_more(const Virtq *vq) noexcept nogil:
    """Whether the driver has made more available than was fetched."""
    # The head is read next, and may lie in another cache line than the index.
    prefetch(&avail_ring(vq)[2 + (vq.avail.index & (vq.size - 1))])
    return load_relaxed_u16(&avail_ring(vq)[1]) != vq.avail.index


cdef inline FlawKind indirect_flaw(const Chain *chain) noexcept nogil:
    """What a wrong indirect descriptor is: one of an indirect table, or one with a next."""
    return FLAW_TABLE_INDIRECT if chain.descriptors else FLAW_INDIRECT_NEXT


cdef inline FlawKind next_flaw(const Chain *chain) noexcept nogil:
    """What a wrong next is: of an indirect table, or of the ring."""
    return FLAW_TABLE_NEXT if chain.descriptors else FLAW_NEXT


cdef inline FlawKind loop_flaw(const Chain *chain) noexcept nogil:
    """What a loop is: of an indirect table, or of the ring."""
    return FLAW_TABLE_LOOP if chain.descriptors else FLAW_LOOP


cdef inline int walk_split(
    Virtq *vq, const GuestMemory *memory, Segment *out, uint32_t room, Chain *chain
) noexcept nogil:
    """Resolve the chain whose head is `chain.id` into `out`: 0, or -errno.

    A table is walked for as many steps as it has entries, so a loop ends as -ELOOP.  An
    indirect descriptor ends its chain, and its table holds no further one (2.7.5.3).
    """
    cdef const Desc *table = split_table(vq)
    cdef Segment *first = out
    cdef uint32_t size = vq.size, at = chain.id, steps = 0
    cdef int rc
    cdef Desc d
    chain.descriptors = 0
    if unlikely(at >= size):
        return found_flaw(&vq.flaw, FLAW_HEAD, (vq.avail.index - 1) & (size - 1), at, size, ERANGE)
    while True:
        if unlikely(steps == size):
            return found_flaw(&vq.flaw, loop_flaw(chain), chain.id, 0, size, ELOOP)
        steps += 1
        copy_once(&d, &table[at], sizeof(Desc))
        if d.flags & DESC_F_INDIRECT:
            if unlikely(chain.descriptors or d.flags & DESC_F_NEXT):
                return found_flaw(&vq.flaw, indirect_flaw(chain), at, 0, size, EINVAL)
            rc = indirect_table(vq, memory, d.addr, d.len, <const void **>&table)
            if unlikely(rc < 0):
                return rc
            size, at, chain.descriptors, steps = rc, 0, steps, 0
            continue
        rc = add_segments(vq, memory, d.addr, d.len, d.flags, out, room)
        if unlikely(rc < 0):
            return rc
        out += rc
        room -= rc
        if not d.flags & DESC_F_NEXT:
            chain.descriptors = chain.descriptors or steps
            chain.segments = <uint32_t>(out - first)
            return 0
        if unlikely(d.next >= size):
            return found_flaw(&vq.flaw, next_flaw(chain), at, d.next, size, ERANGE)
        at = d.next


cdef inline void look_ahead_split(const Virtq *vq, const GuestMemory *memory) noexcept nogil:
    """Have what a later chain needs on its way before it is walked, if one is known of."""
    cdef uint16_t at = vq.avail.index + CHAINS_AHEAD
    cdef uint16_t head
    cdef const Desc *d
    if <uint16_t>(vq.avail_seen - vq.avail.index) <= CHAINS_AHEAD:
        return
    # Where that chain's answer goes, if answers come in order; else a line for another one.
    prefetch_to_write(used_element(vq, at))
    head = load_relaxed_u16(&avail_ring(vq)[2 + (at & (vq.size - 1))])
    if head >= vq.size:
        return
    d = &split_table(vq)[head]
    if load_relaxed_u16(&d.flags) & DESC_F_INDIRECT:
        expect_header(vq, memory, &d.addr)


cdef inline int skip_split(Virtq *vq, Chain *chain) noexcept nogil:
    """Step behind the next available chain, which has the head `chain.id`: 1, or -ERANGE."""
    cdef uint32_t at = vq.avail.index & (vq.size - 1)
    chain.id = load_relaxed_u16(&avail_ring(vq)[2 + at])
    chain.descriptors = 1
    if chain.id >= vq.size:
        return found_flaw(&vq.flaw, FLAW_HEAD, at, chain.id, vq.size, ERANGE)
    vq.avail.index += 1
    return 1


cdef inline int take_split(
    Virtq *vq, const GuestMemory *memory, Segment *out, uint32_t room, Chain *chain
) noexcept nogil:
    """Fetch and resolve the next available chain: 1, 0 if there is none, or -errno.

    The driver may not be more than a whole ring ahead of us; an index that says so is wild.
    """
    cdef uint16_t ahead
    cdef int rc
    if vq.avail.index == vq.avail_seen:
        vq.avail_seen = load_acquire_u16(&avail_ring(vq)[1])
        if vq.avail.index == vq.avail_seen:
            return 0
        ahead = vq.avail_seen - vq.avail.index
        if unlikely(ahead > vq.size):
            return found_flaw(&vq.flaw, FLAW_AVAIL_INDEX, vq.avail_seen, ahead, vq.size, ERANGE)
        prefetch_to_write(&used_ring(vq)[1])    # it is on its way while we read the chain
        prefetch_to_write(used_element(vq, vq.used.index))
    chain.id = load_relaxed_u16(&avail_ring(vq)[2 + (vq.avail.index & (vq.size - 1))])
    vq.avail.index += 1
    look_ahead_split(vq, memory)
    rc = walk_split(vq, memory, out, room, chain)
    return rc if rc < 0 else 1


cdef inline bint publish_split(Virtq *vq, const UsedChain *used, uint32_t count) noexcept nogil:
    """Show the driver `count` answered chains at once: whether it wants to be called."""
    cdef uint16_t before = vq.used.index
    cdef UsedElem *element
    cdef uint32_t i
    for i in range(count):
        element = used_element(vq, vq.used.index)
        store_relaxed_u32(&element.id, used[i].id)
        store_relaxed_u32(&element.len, used[i].written)
        vq.used.index += 1
    store_release_u16(&used_ring(vq)[1], vq.used.index)
    full_fence()                # the index before the driver's wish is read (2.7.7.2)
    if vq.event_idx:
        return event_passed(load_relaxed_u16(used_event(vq)), vq.used.index, before)
    return not load_relaxed_u16(&avail_ring(vq)[0]) & AVAIL_F_NO_INTERRUPT


cdef inline void suppress_split(Virtq *vq) noexcept nogil:
    """Tell the driver that we are looking anyway; an event just passed is far away."""
    if vq.event_idx:
        store_relaxed_u16(avail_event(vq), vq.avail.index - 1)
    else:
        store_relaxed_u16(&used_ring(vq)[0], USED_F_NO_NOTIFY)


cdef inline bint rearm_split(Virtq *vq) noexcept nogil:
    """Ask for a kick at the next chain: whether one has come meanwhile, so look again."""
    if vq.event_idx:
        store_relaxed_u16(avail_event(vq), vq.avail.index)
    else:
        store_relaxed_u16(&used_ring(vq)[0], 0)
    full_fence()                # our wish before the index is read once more (2.7.10.2)
    return split_has_more(vq)
