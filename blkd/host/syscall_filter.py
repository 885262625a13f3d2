# SPDX-License-Identifier: Apache-2.0
"""The system calls that a process makes while it serves, as a seccomp filter (seccomp(2)).

The filter is a program of the kernel's classic BPF, made here and installed by `install`: a list
of numbers that are allowed, some of them under conditions on their arguments.  All others are
refused with EPERM, and the process goes on.
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blkd import sandbox
from blkd.host.sandbox_policy import AF_UNIX

CALLS: Final = {
    "accept4": (288, 242),
    "access": (21, None),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "connect": (42, 203),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "epoll_wait": (232, None),
    "eventfd2": (290, 19),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fadvise64": (221, 223),
    "fallocate": (285, 47),
    "fcntl": (72, 25),
    "fdatasync": (75, 83),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "getcpu": (309, 168),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getgroups": (115, 158),
    "getpeername": (52, 205),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "inotify_add_watch": (254, 27),
    "inotify_init1": (294, 26),
    "inotify_rm_watch": (255, 28),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "ioctl": (16, 29),
    "kill": (62, 129),
    "listen": (50, 201),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mincore": (27, 232),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "recvmmsg": (299, 243),
    "recvmsg": (47, 212),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_yield": (24, 124),
    "select": (23, None),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "setsockopt": (54, 208),
    "shutdown": (48, 210),
    "sigaltstack": (131, 132),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "stat": (4, None),
    "statfs": (137, 43),
    "statx": (332, 291),
    "sync_file_range": (277, 84),
    "sysinfo": (99, 179),
    "tgkill": (234, 131),
    "time": (201, None),
    "timerfd_create": (283, 85),
    "timerfd_gettime": (287, 87),
    "timerfd_settime": (286, 86),
    "times": (100, 153),
    "uname": (63, 160),
    "write": (1, 64),
    "writev": (20, 66),
}
"""Numbers of system calls: on x86-64, and on architectures with the common table, as AArch64."""

X86_64: Final = 0xC000003E  # AUDIT_ARCH_X86_64, <linux/audit.h>
AARCH64: Final = 0xC00000B7
X32: Final = 0x40000000  # the bit in numbers of calls by the x32 ABI
NEWEST: Final = 470  # above it are numbers that nobody had when this was written

EVERYTHING: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Test:
    """What the low half of an argument must be, under a mask: one of these values."""

    argument: int
    values: tuple[int, ...]
    mask: int = EVERYTHING
    high: bool = False
    """Whether it is about the high half."""


O_WRITES: Final = (
    os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (os.O_TMPFILE & ~os.O_DIRECTORY)
)
PROT_EXEC: Final = 0x4
MAP_KINDS: Final = 0x23  # MAP_SHARED, MAP_PRIVATE and MAP_ANONYMOUS
MAP_PLAIN: Final = (
    0x01,
    0x02,
    0x22,
    0x03,
)  # shared, private, private and anonymous, shared once more

# <linux/sched.h>: a thread, and no namespace of its own
CLONE_THREAD: Final = 0x00010000
CLONE_NAMESPACES: Final = 0x7E020080
PR_SET_NAME: Final = 15
PR_GET_DUMPABLE: Final = 3
PR_GET_NO_NEW_PRIVS: Final = 39
PR_SET_VMA: Final = 0x53564D41  # glibc and Python name their memory

F_DUPFD: Final = 0  # <linux/fcntl.h>, also below
FCNTL: Final = (
    F_DUPFD,
    1,  # F_GETFD
    2,  # F_SETFD
    3,  # F_GETFL
    4,  # F_SETFL
    36,  # F_OFD_GETLK
    37,  # F_OFD_SETLK
    1030,  # F_DUPFD_CLOEXEC
    1033,  # F_ADD_SEALS
    1034,  # F_GET_SEALS
)
"""None by which the kernel would signal somebody (F_SETOWN)."""

IOCTLS: Final = (
    0x125E,  # BLKROGET
    0x1260,  # BLKGETSIZE
    0x1268,  # BLKSSZGET
    0x1278,  # BLKIOMIN
    0x1279,  # BLKIOOPT
    0x127A,  # BLKALIGNOFF
    0x127B,  # BLKPBSZGET
    0x80081272,  # BLKGETSIZE64
    0x5401,  # TCGETS: whether it is a terminal
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
    0x400454D0,  # TUNSETOFFLOAD
    0x400454D8,  # TUNSETVNETHDRSZ
    0x400454D9,  # TUNSETQUEUE
    0x800454D2,  # TUNGETIFF
    0x8913,  # SIOCGIFFLAGS
    0x8921,  # SIOCGIFMTU
)
"""Questions, and what a network device asks of its TAP."""

REGISTRATIONS: Final = (
    0,  # IORING_REGISTER_BUFFERS, <linux/io_uring.h>
    1,  # IORING_UNREGISTER_BUFFERS
    4,  # IORING_REGISTER_EVENTFD
    5,  # IORING_UNREGISTER_EVENTFD
)


def conditions(pid: int) -> dict[str, tuple[Test, ...]]:
    """What must be true of the arguments of some calls, for the process `pid`: all of it."""
    return {
        "clone": (Test(0, (CLONE_THREAD,), CLONE_THREAD | CLONE_NAMESPACES),),
        "fcntl": (Test(1, FCNTL),),
        "io_uring_register": (Test(1, REGISTRATIONS),),
        "ioctl": (Test(1, IOCTLS),),
        "kill": (Test(0, (pid,)),),
        "mmap": (Test(2, (0,), PROT_EXEC), Test(3, MAP_PLAIN, MAP_KINDS)),
        "mprotect": (Test(2, (0,), PROT_EXEC),),
        "open": (Test(1, (0,), O_WRITES),),
        "openat": (Test(2, (0,), O_WRITES),),
        "prctl": (Test(0, (PR_SET_NAME, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_SET_VMA)),),
        "prlimit64": (Test(2, (0,)), Test(2, (0,), high=True)),  # a question
        "socketpair": (Test(0, (AF_UNIX,)),),
        "tgkill": (Test(0, (pid,)),),
    }


CONNECTING: Final = frozenset({"connect", "socket"})
"""What devices of sockets do besides."""

ABSENT: Final = frozenset({"clone3"})
"""Said not to exist: its arguments cannot be seen, and there is an older call."""

# ---- the program ----

INSTRUCTION: Final = struct.Struct("=HBBI")
"""struct sock_filter: code, how many to skip if so and if not, a number."""

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS, <linux/bpf_common.h>
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_NOT_BELOW: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

NUMBER_AT: Final = 0  # struct seccomp_data, bytes
ARCHITECTURE_AT: Final = 4
ARGUMENTS_AT: Final = 16
ARGUMENT_BYTES: Final = 8
HIGH_HALF: Final = 4  # bytes into it: little-endian

ALLOW: Final = 0x7FFF0000  # SECCOMP_RET_ALLOW, <linux/seccomp.h>
KILL: Final = 0x80000000  # SECCOMP_RET_KILL_PROCESS
ERRNO_ACTION: Final = 0x00050000  # SECCOMP_RET_ERRNO
REFUSE: Final = ERRNO_ACTION | errno.EPERM
NO_SUCH_CALL: Final = ERRNO_ACTION | errno.ENOSYS

TSYNC: Final = 1  # SECCOMP_FILTER_FLAG_TSYNC: all threads


def program(
    architecture: int, pid: int, families: tuple[int, ...] = (), refused: int = REFUSE
) -> bytes:
    """The filter for the process `pid` on this architecture, `refused` being its last word.

    Raises ValueError on an architecture whose numbers are not known.
    """
    if architecture not in {X86_64, AARCH64}:
        raise ValueError(f"no numbers of system calls for the architecture {architecture:#x}")
    tests = conditions(pid) | {"socket": (Test(0, families),)}
    column = 0 if architecture == X86_64 else 1
    lines = [
        _pack(LOAD, ARCHITECTURE_AT),
        _pack(IF_EQUAL, architecture, 1, 0),
        _pack(RETURN, KILL),
        _pack(LOAD, NUMBER_AT),
    ]
    if architecture == X86_64:
        lines += _answer(IF_NOT_BELOW, X32, refused)
    lines += _answer(IF_NOT_BELOW, NEWEST, NO_SUCH_CALL)
    for name, numbers in CALLS.items():
        if (number := numbers[column]) is None or (name in CONNECTING and not families):
            continue
        if name in ABSENT:
            lines += _answer(IF_EQUAL, number, NO_SUCH_CALL)
        elif found := tests.get(name):
            body = _tested(found, refused)
            lines += [_pack(IF_EQUAL, number, 0, len(body)), *body]
        else:
            lines += _answer(IF_EQUAL, number, ALLOW)
    return b"".join([*lines, _pack(RETURN, refused)])


def can_filter() -> bool:
    """Whether a filter can be put into force: by this kernel, and on this architecture."""
    known = sandbox.AUDIT_ARCH in {X86_64, AARCH64}
    return known and all(map(sandbox.has_seccomp_action, (ALLOW, ERRNO_ACTION, KILL)))


def install(families: tuple[int, ...]) -> None:
    """Put the filter into force in every thread of this process.  Raises OSError."""
    try:
        made = program(sandbox.AUDIT_ARCH, os.getpid(), families)
    except ValueError as error:
        raise OSError(errno.ENOSYS, str(error)) from error
    if other := sandbox.install_filter(made, TSYNC):
        raise OSError(errno.EBUSY, f"thread {other} has a filter of its own")


def _pack(code: int, number: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return INSTRUCTION.pack(code, if_so, if_not, number)


def _answer(condition: int, number: int, answer: int) -> Iterator[bytes]:
    """Answer so if the accumulator meets the condition."""
    yield _pack(condition, number, 0, 1)
    yield _pack(RETURN, answer)


def _tested(tests: Iterable[Test], refused: int) -> list[bytes]:
    """Allow the call if all tests are met."""
    lines = []
    for test in tests:
        half = HIGH_HALF if test.high else 0
        lines.append(_pack(LOAD, ARGUMENTS_AT + ARGUMENT_BYTES * test.argument + half))
        if test.mask != EVERYTHING:
            lines.append(_pack(AND, test.mask))
        for number, value in enumerate(test.values):
            behind = len(test.values) - number  # what is left of the values, and the refusal
            lines.append(_pack(IF_EQUAL, value, behind, 0))
        lines.append(_pack(RETURN, refused))
    return [*lines, _pack(RETURN, ALLOW)]
