# SPDX-License-Identifier: Apache-2.0
"""The split virtqueue (virtio 1.3, 2.7): walking chains, filling the used ring, notifying.

Names no device.  Everything read from the rings is the guest's and may change at any
time: it is copied once and only the copy is checked and used.
"""

from libc.errno cimport EFAULT, EINVAL, ELOOP, ENOBUFS, ERANGE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from atomics cimport (
    copy_once, full_fence, load_acquire_u16, load_relaxed_u16, store_relaxed_u16,
    store_relaxed_u32, store_release_u16,
)
from guestmem cimport GuestMemory, translate, translate_whole
from layouts cimport (
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc, USED_F_NO_NOTIFY,
    UsedElem,
)


cdef struct Segment:
    uint8_t *base               # borrowed from guest memory; valid while it is pinned
    uint32_t len                # bytes
    bint device_writes


cdef struct Virtq:
    # All fields are the worker's once the ring is started.
    const Desc *desc
    uint16_t *avail             # flags, idx, ring[size], used_event
    uint16_t *used              # flags, idx, then UsedElem[size], then avail_event
    uint32_t size               # descriptors, a power of two
    uint32_t longest_chain      # descriptors
    uint16_t next_avail         # free-running index of the next chain to fetch
    uint16_t next_used          # free-running index of the next used element to fill
    uint16_t signalled          # used index at the last notification decision
    bint event_idx
    bint indirect


cdef inline uint16_t *used_event(const Virtq *vq) noexcept nogil:
    """Where the driver says at which used index it wants to be called (2.7.7)."""
    return vq.avail + 2 + vq.size


cdef inline uint16_t *avail_event(const Virtq *vq) noexcept nogil:
    """Where the device says at which avail index it wants to be kicked (2.7.10)."""
    return vq.used + 2 + 4 * vq.size


cdef inline UsedElem *used_ring(const Virtq *vq) noexcept nogil:
    """The used ring's elements, 4-byte aligned behind flags and index."""
    return <UsedElem *>(vq.used + 2)


cdef inline int next_chain(Virtq *vq, uint16_t *head) noexcept nogil:
    """Take the next available chain: 1 and its head, 0 if there is none, or -ERANGE.

    The driver may not be more than a whole ring ahead of us; an index that says so is wild.
    """
    cdef uint16_t ahead = load_acquire_u16(&vq.avail[1]) - vq.next_avail
    if ahead == 0:
        return 0
    if ahead > vq.size:
        return -ERANGE
    head[0] = load_relaxed_u16(&vq.avail[2 + (vq.next_avail & (vq.size - 1))])
    vq.next_avail += 1
    return 1


cdef inline int add_segments(
    const GuestMemory *memory, const Desc *d, Segment *out, uint32_t room
) noexcept nogil:
    """Resolve one buffer into `out`: the number of segments (one a region), or -errno."""
    cdef uint64_t address = d.addr, left = d.len, piece
    cdef uint32_t n = 0
    while left:
        if n == room:
            return -ENOBUFS
        piece = left
        out[n].base = translate(memory, address, &piece)
        if out[n].base == NULL:
            return -EFAULT
        out[n].len = <uint32_t>piece
        out[n].device_writes = (d.flags & DESC_F_WRITE) != 0
        address += piece
        left -= piece
        n += 1
    return <int>n


cdef inline int walk_chain(
    const Virtq *vq, uint16_t head, const GuestMemory *memory, Segment *out, uint32_t room
) noexcept nogil:
    """Resolve the chain at `head` into `out`: the number of segments, or -errno.

    A table is walked for as many steps as it has entries, so a loop ends as -ELOOP.  An
    indirect descriptor ends its chain, and its table holds no further one (2.7.5.3).
    """
    cdef const Desc *table = vq.desc
    cdef uint32_t size = vq.size, at = head, steps = 0, n = 0
    cdef int rc
    cdef Desc d
    if head >= size:
        return -ERANGE
    while True:
        if steps == size:
            return -ELOOP
        steps += 1
        copy_once(&d, &table[at], sizeof(Desc))
        if d.flags & DESC_F_INDIRECT:
            if table != vq.desc or not vq.indirect or d.flags & DESC_F_NEXT:
                return -EINVAL
            if d.len == 0 or d.len & (sizeof(Desc) - 1):
                return -EINVAL
            if d.len > vq.longest_chain * sizeof(Desc):
                return -ENOBUFS
            table = <const Desc *>translate_whole(memory, d.addr, d.len)
            if table == NULL:
                return -EFAULT
            size = d.len // sizeof(Desc)
            at = steps = 0
            continue
        rc = add_segments(memory, &d, out + n, room - n)
        if rc < 0:
            return rc
        n += rc
        if not d.flags & DESC_F_NEXT:
            return <int>n
        if d.next >= size:
            return -ERANGE
        at = d.next


cdef inline void put_used(Virtq *vq, uint16_t head, uint32_t written) noexcept nogil:
    """Fill the next used element; the driver sees it at the next `publish`."""
    cdef UsedElem *elem = used_ring(vq) + (vq.next_used & (vq.size - 1))
    store_relaxed_u32(&elem.id, head)
    store_relaxed_u32(&elem.len, written)
    vq.next_used += 1


cdef inline bint event_passed(uint16_t event, uint16_t now, uint16_t before) noexcept nogil:
    """Whether index `event` was crossed on the way from `before` to `now` (2.7.10.1)."""
    return <uint16_t>(now - event - 1) < <uint16_t>(now - before)


cdef inline bint publish(Virtq *vq) noexcept nogil:
    """Show the driver every used element filled so far: whether it wants to be called."""
    cdef uint16_t before = vq.signalled
    if vq.next_used == before:
        return False
    store_release_u16(&vq.used[1], vq.next_used)
    vq.signalled = vq.next_used
    full_fence()                # the index before the driver's wish is read (2.7.7.2)
    if vq.event_idx:
        return event_passed(load_relaxed_u16(used_event(vq)), vq.next_used, before)
    return not load_relaxed_u16(&vq.avail[0]) & AVAIL_F_NO_INTERRUPT


cdef inline void suppress_kicks(Virtq *vq) noexcept nogil:
    """Tell the driver that we are looking anyway.  An old avail_event says it already."""
    if not vq.event_idx:
        store_relaxed_u16(&vq.used[0], USED_F_NO_NOTIFY)


cdef inline bint rearm_kicks(Virtq *vq) noexcept nogil:
    """Ask for a kick at the next chain: whether one has come meanwhile, so look again."""
    if vq.event_idx:
        store_relaxed_u16(avail_event(vq), vq.next_avail)
    else:
        store_relaxed_u16(&vq.used[0], 0)
    full_fence()                # our wish before the index is read once more (2.7.10.2)
    return load_acquire_u16(&vq.avail[1]) != vq.next_avail
