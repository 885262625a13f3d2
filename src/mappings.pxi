# SPDX-License-Identifier: Apache-2.0
# Part of ring.pyx: memory mapped on behalf of workers, owned by Python objects.

cdef extern from "<sys/mman.h>" nogil:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    enum:
        PROT_READ
        PROT_WRITE
        MAP_ANONYMOUS
        MAP_NORESERVE
        MAP_PRIVATE
        MAP_SHARED
        MADV_DONTDUMP
        MADV_POPULATE_WRITE     # Linux 5.14
    void *MAP_FAILED
    void *mmap(void *at, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *at, size_t length)
    int madvise(void *at, size_t length, int advice)


cdef void *reserve(size_t length) except NULL:
    """Zeroed pages that cost memory only where they are touched."""
    cdef void *base = mmap(
        NULL, length, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
    )
    if base == MAP_FAILED:
        raise MemoryError(f"cannot reserve {length} bytes")
    return base


LARGEST_CHUNK = 1 << 30         # bytes that io_uring registers as one buffer

cdef enum:
    POPULATED_PIECE = 1 << 24   # bytes; some milliseconds' work, and whole huge pages of most kinds


cdef class Mapping:
    """One region of the front end's memory, mapped shared and writable until collected.

    Mapped in whole `page`s of the file, so that an offset or a size that is no multiple of a
    huge page can be mapped, and unmapped again.

    Raises:
        OSError: The kernel refuses the mapping.
    """

    cdef void *base
    cdef size_t length
    cdef uint64_t within        # bytes of the mapping before the region
    cdef readonly uint64_t guest_address, user_address, size

    def __init__(self, int fd, uint64_t offset, uint64_t size, uint64_t guest_address,
                 uint64_t user_address, uint64_t page):
        cdef uint64_t start = offset // page * page
        cdef uint64_t length = (offset + size - start + page - 1) // page * page
        cdef void *base = mmap(
            NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, <int64_t>start
        )
        if base == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        madvise(base, length, MADV_DONTDUMP)    # a guest's memory is not ours to dump
        watch_mapping(base, length, page)
        self.base = base
        self.length = length
        self.within = offset - start
        self.size = size
        self.guest_address = guest_address
        self.user_address = user_address

    @property
    def address(self):
        """Where the region's first byte is mapped here."""
        return <uint64_t>self.base + self.within

    def __dealloc__(self):
        if self.base != NULL:
            forget_mapping(self.base)
            with nogil:         # pages to free, or a file that is waited for
                munmap(self.base, self.length)


cdef class MemoryMap:
    """All of a front end's memory at one time; immutable, shared by the workers."""

    cdef GuestMemory memory
    cdef Region *regions        # by guest address, then the same by where they are mapped
    cdef iovec *chunks
    cdef readonly tuple mappings

    def __cinit__(self, mappings):
        cdef Region *region
        self.mappings = tuple(sorted(mappings, key=lambda m: m.guest_address))
        by_base = sorted(self.mappings, key=lambda m: m.address)
        self.regions = <Region *>calloc(2 * len(self.mappings) + 1, sizeof(Region))
        if self.regions == NULL:
            raise MemoryError
        for i, mapping in enumerate([*self.mappings, *by_base]):
            region = &self.regions[i]
            region.guest_address = mapping.guest_address
            region.size = mapping.size
            region.base = <uint8_t *><uint64_t>mapping.address
        self.memory.regions = self.regions
        self.memory.by_base = self.regions + len(self.mappings)
        self.memory.count = len(self.mappings)
        self.cut_up()

    cdef void cut_up(self) except *:
        """Lay out the chunks that the memory can be registered in."""
        pieces = [
            (m.address + at, min(m.size - at, LARGEST_CHUNK))
            for m in sorted(self.mappings, key=lambda m: m.address)
            for at in range(0, m.size, LARGEST_CHUNK)
        ]
        self.chunks = <iovec *>calloc(max(len(pieces), 1), sizeof(iovec))
        if self.chunks == NULL:
            raise MemoryError
        for i, (address, length) in enumerate(pieces):
            self.chunks[i].iov_base = <void *><uint64_t>address
            self.chunks[i].iov_len = length
        self.memory.chunks, self.memory.chunk_count = self.chunks, len(pieces)

    def __dealloc__(self):
        free(self.regions)
        free(self.chunks)

    def populate(self, wanted) -> None:
        """Have every page there, so that to pin them is quick; blocks for as long as that takes.

        Piece by piece, and no further once `wanted()` is false.

        Raises:
            OSError: There is no room for all, or no such memory any more.
        """
        cdef Mapping mapping
        cdef size_t at, length
        cdef int rc
        for mapping in self.mappings:
            for at in range(0, mapping.length, POPULATED_PIECE):
                if not wanted():
                    return
                length = min(mapping.length - at, <size_t>POPULATED_PIECE)
                with nogil:
                    rc = madvise(<uint8_t *>mapping.base + at, length, MADV_POPULATE_WRITE)
                if rc < 0:
                    raise OSError(errno, os.strerror(errno))

    def locate(self, address: int, length: int) -> int:
        """Where `length` bytes at the front end's own `address` are mapped here, or 0."""
        for m in self.mappings:
            if m.user_address <= address and address + length <= m.user_address + m.size:
                return m.address + (address - m.user_address)
        return 0

    def guest_address(self, address: int) -> int:
        """The guest address of what the front end has at its own `address`, in the map."""
        for m in self.mappings:
            if m.user_address <= address < m.user_address + m.size:
                return m.guest_address + (address - m.user_address)
        raise ValueError(f"{address:#x} is in no region")


cdef class View:
    """One worker's hold on a memory map."""

    cdef MemoryView state
    cdef readonly MemoryMap map

    def __cinit__(self, MemoryMap map):
        self.map = map
        self.state.memory = &map.memory


def fault_eventfd() -> int:
    """An eventfd, readable once a front end's memory shrank while it was in use; ours to keep.

    From the first call on such memory reads as zeroes instead of ending the process.

    Raises:
        OSError: There is no descriptor left.
    """
    cdef int fd = install_fault_handler()
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd
