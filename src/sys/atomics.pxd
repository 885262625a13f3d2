# SPDX-License-Identifier: Apache-2.0
"""Loads, stores and fences on memory that another thread or the guest writes, as named verbs."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #define blkd_load_relaxed(p)     __atomic_load_n((p), __ATOMIC_RELAXED)
    #define blkd_load_acquire(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define blkd_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define blkd_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define blkd_or_release(p, v)    ((void)__atomic_fetch_or((p), (v), __ATOMIC_RELEASE))
    #define blkd_full_fence()        __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #if defined(__x86_64__) || defined(__i386__)
    #define blkd_prefetch_to_write(p) __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(p)))
    #else
    #define blkd_prefetch_to_write(p) __builtin_prefetch((p), 1)
    #endif
    #if defined(__x86_64__) || defined(__i386__)
    #define blkd_pause()             __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define blkd_pause()             __asm__ volatile("isb")
    #else
    #define blkd_pause()             __asm__ volatile("" ::: "memory")
    #endif

    /* Store `value` if nobody has stored anything but 0: whether that was done. */
    static inline int blkd_store_once(int32_t *p, int32_t value) {
        int32_t none = 0;
        return __atomic_compare_exchange_n(p, &none, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }

    /* Add: what was there before.  What is counted so orders nothing else. */
    #define blkd_fetch_add(p, v)     __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)

    /* Have `value` in the place of `known`, unless something else is there by now. */
    static inline void blkd_replace(uint64_t *p, uint64_t known, uint64_t value) {
        __atomic_compare_exchange_n(p, &known, value, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }

    /* Copy out of memory that its owner may rewrite meanwhile. The barrier keeps the
       compiler from fetching a field a second time after the copy has been checked. */
    static inline void blkd_copy_once(void *to, const void *from, size_t bytes) {
        __builtin_memcpy(to, from, bytes);
        __asm__ volatile("" ::: "memory");
    }
    """
    uint32_t load_relaxed_u32 "blkd_load_relaxed"(const uint32_t *p) noexcept nogil
    uint16_t load_relaxed_u16 "blkd_load_relaxed"(const uint16_t *p) noexcept nogil
    uint16_t load_acquire_u16 "blkd_load_acquire"(const uint16_t *p) noexcept nogil
    uint32_t load_relaxed_u32 "blkd_load_relaxed"(const uint32_t *p) noexcept nogil
    uint32_t load_acquire_u32 "blkd_load_acquire"(const uint32_t *p) noexcept nogil
    int32_t load_acquire_i32 "blkd_load_acquire"(const int32_t *p) noexcept nogil
    bint store_once "blkd_store_once"(int32_t *p, int32_t value) noexcept nogil
    uint32_t fetch_add_u32 "blkd_fetch_add"(uint32_t *p, uint32_t v) noexcept nogil
    uint64_t fetch_add_u64 "blkd_fetch_add"(uint64_t *p, uint64_t v) noexcept nogil
    void replace_u64 "blkd_replace"(uint64_t *p, uint64_t known, uint64_t v) noexcept nogil
    uint64_t load_acquire_u64 "blkd_load_acquire"(const uint64_t *p) noexcept nogil
    uint64_t load_relaxed_u64 "blkd_load_relaxed"(const uint64_t *p) noexcept nogil
    void store_relaxed_u16 "blkd_store_relaxed"(uint16_t *p, uint16_t v) noexcept nogil
    void store_relaxed_u32 "blkd_store_relaxed"(uint32_t *p, uint32_t v) noexcept nogil
    void store_relaxed_u64 "blkd_store_relaxed"(uint64_t *p, uint64_t v) noexcept nogil
    void store_release_u8 "blkd_store_release"(uint8_t *p, uint8_t v) noexcept nogil
    void store_release_u16 "blkd_store_release"(uint16_t *p, uint16_t v) noexcept nogil
    void store_release_u32 "blkd_store_release"(uint32_t *p, uint32_t v) noexcept nogil
    void store_release_u64 "blkd_store_release"(uint64_t *p, uint64_t v) noexcept nogil
    void or_release_u8 "blkd_or_release"(uint8_t *p, uint8_t v) noexcept nogil
    void full_fence "blkd_full_fence"() noexcept nogil
    void prefetch "__builtin_prefetch"(const void *p) noexcept nogil
    void prefetch_to_write "blkd_prefetch_to_write"(const void *p) noexcept nogil
    void pause "blkd_pause"() noexcept nogil
    void copy_once "blkd_copy_once"(void *to, const void *source, size_t bytes) noexcept nogil
