# SPDX-License-Identifier: Apache-2.0
"""Guest memory that shrinks under us: a SIGBUS becomes zeroed pages and a word to the loop.

A front end may truncate the file behind its memory at any time.  The next access by a worker
is then a SIGBUS, which would end the process and with it the disk's crash safety.  The
handler puts anonymous pages in the hole's place, so that the access goes on, and writes to
an eventfd, whose reader ends the connection.
"""

cdef extern from *:
    """
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <unistd.h>

    #define BLKD_WATCHED 2048           /* mappings: twice 509 slots and some */

    static struct blkd_watched {
        uintptr_t base;                 /* 0: free; written last, by the control thread */
        size_t length;
        size_t page;                    /* of the file: what can be replaced at the least */
    } blkd_watched[BLKD_WATCHED];
    static int blkd_fault_fd = -1;
    static struct sigaction blkd_other_handler;

    /* Async-signal-safe. Runs on the thread that touched the hole. */
    static void blkd_on_bus_error(int number, siginfo_t *info, void *context) {
        uintptr_t at = (uintptr_t)info->si_addr;
        uint64_t one = 1;
        for (int i = 0; i < BLKD_WATCHED; i++) {
            uintptr_t base = __atomic_load_n(&blkd_watched[i].base, __ATOMIC_ACQUIRE);
            if (base == 0 || at < base || at - base >= blkd_watched[i].length)
                continue;
            size_t from = (at - base) / blkd_watched[i].page * blkd_watched[i].page;
            void *hole = mmap((void *)(base + from), blkd_watched[i].length - from,
                              PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
            if (hole != MAP_FAILED && write(blkd_fault_fd, &one, sizeof(one)) == sizeof(one))
                return;
        }
        sigaction(number, &blkd_other_handler, NULL);   /* not ours: it strikes again there */
    }

    /* The eventfd that is written to at each fault, or -1. Idempotent. */
    static int blkd_install_fault_handler(void) {
        struct sigaction handler;
        if (blkd_fault_fd >= 0)
            return blkd_fault_fd;
        blkd_fault_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (blkd_fault_fd < 0)
            return -1;
        memset(&handler, 0, sizeof(handler));
        handler.sa_sigaction = blkd_on_bus_error;
        handler.sa_flags = SA_SIGINFO;
        sigaction(SIGBUS, &handler, &blkd_other_handler);
        return blkd_fault_fd;
    }

    static void blkd_watch_mapping(void *base, size_t length, size_t page) {
        for (int i = 0; i < BLKD_WATCHED; i++) {
            if (blkd_watched[i].base != 0)
                continue;
            blkd_watched[i].length = length;
            blkd_watched[i].page = page;
            __atomic_store_n(&blkd_watched[i].base, (uintptr_t)base, __ATOMIC_RELEASE);
            return;
        }
    }

    static void blkd_forget_mapping(void *base) {
        for (int i = 0; i < BLKD_WATCHED; i++)
            if (blkd_watched[i].base == (uintptr_t)base)
                __atomic_store_n(&blkd_watched[i].base, 0, __ATOMIC_RELEASE);
    }
    """
    int install_fault_handler "blkd_install_fault_handler"()
    int fault_fd "blkd_fault_fd"
    void watch_mapping "blkd_watch_mapping"(void *base, size_t length, size_t page)
    void forget_mapping "blkd_forget_mapping"(void *base)
