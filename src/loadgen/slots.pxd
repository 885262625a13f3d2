# SPDX-License-Identifier: Apache-2.0
"""The load generator's places for requests: what a request is made of, and where it lies.

A slot is laid out once a stretch; a request then costs its sector, its status byte and its
place in the ring.  Of what lies in guest memory only the status and the data are read back.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from blk.layouts cimport (
    BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_IN, BLK_T_OUT, BlkHeader, BlkRange, SECTOR_SHIFT,
)
from virtio.layouts cimport DESC_F_WRITE


cdef enum:
    STATUS_UNTOUCHED = 0xff     # what a status byte holds until the device writes it
    MAX_PARTS = 130             # header, data in up to 128 segments, status
    DESC_HALFWORDS = 8          # from one descriptor's flags to the next one's


ctypedef uint32_t Kind          # of a request; also the number of its histogram

cdef enum:
    READ
    WRITE
    FLUSH
    TRIM
    KINDS                       # how many there are


cdef struct Frame:              # in guest memory, one cache line: both sides touch it anyway
    BlkHeader header
    BlkRange range
    uint8_t status


cdef struct Slot:
    # All fields are the polling thread's while it runs.
    Frame *frame                # in guest memory
    uint8_t *data               # likewise
    uint16_t *data_flags        # likewise: of the first data descriptor
    void *table                 # likewise: the indirect table, or what a packed ring copies
    uint64_t table_address      # the same for the back end
    uint64_t sent               # ticks
    uint64_t offset             # bytes, of the request in flight
    uint64_t sequence           # where in its pass over all blocks the request stands
    uint64_t kept               # 1 + `sequence` of the last write here in this pass, or 0
    Kind kind                   # of the request in flight, or of the last one
    bint busy                   # the back end has it


cdef struct Shape:              # of every slot's chain in one stretch
    uint32_t bytes              # of data
    uint32_t segment_bytes      # of one data descriptor, at the most
    uint32_t segments           # data descriptors


cdef struct Part:               # one descriptor of a chain
    uint64_t address            # guest physical
    uint32_t length             # bytes
    uint16_t flags              # DESC_F_WRITE or 0


cdef inline uint32_t blk_type(Kind kind) noexcept nogil:
    """The request type of virtio-blk."""
    if kind == READ:
        return BLK_T_IN
    if kind == WRITE:
        return BLK_T_OUT
    return BLK_T_FLUSH if kind == FLUSH else BLK_T_DISCARD


cdef inline Part part(uint64_t address, uint32_t length, uint16_t flags) noexcept nogil:
    """A descriptor's worth of a chain."""
    cdef Part p
    p.address, p.length, p.flags = address, length, flags
    return p


cdef inline uint32_t make_parts(
    const Shape *shape, Kind kind, uint64_t frame, uint64_t data, Part *out
) noexcept nogil:
    """Fill `out`, of MAX_PARTS, with the chain of a request of `kind`: its length.

    `frame` and `data` are guest addresses.
    """
    cdef uint32_t n = 1, left = shape.bytes, piece
    out[0] = part(frame, sizeof(BlkHeader), 0)
    frame += sizeof(BlkHeader)
    if kind == TRIM:
        out[n] = part(frame, sizeof(BlkRange), 0)
        n += 1
    elif kind != FLUSH:
        while left:
            piece = min(left, shape.segment_bytes)
            out[n] = part(data, piece, DESC_F_WRITE if kind == READ else 0)
            data += piece
            left -= piece
            n += 1
    out[n] = part(frame + sizeof(BlkRange), 1, DESC_F_WRITE)
    return n + 1


cdef inline void turn_round(Slot *s, const Shape *shape, Kind kind) noexcept nogil:
    """Make a write of a slot laid out for a read, or the other way."""
    cdef uint32_t i
    for i in range(shape.segments):
        s.data_flags[i * DESC_HALFWORDS] ^= DESC_F_WRITE
    s.frame.header.type = blk_type(kind)
    s.kind = kind


cdef inline void aim(Slot *s) noexcept nogil:
    """Write what changes from request to request into guest memory."""
    if s.kind == TRIM:
        s.frame.range.sector = s.offset >> SECTOR_SHIFT
    else:
        s.frame.header.sector = s.offset >> SECTOR_SHIFT
    s.frame.status = STATUS_UNTOUCHED
    s.busy = True


cdef inline uint32_t due_length(const Slot *s, const Shape *shape) noexcept nogil:
    """Bytes that the back end writes in answer to a request, the status included."""
    return shape.bytes + 1 if s.kind == READ else 1
