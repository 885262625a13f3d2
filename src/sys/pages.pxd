# SPDX-License-Identifier: Apache-2.0
"""Pages of memory, as the kernel maps them."""

from libc.stdint cimport int64_t

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_NONE
        PROT_READ
        PROT_WRITE
        MAP_ANONYMOUS
        MAP_FIXED
        MAP_NORESERVE
        MAP_PRIVATE
        MAP_SHARED
        MADV_DONTNEED
    void *MAP_FAILED
    void *mmap(void *at, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *at, size_t length)
    int madvise(void *at, size_t length, int advice)


cdef inline void *reserve(size_t length) noexcept nogil:
    """Zeroed pages that cost memory only where they are touched, or NULL; for `munmap`."""
    cdef void *base = mmap(
        NULL, length, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
    )
    return NULL if base == MAP_FAILED else base
