# SPDX-License-Identifier: Apache-2.0
"""Guest memory as the data path sees it: sorted regions, translated addresses, pins."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from sys.hints cimport unlikely
from sys.uring cimport iovec


cdef struct Region:
    uint64_t guest_address      # first guest physical address, or IOVA behind an IOMMU
    uint64_t size               # bytes
    uint8_t *base               # where it is mapped here


cdef struct GuestMemory:
    # Immutable once handed to a worker; the control thread frees it when no worker uses it.
    const Region *regions       # sorted by guest address, never overlapping
    const Region *by_base       # the same, sorted by where they are mapped
    uint32_t count
    bint is_iotlb               # it is the first member of an Iotlb, and `regions` are in no order
    uint32_t chunk_count
    const iovec *chunks         # the same memory as mapped here, sorted, in registrable pieces


cdef struct MemoryView:
    # One worker's hold on one memory map.
    const GuestMemory *memory   # control thread, before it is handed over
    uint64_t retired            # worker: the ticket to answer once unpinned, 0 while in use
    uint32_t pins               # worker: requests in flight on this map
    MemoryView *older           # worker: the one retired before, if it still has pins


cdef inline uint8_t *near_base(
    const GuestMemory *memory, uint64_t address, uint64_t length, uint32_t near
) noexcept nogil:
    """Where `length` bytes from guest `address` are mapped, if all of it is in `near`, or NULL."""
    cdef const Region *region
    cdef uint64_t within
    if near >= memory.count:
        return NULL
    region = &memory.regions[near]
    within = address - region.guest_address     # of what lies before it: beyond any size
    if within >= region.size or length > region.size - within:
        return NULL
    return region.base + within


cdef inline uint8_t *translate(
    const GuestMemory *memory, uint64_t address, uint64_t *length, uint32_t *near
) noexcept nogil:
    """Where guest `address` is mapped, or NULL; cuts `length` at its region's end.

    `near` becomes the number of that region.
    """
    cdef uint32_t low = 0, high = memory.count, middle
    cdef uint64_t within
    cdef const Region *region
    while low < high:
        middle = (low + high) >> 1
        region = &memory.regions[middle]
        if address < region.guest_address:
            high = middle
            continue
        within = address - region.guest_address
        if within < region.size:
            if length[0] > region.size - within:
                length[0] = region.size - within
            near[0] = middle
            return region.base + within
        low = middle + 1
    return NULL


cdef inline uint8_t *translate_whole(
    const GuestMemory *memory, uint64_t address, uint64_t length, uint32_t *near
) noexcept nogil:
    """Where `length` bytes from guest `address` are mapped in one piece, or NULL.

    `near` is the number of the region that is tried first, and becomes that of the one found; of an
    Iotlb no other is tried.
    """
    cdef uint64_t found = length
    cdef uint8_t *base = near_base(memory, address, length, near[0])
    if unlikely(base == NULL) and not memory.is_iotlb:
        base = translate(memory, address, &found, near)
    return base if found == length else NULL


cdef inline bint guest_address(
    const GuestMemory *memory, const uint8_t *base, uint64_t *address
) noexcept nogil:
    """The guest address of what is mapped at `base`: whether it is guest memory at all."""
    cdef uint32_t low = 0, high = memory.count, middle
    cdef const Region *region
    while low < high:
        middle = (low + high) >> 1
        region = &memory.by_base[middle]
        if base < region.base:
            high = middle
        elif base >= region.base + region.size:
            low = middle + 1
        else:
            address[0] = region.guest_address + <uint64_t>(base - region.base)
            return True
    return False


cdef inline int32_t chunk_of(
    const GuestMemory *memory, const uint8_t *base, size_t length
) noexcept nogil:
    """The chunk that has all of these bytes, as mapped here, or -1."""
    cdef uint32_t low = 0, high = memory.chunk_count, middle
    cdef const iovec *chunk
    cdef const uint8_t *start
    while low < high:
        middle = (low + high) >> 1
        chunk = &memory.chunks[middle]
        start = <const uint8_t *>chunk.iov_base
        if base < start:
            high = middle
        elif base >= start + chunk.iov_len:
            low = middle + 1
        else:
            return <int32_t>middle if length <= <size_t>(start + chunk.iov_len - base) else -1
    return -1
