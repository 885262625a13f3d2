# SPDX-License-Identifier: Apache-2.0
"""System calls by which a process gives things up, as the kernel has them: no policy is here.

Python has them from 3.12 on, or not at all.  Each raises OSError with the kernel's errno.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<sys/syscall.h>" nogil:
    """
    #include <errno.h>
    #include <linux/audit.h>
    #include <linux/capability.h>
    #include <linux/filter.h>
    #include <linux/seccomp.h>
    #include <sched.h>
    #include <string.h>
    #include <sys/mount.h>
    #include <sys/prctl.h>
    #include <unistd.h>

    /* The same numbers on every architecture; kernel headers before 5.13 lack the names. */
    #define BLKD_SYS_LANDLOCK_CREATE_RULESET 444
    #define BLKD_SYS_LANDLOCK_ADD_RULE 445
    #define BLKD_SYS_LANDLOCK_RESTRICT_SELF 446
    #define BLKD_SYS_CLOSE_RANGE 436

    #define BLKD_LANDLOCK_CREATE_RULESET_VERSION 1
    #define BLKD_LANDLOCK_RULE_PATH_BENEATH 1
    struct blkd_path_beneath {
        uint64_t allowed;
        int32_t parent;
    } __attribute__((packed));

    #if defined(__x86_64__)
    #define BLKD_AUDIT_ARCH AUDIT_ARCH_X86_64
    #elif defined(__aarch64__)
    #define BLKD_AUDIT_ARCH AUDIT_ARCH_AARCH64
    #else
    #define BLKD_AUDIT_ARCH 0
    #endif

    static long blkd_landlock_abi(void) {
        return syscall(BLKD_SYS_LANDLOCK_CREATE_RULESET, NULL, 0,
                       BLKD_LANDLOCK_CREATE_RULESET_VERSION);
    }
    static long blkd_landlock_ruleset(const char *attributes, size_t length) {
        return syscall(BLKD_SYS_LANDLOCK_CREATE_RULESET, attributes, length, 0);
    }
    static long blkd_landlock_allow(int ruleset, int parent, uint64_t allowed) {
        struct blkd_path_beneath rule = {allowed, parent};
        return syscall(BLKD_SYS_LANDLOCK_ADD_RULE, ruleset, BLKD_LANDLOCK_RULE_PATH_BENEATH,
                       &rule, 0);
    }
    static long blkd_landlock_restrict(int ruleset) {
        return syscall(BLKD_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0);
    }
    static long blkd_no_capabilities(void) {
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
        memset(none, 0, sizeof(none));
        return syscall(SYS_capset, &header, none);
    }
    static long blkd_filter(const char *program, size_t length, unsigned flags) {
        struct sock_fprog filter = {
            length / sizeof(struct sock_filter), (struct sock_filter *)program
        };
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    }
    static long blkd_has_action(uint32_t action) {
        return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
    }
    static long blkd_close_range(unsigned first, unsigned last) {
        return syscall(BLKD_SYS_CLOSE_RANGE, first, last, 0);
    }
    static long blkd_pivot_root(const char *root, const char *old) {
        return syscall(SYS_pivot_root, root, old);
    }
    """
    enum:
        BLKD_AUDIT_ARCH
    long blkd_landlock_abi()
    long blkd_landlock_ruleset(const char *attributes, size_t length)
    long blkd_landlock_allow(int ruleset, int parent, uint64_t allowed)
    long blkd_landlock_restrict(int ruleset)
    long blkd_no_capabilities()
    long blkd_filter(const char *program, size_t length, unsigned flags)
    long blkd_has_action(uint32_t action)
    long blkd_close_range(unsigned first, unsigned last)
    long blkd_pivot_root(const char *root, const char *old)
    int c_prctl "prctl"(int option, unsigned long a, unsigned long b, unsigned long c,
                        unsigned long d)
    int c_unshare "unshare"(int flags)
    int c_setns "setns"(int fd, int kind)
    int c_mount "mount"(const char *source, const char *target, const char *kind,
                        unsigned long flags, const char *data)
    int c_umount2 "umount2"(const char *target, int flags)


# ---- Python face ----

import os


cdef long checked(long result) except -1:
    """`result`, or OSError where the call failed."""
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result


def prctl(int option, unsigned long a=0, unsigned long b=0, unsigned long c=0,
          unsigned long d=0) -> int:
    """prctl(2)."""
    return checked(c_prctl(option, a, b, c, d))


def unshare(int flags) -> None:
    """unshare(2): of this thread."""
    checked(c_unshare(flags))


def setns(int fd, int kind) -> None:
    """setns(2): of this thread."""
    checked(c_setns(fd, kind))


def mount(bytes source, bytes target, bytes kind, unsigned long flags, bytes data) -> None:
    """mount(2); `kind` and `data` may be None."""
    checked(c_mount(
        source, target, NULL if kind is None else <char *>kind, flags,
        NULL if data is None else <char *>data,
    ))


def umount2(bytes target, int flags) -> None:
    """umount2(2)."""
    checked(c_umount2(target, flags))


def pivot_root(bytes root, bytes old) -> None:
    """pivot_root(2)."""
    checked(blkd_pivot_root(root, old))


def close_range(unsigned first, unsigned last) -> None:
    """Close all descriptors from `first` to `last`, also those that Python knows of."""
    checked(blkd_close_range(first, last))


def drop_capabilities() -> None:
    """Have no capability: effective, permitted or inheritable."""
    checked(blkd_no_capabilities())


def landlock_abi() -> int:
    """Which version of Landlock the kernel has."""
    return checked(blkd_landlock_abi())


def landlock_ruleset(bytes attributes) -> int:
    """A ruleset of a `struct landlock_ruleset_attr`: a descriptor, to be closed."""
    return checked(blkd_landlock_ruleset(attributes, len(attributes)))


def landlock_allow(int ruleset, int parent, uint64_t allowed) -> None:
    """Allow this beneath the directory open as `parent`."""
    checked(blkd_landlock_allow(ruleset, parent, allowed))


def landlock_restrict(int ruleset) -> None:
    """Put this thread, and all that it starts, under a ruleset for ever."""
    checked(blkd_landlock_restrict(ruleset))


def install_filter(bytes program, unsigned flags) -> int:
    """Put a seccomp filter, of `struct sock_filter`s, into force: 0.

    With SECCOMP_FILTER_FLAG_TSYNC also the number of a thread that has another one: then it is in
    force nowhere.
    """
    return checked(blkd_filter(program, len(program), flags))


def has_seccomp_action(uint32_t action) -> bool:
    """Whether a filter may answer so; false without seccomp."""
    return blkd_has_action(action) == 0


AUDIT_ARCH = <uint32_t>BLKD_AUDIT_ARCH
"""How seccomp calls this architecture; 0 where no filter is known."""
