# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a virtqueue (virtio 1.3, 2.7 and 2.8), for one that only polls.

The back end is not trusted: an index or id of its own is checked before it is used.  It is
asked once never to call, and is kicked when it asks for that.
"""

from libc.stdint cimport uint16_t, uint32_t

from loadgen.slots cimport Part, Slot
from sys.atomics cimport (
    copy_once, full_fence, load_acquire_u16, load_acquire_u32, load_relaxed_u16, store_relaxed_u16,
    store_release_u16,
)
from virtio.layouts cimport (
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc, EVENT_DESC,
    EVENT_DISABLE, EVENT_WRAP, EventSuppress, PACKED_F_AVAIL, PACKED_F_USED, PackedDesc,
    USED_F_NO_NOTIFY, UsedElem,
)


cdef enum:                      # what is wrong when a run cannot go on
    WILD_INDEX = -1             # more used than was made available
    WILD_ID = -2                # used what is not in flight
    STALLED = -3                # nothing came back for too long
    NO_KICK = -4                # the eventfd refused


cdef enum:
    QUIET_FOR = 1 << 14         # used entries before used_event is moved behind us again


cdef struct Queue:
    # All fields are the polling thread's while it runs.
    Desc *desc                  # split: the descriptor table
    uint16_t *avail             # flags, idx, ring[size], used_event
    uint16_t *used              # flags, idx, then UsedElem[size], then avail_event
    PackedDesc *ring            # packed: the descriptor ring
    EventSuppress *driver_event
    EventSuppress *device_event
    PackedDesc *first           # packed: the first of a batch, made available last
    Slot *slots                 # of `depth` requests; a request's id is its slot's number
    uint16_t *free              # numbers of slots that are not in flight
    uint32_t free_count
    uint32_t depth
    uint32_t size               # descriptors, a power of two
    uint32_t table_bytes        # of a slot's own table
    uint32_t chain              # descriptors of a request; in the ring one, if indirect
    uint32_t in_ring            # of those, how many are the ring's own
    int kick                    # eventfd, borrowed
    uint16_t next_avail         # split: free-running; packed: a place in the ring
    uint16_t next_used          # likewise
    uint16_t published          # split: next_avail that the back end has seen
    uint16_t staged             # packed: descriptors written since
    uint16_t quiet              # split: our used_event
    uint16_t avail_flags        # packed: AVAIL and USED of what we make available now
    uint16_t used_flags         # packed: AVAIL and USED of what is used now
    uint16_t first_flags        # packed: of `first`
    bint packed
    bint event_idx
    bint indirect


cdef inline uint16_t *used_event(const Queue *q) noexcept nogil:
    """Where we say at which used index we want to be called (2.7.7)."""
    return q.avail + 2 + q.size


cdef inline uint16_t *avail_event(const Queue *q) noexcept nogil:
    """Where the back end says at which avail index it wants to be kicked (2.7.10)."""
    return q.used + 2 + 4 * q.size


cdef inline bint crossed(uint16_t event, uint16_t now, uint16_t before) noexcept nogil:
    """Whether index `event` lies in what was added from `before` to `now`."""
    return <uint16_t>(now - event - 1) < <uint16_t>(now - before)


# ---- laying out ----

cdef inline void fill_table(
    Desc *table, const Part *parts, uint32_t count, uint32_t first, uint32_t rest
) noexcept nogil:
    """Write a chain into a split table: its head at `first`, the others from `rest` on."""
    cdef uint32_t i, at = first
    for i in range(count):
        table[at].addr, table[at].len = parts[i].address, parts[i].length
        table[at].flags = parts[i].flags | (DESC_F_NEXT if i + 1 < count else 0)
        table[at].next = <uint16_t>(rest + i) if i + 1 < count else 0
        at = rest + i


cdef inline void fill_packed_table(
    PackedDesc *table, const Part *parts, uint32_t count, bint indirect
) noexcept nogil:
    """Write a chain as a packed indirect table, or as what is copied into the ring."""
    cdef uint32_t i
    for i in range(count):
        table[i].addr, table[i].len, table[i].id = parts[i].address, parts[i].length, 0
        table[i].flags = parts[i].flags
        if not indirect and i + 1 < count:
            table[i].flags |= DESC_F_NEXT


cdef inline void lay_out_slot(
    Queue *q, uint32_t number, const Part *parts, uint32_t count
) noexcept nogil:
    """Put a slot's chain where each of its requests will need it.  Nothing is in flight."""
    cdef Slot *s = &q.slots[number]
    cdef uint32_t rest = q.depth + number * (count - 1)
    if q.packed:
        fill_packed_table(<PackedDesc *>s.table, parts, count, q.indirect)
        s.data_flags = &(<PackedDesc *>s.table)[1].flags
    elif q.indirect:
        fill_table(<Desc *>s.table, parts, count, 0, 1)
        s.data_flags = &(<Desc *>s.table)[1].flags
        q.desc[number].addr, q.desc[number].len = s.table_address, count * sizeof(Desc)
        q.desc[number].flags, q.desc[number].next = DESC_F_INDIRECT, 0
    else:
        fill_table(q.desc, parts, count, number, rest)
        s.data_flags = &q.desc[rest].flags


cdef inline void hush(Queue *q) noexcept nogil:
    """Tell the back end never to call us; before the ring is started."""
    q.avail_flags, q.used_flags = PACKED_F_AVAIL, PACKED_F_AVAIL | PACKED_F_USED
    if q.packed:
        q.driver_event.flags = EVENT_DISABLE
    elif q.event_idx:
        q.quiet = 0xffff        # the index before the first
        used_event(q)[0] = q.quiet
    else:
        q.avail[0] = AVAIL_F_NO_INTERRUPT


# ---- making available ----

cdef inline void offer_split(Queue *q, uint16_t number) noexcept nogil:
    """Put a slot's request into the avail ring; seen at the next `publish`."""
    store_relaxed_u16(&q.avail[2 + (q.next_avail & (q.size - 1))], number)
    q.next_avail += 1


cdef inline void offer_packed(Queue *q, uint16_t number) noexcept nogil:
    """Write a slot's descriptors into the ring; seen at the next `publish`."""
    cdef const Slot *s = &q.slots[number]
    cdef const PackedDesc *part = <const PackedDesc *>s.table
    cdef PackedDesc *d
    cdef uint32_t i
    cdef uint16_t flags
    for i in range(q.in_ring):
        d = &q.ring[q.next_avail]
        d.id = number
        if q.indirect:
            d.addr, d.len = s.table_address, q.chain * sizeof(PackedDesc)
            flags = DESC_F_INDIRECT | q.avail_flags
        else:
            d.addr, d.len = part[i].addr, part[i].len
            flags = part[i].flags | q.avail_flags
        if q.staged == 0:
            q.first, q.first_flags = d, flags
        else:
            store_relaxed_u16(&d.flags, flags)
        q.staged += 1
        q.next_avail += 1
        if q.next_avail == q.size:
            q.next_avail = 0
            q.avail_flags ^= PACKED_F_AVAIL | PACKED_F_USED


cdef inline bint publish_split(Queue *q) noexcept nogil:
    """Show the back end what was offered: whether it wants a kick."""
    cdef uint16_t before = q.published
    store_release_u16(&q.avail[1], q.next_avail)
    q.published = q.next_avail
    full_fence()                # the index before the back end's wish is read (2.7.13.4.1)
    if q.event_idx:
        return crossed(load_relaxed_u16(avail_event(q)), q.next_avail, before)
    return not load_relaxed_u16(&q.used[0]) & USED_F_NO_NOTIFY


cdef inline bint publish_packed(Queue *q) noexcept nogil:
    """Show the back end what was offered, its first descriptor last: whether to kick."""
    cdef uint32_t wish
    cdef uint16_t event, before = q.next_avail - q.staged
    store_release_u16(&q.first.flags, q.first_flags)
    q.staged = 0
    full_fence()                # as for the split ring (2.8.21.3.1)
    wish = load_acquire_u32(<const uint32_t *>q.device_event)
    if wish >> 16 != EVENT_DESC:
        return wish >> 16 != EVENT_DISABLE
    event = wish & (EVENT_WRAP - 1)
    if (wish & EVENT_WRAP != 0) != (q.avail_flags & PACKED_F_AVAIL != 0):
        event -= q.size         # a place of the round before
    return crossed(event, q.next_avail, before)


# ---- taking back ----

cdef inline void stay_quiet(Queue *q) noexcept nogil:
    """Keep used_event behind us: 65536 entries on, it would be ahead.

    A whole ring behind, since the back end may be deciding about what we have taken already.
    """
    if q.event_idx and <uint16_t>(q.next_used - q.quiet) > QUIET_FOR:
        q.quiet = <uint16_t>(q.next_used - 1 - q.size)
        store_relaxed_u16(used_event(q), q.quiet)


cdef inline int used_now(Queue *q) noexcept nogil:
    """How many requests can be taken from a split ring now, or WILD_INDEX."""
    cdef uint16_t ahead = load_acquire_u16(&q.used[1]) - q.next_used
    if ahead > q.depth - q.free_count:
        return WILD_INDEX
    return ahead


cdef inline void take_split(Queue *q, uint32_t *number, uint32_t *length) noexcept nogil:
    """Take the next used element, which is known to be there."""
    cdef UsedElem elem
    copy_once(
        &elem, <UsedElem *>(q.used + 2) + (q.next_used & (q.size - 1)), sizeof(UsedElem)
    )
    q.next_used += 1
    number[0], length[0] = elem.id, elem.len


cdef inline bint take_packed(
    Queue *q, uint32_t *number, uint32_t *length, bint *has_length
) noexcept nogil:
    """Take the next used descriptor if there is one.

    Its length means something only with DESC_F_WRITE (2.8.4).
    """
    cdef PackedDesc d
    cdef PackedDesc *at = &q.ring[q.next_used]
    cdef uint16_t flags = load_acquire_u16(&at.flags)
    if flags & (PACKED_F_AVAIL | PACKED_F_USED) != q.used_flags:
        return False
    copy_once(&d, at, sizeof(PackedDesc))
    q.next_used += q.in_ring
    if q.next_used >= q.size:
        q.next_used -= q.size
        q.used_flags ^= PACKED_F_AVAIL | PACKED_F_USED
    number[0], length[0] = d.id, d.len
    has_length[0] = flags & DESC_F_WRITE != 0
    return True
