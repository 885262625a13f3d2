# SPDX-License-Identifier: Apache-2.0
"""What split and packed virtqueues have in common (virtio 1.3, 2.6): buffers and positions.

Names no device.  Everything read from the rings is the guest's and may change at any
time: it is copied once and only the copy is checked and used.
"""

from libc.errno cimport EAGAIN, EFAULT, EINVAL, ENOBUFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from sys.atomics cimport load_relaxed_u64, prefetch_to_write
from sys.hints cimport unlikely
from virtio.flaw cimport (
    FLAW_BUFFER_CUT, FLAW_BUFFER_UNMAPPED, FLAW_BUFFERS, FLAW_INDIRECT_NOT_AGREED, FLAW_NONE,
    FLAW_TABLE_LENGTH, FLAW_TABLE_LONG, FLAW_TABLE_UNMAPPED, Flaw, FlawKind, found_flaw,
)
from virtio.guestmem cimport GuestMemory, near_base, translate, translate_whole
from virtio.iotlb cimport (
    ACCESS_READ, ACCESS_WRITE, IOVA_PAGE, Iotlb, WALK_FOR_LAST_BYTES, WALK_FOR_MISSING, WALK_WHOLE,
    iotlb_of, note_missing, translate_iova,
)
from virtio.layouts cimport DESC_F_WRITE, Desc


cdef enum:
    CHAINS_AHEAD = 2            # whose header is fetched into the cache while one is walked
    MISSED = -EAGAIN            # a walk's result where a translation is missing: see Iotlb.missing


cdef struct Segment:
    uint8_t *base               # borrowed from guest memory; valid while it is pinned
    uint32_t len                # bytes
    bint device_writes


cdef struct Position:
    uint16_t index              # split: free-running; packed: a descriptor's number
    bint wrap                   # packed: the wrap counter there (2.8.1); split: not used


cdef struct Virtq:
    # All fields are the worker's once the ring is started.
    void *desc                  # Desc[size], or PackedDesc[size]
    void *driver                # the driver's area: the avail ring, or an EventSuppress
    void *device                # the device's area: the used ring, or an EventSuppress
    uint32_t size               # descriptors
    uint32_t longest_chain      # descriptors
    uint32_t near               # the region of guest memory in which the last address was found
    Position avail              # of the next chain to fetch
    Position used               # of the next used element, or used descriptor, to write
    uint16_t avail_seen         # split: the avail index as last read
    bint packed
    bint event_idx
    bint indirect
    Flaw flaw                   # why the ring is served no more


cdef struct Chain:
    # A chain as it was fetched, and what goes back to the driver.
    uint32_t id                 # head (split), or buffer id
    uint32_t descriptors        # in the ring; an indirect table is one
    uint32_t segments           # resolved
    uint32_t entry              # of the in-flight region of a packed ring


cdef struct UsedChain:
    uint32_t id
    uint32_t descriptors
    uint32_t written            # bytes written to the guest, the status byte included
    uint32_t entry


ctypedef int (*FindTable)(
    Virtq *vq, const GuestMemory *memory, uint64_t address, uint32_t length, const void **table
) noexcept nogil


cdef extern from *:
    FindTable apart "blkd_apart"(FindTable function) noexcept nogil     # see sys.hints


# What is wrong is found out where it is said, not where it is seen: what gcc is to put into the
# loops stays small.

cdef inline int refuse_buffer(
    Virtq *vq, uint64_t address, uint32_t length, uint64_t missing, bint is_full
) noexcept nogil:
    """Note what is wrong with a buffer of which there is no memory at `missing`: -errno."""
    if is_full:
        return found_flaw(&vq.flaw, FLAW_BUFFERS, 0, 0, 0, ENOBUFS)
    if missing == address:
        return found_flaw(&vq.flaw, FLAW_BUFFER_UNMAPPED, address, length, 0, EFAULT)
    return found_flaw(&vq.flaw, FLAW_BUFFER_CUT, address, length, missing, EFAULT)


cdef inline FlawKind table_flaw(const Virtq *vq, uint32_t length) noexcept nogil:
    """What is wrong with an indirect table wherever it is, if anything."""
    if not vq.indirect:
        return FLAW_INDIRECT_NOT_AGREED
    if length == 0 or length & (sizeof(Desc) - 1):
        return FLAW_TABLE_LENGTH
    return FLAW_TABLE_LONG if length > vq.longest_chain * sizeof(Desc) else FLAW_NONE


cdef inline int refuse_table(Virtq *vq, uint64_t address, uint32_t length) noexcept nogil:
    """Note what is wrong with an indirect table: -errno."""
    cdef FlawKind kind = table_flaw(vq, length)
    if kind == FLAW_INDIRECT_NOT_AGREED:
        return found_flaw(&vq.flaw, kind, 0, 0, 0, EINVAL)
    if kind == FLAW_TABLE_LENGTH:
        return found_flaw(&vq.flaw, kind, address, length, sizeof(Desc), EINVAL)
    if kind == FLAW_TABLE_LONG:
        return found_flaw(
            &vq.flaw, kind, address, length // sizeof(Desc), vq.longest_chain, ENOBUFS
        )
    return found_flaw(&vq.flaw, FLAW_TABLE_UNMAPPED, address, length, 0, EFAULT)


cdef inline int add_last_byte(
    Virtq *vq, Iotlb *t, uint64_t address, uint32_t length, bint device_writes, Segment *out,
    uint32_t room,
) noexcept nogil:
    """Resolve a buffer's last byte only, to NULL where that is missing: as `add_segments`.

    So are chains walked that are to fail: an answer goes to the last byte that can be written.
    """
    cdef uint64_t one = 1
    if length == 0:
        return 0
    if room == 0:
        return refuse_buffer(vq, address, length, address, True)
    out.base = translate_iova(
        t, address + length - 1, &one, ACCESS_WRITE if device_writes else ACCESS_READ, &vq.near
    )
    out.len, out.device_writes = 1, device_writes
    return 1


cdef inline int add_translated(
    Virtq *vq, Iotlb *t, uint64_t address, uint32_t length, bint device_writes, Segment *out,
    uint32_t room,
) noexcept nogil:
    """Resolve a buffer of IOVAs: as `add_segments`, or MISSED.

    What lies in more pieces than there is room for is MISSED, too, and is to fail: the driver could
    not know.  A walk for what is missing goes on behind that, by pages.
    """
    cdef uint64_t at = address, left = length, piece
    cdef uint32_t n = 0, access = ACCESS_WRITE if device_writes else ACCESS_READ
    cdef uint8_t *base
    if length and address + (length - 1) < address:
        return refuse_buffer(vq, address, length, 0, False)
    if t.walk == WALK_FOR_LAST_BYTES:
        return add_last_byte(vq, t, address, length, device_writes, out, room)
    while left:
        if n == room and t.walk == WALK_FOR_MISSING:
            break
        if n == room:
            note_missing(t, at, access)
            t.missing.is_last = True
            return MISSED
        piece = left
        base = translate_iova(t, at, &piece, access, &vq.near)
        if base == NULL and t.walk == WALK_WHOLE:
            return MISSED
        if base == NULL:
            piece = min(left, IOVA_PAGE - (at & (IOVA_PAGE - 1)))
        out[n].base, out[n].len, out[n].device_writes = base, <uint32_t>piece, device_writes
        at += piece
        left -= piece
        n += 1
    return <int>n


cdef inline int add_pieces(
    Virtq *vq, const GuestMemory *memory, uint64_t address, uint32_t length, bint device_writes,
    Segment *out, uint32_t room,
) noexcept nogil:
    """Resolve a buffer that more than one region may have: as `add_segments`."""
    cdef uint64_t at = address, left = length, piece
    cdef uint32_t n = 0
    cdef uint8_t *base
    cdef Iotlb *t = iotlb_of(memory)
    if t != NULL:
        return add_translated(vq, t, address, length, device_writes, out, room)
    while left:
        piece = left
        base = translate(memory, at, &piece, &vq.near) if n < room else NULL
        if base == NULL:
            return refuse_buffer(vq, address, length, at, n == room)
        out[n].base, out[n].len, out[n].device_writes = base, <uint32_t>piece, device_writes
        at += piece
        left -= piece
        n += 1
    return <int>n


cdef inline int add_segments(
    Virtq *vq, const GuestMemory *memory, uint64_t address, uint32_t length, uint16_t flags,
    Segment *out, uint32_t room,
) noexcept nogil:
    """Resolve one buffer into `out`: the number of segments (one a region), or -errno."""
    cdef bint device_writes = (flags & DESC_F_WRITE) != 0
    cdef uint8_t *base = near_base(memory, address, length, vq.near)
    if unlikely(base == NULL or room == 0 or length == 0):
        return add_pieces(vq, memory, address, length, device_writes, out, room)
    out.base, out.len, out.device_writes = base, length, device_writes
    return 1


cdef inline int far_table(
    Virtq *vq, const GuestMemory *memory, uint64_t address, uint32_t length, const void **table
) noexcept nogil:
    """Find an indirect table by its IOVA: as `indirect_table`, or MISSED.

    One that lies in pieces is copied; no other is found before this one has been walked.
    """
    cdef uint64_t piece = length, done = 0
    cdef uint8_t *base
    cdef Iotlb *t = iotlb_of(memory)
    if t == NULL or table_flaw(vq, length) or address + (length - 1) < address:
        return refuse_table(vq, address, length)
    while done < length:
        piece = length - done
        base = translate_iova(t, address + done, &piece, ACCESS_READ, &vq.near)
        if base == NULL:
            return MISSED
        if piece == length:
            table[0] = base
            return <int>(length // sizeof(Desc))
        memcpy(t.table + done, base, piece)
        done += piece
    table[0] = t.table
    return <int>(length // sizeof(Desc))


cdef inline int indirect_table(
    Virtq *vq, const GuestMemory *memory, uint64_t address, uint32_t length, const void **table,
) noexcept nogil:
    """Find an indirect table, of either layout's entries: their number, or -errno."""
    table[0] = NULL
    if vq.indirect and length and length & (sizeof(Desc) - 1) == 0 and (
        length <= vq.longest_chain * sizeof(Desc)
    ):
        table[0] = translate_whole(memory, address, length, &vq.near)
    if unlikely(table[0] == NULL):
        return apart(far_table)(vq, memory, address, length, table)
    return <int>(length // sizeof(Desc))


cdef inline void expect_header(
    const Virtq *vq, const GuestMemory *memory, const uint64_t *address
) noexcept nogil:
    """Have the header of a later chain on its way, by the `address` of its indirect table.

    A driver on another CPU has just written both, and each cache line takes a while to come.  To
    be written, since drivers keep a request's status beside its header.  Nothing read here is
    trusted; what does not lie in the region found last is left alone.
    """
    cdef uint8_t *table = near_base(memory, load_relaxed_u64(address), sizeof(Desc), vq.near)
    cdef const uint64_t *header = <const uint64_t *>table   # the first field, in both layouts
    if table != NULL and (<size_t>table & (sizeof(uint64_t) - 1)) == 0:
        prefetch_to_write(near_base(memory, load_relaxed_u64(header), 1, vq.near))


cdef inline bint event_passed(uint16_t event, uint16_t now, uint16_t before) noexcept nogil:
    """Whether index `event` was crossed on the way from `before` to `now` (2.7.10.1)."""
    return <uint16_t>(now - event - 1) < <uint16_t>(now - before)
