# SPDX-License-Identifier: Apache-2.0
"""What ends on threads that are not ours: a stack that any thread pushes to and a worker empties.

A library such as librbd calls back on threads of its own.  They push without a lock and write to
an eventfd where the stack was empty; the worker, which polls that beside its other eventfds, takes
the whole stack at once, so nothing is pushed to a node that was popped meanwhile (no ABA).
Nothing here takes the GIL, allocates or waits.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buffer, size_t count)


cdef extern from *:
    """
    #include <stddef.h>

    struct blkd_completion {
        struct blkd_completion *next;
    };

    /* Push: whether the stack was empty. */
    static inline int blkd_push(struct blkd_completion **stack, struct blkd_completion *node) {
        struct blkd_completion *top = __atomic_load_n(stack, __ATOMIC_RELAXED);
        do
            node->next = top;
        while (!__atomic_compare_exchange_n(stack, &top, node, 1, __ATOMIC_RELEASE,
                                            __ATOMIC_RELAXED));
        return top == NULL;
    }

    /* Take all, the oldest first. */
    static inline struct blkd_completion *blkd_take_all(struct blkd_completion **stack) {
        struct blkd_completion *at = __atomic_exchange_n(stack, NULL, __ATOMIC_ACQUIRE);
        struct blkd_completion *first = NULL, *next;
        for (; at != NULL; at = next) {
            next = at->next;
            at->next = first;
            first = at;
        }
        return first;
    }
    #define blkd_is_empty(stack) (__atomic_load_n((stack), __ATOMIC_RELAXED) == NULL)
    #define blkd_enter(count)    ((void)__atomic_fetch_add((count), 1, __ATOMIC_ACQUIRE))
    #define blkd_leave(count)    ((void)__atomic_fetch_sub((count), 1, __ATOMIC_RELEASE))
    #define blkd_is_zero(count)  (__atomic_load_n((count), __ATOMIC_ACQUIRE) == 0)
    """
    cdef struct Completion "blkd_completion":
        Completion *next        # the first member of what ends
    bint push "blkd_push"(Completion **stack, Completion *node) noexcept nogil
    Completion *take_all "blkd_take_all"(Completion **stack) noexcept nogil
    bint is_empty "blkd_is_empty"(Completion *const *stack) noexcept nogil
    void enter "blkd_enter"(uint32_t *count) noexcept nogil
    void leave "blkd_leave"(uint32_t *count) noexcept nogil
    bint is_zero "blkd_is_zero"(const uint32_t *count) noexcept nogil


cdef struct Completions:
    Completion *stack           # foreign threads push, the worker takes
    uint32_t pushing            # foreign threads: how many of them are in `push_completion`
    int fd                      # eventfd: foreign threads write, the worker polls; -1 without any


cdef inline void push_completion(Completions *c, Completion *node) noexcept nogil:
    """Any thread: give what has ended to the worker, and wake it unless that is under way."""
    cdef uint64_t one = 1
    enter(&c.pushing)           # until then a worker that ends keeps what this writes to
    if push(&c.stack, node):
        write(c.fd, &one, sizeof(one))
    leave(&c.pushing)


cdef inline bint has_completions(const Completions *c) noexcept nogil:
    """Worker: whether something has ended that was not taken."""
    return not is_empty(&c.stack)


cdef inline Completion *take_completions(Completions *c) noexcept nogil:
    """Worker: what has ended since, in that order, chained by `next`; or NULL."""
    return take_all(&c.stack)


cdef inline bint is_left(const Completions *c) noexcept nogil:
    """Whether no foreign thread is in `push_completion`; none comes once nothing is started."""
    return is_zero(&c.pushing)
