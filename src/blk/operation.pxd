# SPDX-License-Identifier: Apache-2.0
"""virtio-blk requests (virtio 1.3, 5.2.6): a resolved chain becomes one checked operation.

Names no io_uring type: what comes out is a kind, an offset and segments.
"""

from libc.errno cimport EINVAL
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.layouts cimport (
    BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_IN,
    BLK_T_OUT, BLK_T_WRITE_ZEROES, BlkHeader, BlkRange, ID_BYTES, RANGE_F_UNMAP, SECTOR_SHIFT,
)
from blk.limits cimport BlkLimits
from engine.engine cimport (
    IO_DISCARD, IO_FLUSH, IO_NONE, IO_READ, IO_WRITE, IO_ZEROES, IoKind, IoSpec,
)
from sys.atomics cimport copy_once
from virtio.flaw cimport FLAW_OF_DEVICE, Flaw, found_flaw
from virtio.segments cimport give_bytes, readable_of, take_bytes
from virtio.virtq cimport Segment

cdef enum:
    MAX_DATA = 0xfffffe00       # bytes of one request; a chain has fewer than 2^32 (2.7.5)


cdef enum BlkFlaw:              # as `blkd/virtio/blk.py` says them
    BLK_FLAW_ORDER = FLAW_OF_DEVICE     # where: a buffer to be read, behind one to be written
    BLK_FLAW_NO_STATUS          # value: buffers, none of which is to be written
    BLK_FLAW_HEADER             # limit: bytes of a header, of which there are fewer to be read


cdef struct Operation:
    IoSpec io                   # its data is what is left of the chain without header and status
    uint8_t status              # of one without I/O
    uint8_t *status_byte        # in guest memory
    uint32_t ranges             # of DISCARD and WRITE_ZEROES
    uint32_t written            # data bytes already given to the guest (GET_ID)
    uint32_t type               # as the guest gave it, for accounting


cdef inline void answer(Operation *op, uint8_t status) noexcept nogil:
    """End the operation here with `status`."""
    op.io.kind, op.io.length = IO_NONE, 0
    op.status = status


cdef inline void check_transfer(
    const BlkLimits *dev, uint64_t sector, Operation *op
) noexcept nogil:
    """Place IN or OUT on the image, or refuse it whole: beyond the end, off the blocks."""
    cdef uint32_t i
    for i in range(op.io.data_count):
        op.io.length += op.io.data[i].len
    op.io.offset = sector << SECTOR_SHIFT
    if sector > dev.capacity >> SECTOR_SHIFT or op.io.length > dev.capacity - op.io.offset:
        answer(op, BLK_S_IOERR)
    elif (op.io.offset | op.io.length) & dev.block_mask or op.io.length > MAX_DATA:
        answer(op, BLK_S_IOERR)
    elif op.io.kind == IO_WRITE and dev.read_only:
        answer(op, BLK_S_IOERR)
    elif op.io.length == 0:
        answer(op, BLK_S_OK)


cdef inline uint8_t check_range(
    const BlkLimits *dev, IoKind kind, const BlkRange *r
) noexcept nogil:
    """The status that one segment of DISCARD or WRITE_ZEROES deserves (5.2.6.2)."""
    cdef uint64_t offset = r.sector << SECTOR_SHIFT
    cdef uint64_t length = <uint64_t>r.sectors << SECTOR_SHIFT
    cdef uint32_t most = dev.max_zero_sectors
    if kind == IO_DISCARD:
        most = dev.max_discard_sectors
        if r.flags:
            return BLK_S_UNSUPP
    elif r.flags & ~RANGE_F_UNMAP:
        return BLK_S_UNSUPP
    if r.sectors > most or r.sector > dev.capacity >> SECTOR_SHIFT:
        return BLK_S_IOERR
    if length > dev.capacity - offset or (offset | length) & dev.block_mask:
        return BLK_S_IOERR
    return BLK_S_OK


cdef inline void check_ranges(
    const BlkLimits *dev, Operation *op, BlkRange *ranges
) noexcept nogil:
    """Copy the segments of DISCARD or WRITE_ZEROES to `ranges`; one bad one refuses all.

    More of them than offered are unsupported, as QEMU has it.
    """
    cdef uint32_t size, i
    cdef uint8_t status
    if (dev.max_discard_sectors if op.io.kind == IO_DISCARD else dev.max_zero_sectors) == 0:
        answer(op, BLK_S_UNSUPP)
        return
    size = take_bytes(
        &op.io.data, &op.io.data_count, <uint8_t *>ranges, dev.max_ranges * sizeof(BlkRange)
    )
    if op.io.data_count:
        answer(op, BLK_S_UNSUPP)
        return
    if size == 0 or size & (sizeof(BlkRange) - 1):
        answer(op, BLK_S_IOERR)
        return
    op.ranges = size // sizeof(BlkRange)
    for i in range(op.ranges):
        status = check_range(dev, op.io.kind, &ranges[i])
        if status != BLK_S_OK:
            answer(op, status)
            return


cdef inline bint take_header(Segment **segments, uint32_t *count, BlkHeader *out) noexcept nogil:
    """Cut the header off the front of the segments: whether it was there."""
    if count[0] and segments[0].len == sizeof(BlkHeader):
        copy_once(out, segments[0].base, sizeof(BlkHeader))     # as drivers frame it: no loop
        segments[0] += 1
        count[0] -= 1
        return True
    return take_bytes(segments, count, <uint8_t *>out, sizeof(BlkHeader)) == sizeof(BlkHeader)


cdef inline int take_frame(
    Segment *segments, uint32_t count, BlkHeader *header, Operation *op, uint32_t *writable,
    Flaw *flaw,
) noexcept nogil:
    """Cut header and status off a chain: 0, or -EINVAL if it cannot even be answered.

    Framing is free (virtio 1.3, 2.6.4): the header is the first 16 readable bytes and the
    status the last writable one, however they are cut.  `op.io.data` becomes the readable
    rest; the writable one, of `writable` segments, stands right behind it.
    """
    cdef uint32_t readable = readable_of(segments, count), i
    for i in range(readable, count):
        if not segments[i].device_writes:
            return found_flaw(flaw, BLK_FLAW_ORDER, i, 0, 0, EINVAL)    # 2.6.4.2
    if readable == count:
        return found_flaw(flaw, BLK_FLAW_NO_STATUS, 0, count, 0, EINVAL)
    writable[0] = count - readable
    op.io.data, op.io.data_count = segments, readable
    if not take_header(&op.io.data, &op.io.data_count, header):
        return found_flaw(flaw, BLK_FLAW_HEADER, 0, 0, sizeof(BlkHeader), EINVAL)
    segments[count - 1].len -= 1
    op.status_byte = segments[count - 1].base + segments[count - 1].len
    if segments[count - 1].len == 0:
        writable[0] -= 1
    return 0


cdef inline int parse_request(
    const BlkLimits *dev, Segment *segments, uint32_t count, Operation *op, BlkRange *ranges,
    Flaw *flaw,
) noexcept nogil:
    """Turn a chain's segments, which are used up, into `op`: 0, or -EINVAL as `take_frame`."""
    cdef BlkHeader header
    cdef uint32_t writable = 0
    cdef int rc = take_frame(segments, count, &header, op, &writable, flaw)
    if rc < 0:
        return rc
    op.type = header.type
    op.io.length = op.io.offset = op.ranges = op.written = 0
    if header.type == BLK_T_IN:
        op.io.kind, op.io.durable = IO_READ, False
        op.io.data, op.io.data_count = op.io.data + op.io.data_count, writable
        check_transfer(dev, header.sector, op)
    elif header.type == BLK_T_OUT:
        op.io.kind, op.io.durable = IO_WRITE, dev.write_through
        check_transfer(dev, header.sector, op)
    elif header.type == BLK_T_FLUSH:
        op.io.kind, op.io.durable = IO_FLUSH, True
    elif header.type == BLK_T_DISCARD or header.type == BLK_T_WRITE_ZEROES:
        op.io.kind = IO_DISCARD if header.type == BLK_T_DISCARD else IO_ZEROES
        op.io.durable = dev.write_through
        check_ranges(dev, op, ranges)
    elif header.type == BLK_T_GET_ID:
        answer(op, BLK_S_OK)
        op.io.data, op.io.data_count = op.io.data + op.io.data_count, writable
        op.written = give_bytes(op.io.data, writable, dev.serial, ID_BYTES)
    else:
        answer(op, BLK_S_UNSUPP)
    return 0
