# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a live migration (vhost-user, "Migration"): one bit a page of guest memory.

The front end takes bits away while we set them, and copies the page of each after that.  So a
page is marked after the write to it: what is written after its mark may never be copied.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from sys.atomics cimport or_release_u8
from sys.uring cimport iovec
from virtio.guestmem cimport GuestMemory, guest_address
from virtio.virtq cimport Segment


cdef enum:
    LOG_PAGE_SHIFT = 12         # a bit stands for 4096 bytes, whatever pages the host has
    LOG_PIECES = 8              # of a ring's areas: the longest lie in 6 pages, each somewhere


cdef struct DirtyLog:
    uint8_t *bits               # control thread keeps them mapped; NULL without a log
    uint64_t pages              # that it has bits for
    bint of_data                # what requests write is logged; rings have switches of their own


cdef struct LoggedPiece:
    uint64_t address            # of the guest
    uint64_t length             # bytes


cdef struct RingLog:
    # The areas of a ring that we write, the used ring of a split one, or descriptors and device's
    # area of a packed one: as guest memory has them.  Behind an IOMMU that may be in pieces.
    uint32_t count              # 0: they are not logged
    LoggedPiece pieces[LOG_PIECES]


cdef inline bint mark(DirtyLog *log, uint64_t address, uint64_t length) noexcept nogil:
    """Mark the pages of `length` bytes from guest `address`: whether the log has them all."""
    cdef uint64_t page = address >> LOG_PAGE_SHIFT
    cdef uint64_t last = (address + length - 1) >> LOG_PAGE_SHIFT
    cdef uint64_t end
    if length == 0:
        return True
    if last < page or last >= log.pages:
        return False
    while page <= last:         # a byte at a time: the bits of up to 8 pages
        end = min(page | 7, last)
        or_release_u8(
            &log.bits[page >> 3], <uint8_t>((<uint32_t>2 << (end & 7)) - (1 << (page & 7)))
        )
        page = end + 1
    return True


cdef inline bint mark_mapped(
    DirtyLog *log, const GuestMemory *memory, const void *base, uint64_t length
) noexcept nogil:
    """Mark `length` bytes by where they are mapped, in one region: whether that could be."""
    cdef uint64_t address = 0
    if length == 0:
        return True
    return guest_address(memory, <const uint8_t *>base, &address) and mark(log, address, length)


cdef inline bint mark_segments(
    DirtyLog *log, const GuestMemory *memory, const Segment *segments, uint32_t count
) noexcept nogil:
    """Mark every byte of the segments: whether that could be."""
    cdef uint32_t i
    cdef bint marked = True
    for i in range(count):
        marked &= mark_mapped(log, memory, segments[i].base, segments[i].len)
    return marked


cdef inline bint mark_iovecs(
    DirtyLog *log, const GuestMemory *memory, const iovec *iov, uint32_t count
) noexcept nogil:
    """Mark every byte of the buffers: whether that could be."""
    cdef uint32_t i
    cdef bint marked = True
    for i in range(count):
        marked &= mark_mapped(log, memory, iov[i].iov_base, iov[i].iov_len)
    return marked


cdef inline bint mark_areas(DirtyLog *log, const RingLog *ring) noexcept nogil:
    """Mark the areas of a ring that we write, whole, for they are few pages: whether so."""
    cdef uint32_t i
    for i in range(ring.count):
        if not mark(log, ring.pieces[i].address, ring.pieces[i].length):
            return False
    return True
