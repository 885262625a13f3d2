# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls as a program: run here, not by a kernel."""

import errno
import fcntl
import os
import re
import struct
from pathlib import Path

import pytest

from blkd.host import landlock
from blkd.host.sandbox_policy import Policy
from blkd.host.syscall_filter import (
    AARCH64,
    ALLOW,
    CALLS,
    INSTRUCTION,
    KILL,
    NO_SUCH_CALL,
    REFUSE,
    X86_64,
    program,
)

PID = 4321
OTHER = 1234
LOCAL = Policy(keep=frozenset(), reach=("/run",)).families
ANY = Policy(keep=frozenset(), network=True).families
X86_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
COMMON_HEADER = Path("/usr/include/asm-generic/unistd.h")
THREAD = 0x003D0F00  # what glibc clones a thread with
FORK = 0x01200011


def answer(made, number, *arguments, architecture=X86_64):
    """What the program says to a call, by the rules of seccomp's BPF."""
    padded = [a & 0xFFFFFFFFFFFFFFFF for a in (*arguments, *(0,) * (6 - len(arguments)))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    lines = list(INSTRUCTION.iter_unpack(made))
    at, accumulator = 0, 0
    while True:
        code, if_so, if_not, value = lines[at]
        at += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, value)[0]
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_so if accumulator == value else if_not
            case 0x35:
                at += if_so if accumulator >= value else if_not
            case 0x06:
                return value


def call(name, *arguments, families=()):
    return answer(program(X86_64, PID, families), CALLS[name][0], *arguments)


@pytest.mark.parametrize("name", ["read", "io_uring_enter", "futex", "sendmsg", "exit_group"])
def test_what_serving_takes_is_allowed(name):
    assert call(name) == ALLOW


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(57, id="fork"),
        pytest.param(58, id="vfork"),
        pytest.param(59, id="execve"),
        pytest.param(101, id="ptrace"),
        pytest.param(165, id="mount"),
        pytest.param(298, id="perf_event_open"),
        pytest.param(310, id="process_vm_readv"),
        pytest.param(321, id="bpf"),
        pytest.param(322, id="execveat"),
        pytest.param(323, id="userfaultfd"),
        pytest.param(425, id="io_uring_setup"),
        pytest.param(434, id="pidfd_open"),
        pytest.param(437, id="openat2"),
    ],
)
def test_all_else_is_refused(number):
    assert answer(program(X86_64, PID, ANY), number) == REFUSE


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        pytest.param("clone", (THREAD,), ALLOW, id="thread"),
        pytest.param("clone", (FORK,), REFUSE, id="fork"),
        pytest.param("clone", (THREAD | 0x10000000,), REFUSE, id="user-namespace"),
        pytest.param("clone3", (), NO_SUCH_CALL, id="clone3"),
        pytest.param("openat", (-100, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW, id="read"),
        pytest.param("openat", (-100, 0, os.O_RDWR), REFUSE, id="read-and-write"),
        pytest.param("openat", (-100, 0, os.O_CREAT), REFUSE, id="create"),
        pytest.param("openat", (-100, 0, os.O_TMPFILE | os.O_RDWR), REFUSE, id="nameless"),
        pytest.param("open", (0, os.O_WRONLY), REFUSE, id="write"),
        pytest.param("kill", (PID, 15), ALLOW, id="signal-itself"),
        pytest.param("kill", (OTHER, 15), REFUSE, id="signal-another"),
        pytest.param("kill", (-1, 9), REFUSE, id="signal-all"),
        pytest.param("tgkill", (PID, PID, 6), ALLOW, id="signal-a-thread"),
        pytest.param("mmap", (0, 4096, 3, 0x22, -1, 0), ALLOW, id="memory"),
        pytest.param("mmap", (0, 4096, 3, 0x4001, 7, 0), ALLOW, id="guest-memory"),
        pytest.param("mmap", (0, 4096, 7, 0x22, -1, 0), REFUSE, id="memory-to-execute"),
        pytest.param("mmap", (0, 4096, 3, 0x21, -1, 0), REFUSE, id="memory-out-of-all-limits"),
        pytest.param("mprotect", (0, 4096, 5), REFUSE, id="made-executable"),
        pytest.param("prlimit64", (0, 7, 0, 4096), ALLOW, id="limit-asked"),
        pytest.param("prlimit64", (0, 7, 4096, 0), REFUSE, id="limit-set"),
        pytest.param("prlimit64", (0, 7, 1 << 40, 0), REFUSE, id="limit-set-from-high-memory"),
        pytest.param("fcntl", (3, fcntl.F_OFD_SETLK), ALLOW, id="lock"),
        pytest.param("fcntl", (3, fcntl.F_SETOWN, OTHER), REFUSE, id="signal-by-io"),
        pytest.param("ioctl", (3, 0x80081272), ALLOW, id="device-size"),
        pytest.param("ioctl", (3, 0x5412), REFUSE, id="type-on-a-terminal"),
        pytest.param("io_uring_register", (3, 0), ALLOW, id="register-buffers"),
        pytest.param("io_uring_register", (3, 30), REFUSE, id="clone-buffers"),
        pytest.param("socketpair", (1,), ALLOW, id="socket-pair"),
        pytest.param("socket", (1, 1), REFUSE, id="unix-socket"),
        pytest.param("connect", (3,), REFUSE, id="connect"),
    ],
)
def test_arguments_decide(name, arguments, expected):
    assert call(name, *arguments) == expected


@pytest.mark.parametrize(
    ("families", "name", "arguments", "expected"),
    [
        pytest.param(LOCAL, "socket", (1, 1), ALLOW, id="unix"),
        pytest.param(LOCAL, "socket", (2, 1), REFUSE, id="tcp-of-who-only-reaches-directories"),
        pytest.param(LOCAL, "connect", (3,), ALLOW, id="connect"),
        pytest.param(ANY, "socket", (1, 1), ALLOW, id="unix-beside-tcp"),
        pytest.param(ANY, "socket", (10, 1), ALLOW, id="tcp"),
        pytest.param(ANY, "socket", (16, 3), REFUSE, id="netlink"),
    ],
)
def test_a_device_of_sockets_connects_where_it_has_to(families, name, arguments, expected):
    assert call(name, *arguments, families=families) == expected


def test_calls_by_another_architecture_end_the_process():
    made = program(X86_64, PID)
    assert answer(made, CALLS["read"][0], architecture=AARCH64) == KILL
    assert answer(made, 0x40000000 | CALLS["read"][0]) == REFUSE


def test_a_call_that_nobody_knows_is_said_not_to_exist():
    assert answer(program(X86_64, PID), 900) == NO_SUCH_CALL
    assert NO_SUCH_CALL & 0xFFFF == errno.ENOSYS


def test_an_architecture_without_numbers_is_refused():
    with pytest.raises(ValueError, match="architecture 0x0"):
        program(0, PID)


def test_a_program_fits_the_kernel():
    assert len(program(X86_64, PID, ANY)) // INSTRUCTION.size < 4096  # BPF_MAXINSNS


@pytest.mark.skipif(not COMMON_HEADER.exists(), reason="it takes the kernel's headers")
def test_numbers_are_those_of_the_headers():
    common = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", COMMON_HEADER.read_text()))
    common["newfstatat"] = common.get("fstatat", common.get("newfstatat"))
    found = {name: (common.get(name) or "None") for name in CALLS}
    assert {name: str(numbers[1]) for name, numbers in CALLS.items()} == found
    if X86_HEADER.exists():
        here = dict(re.findall(r"#define __NR_(\w+) (\d+)", X86_HEADER.read_text()))
        assert {name: str(numbers[0]) for name, numbers in CALLS.items()} == {
            name: here[name] for name in CALLS
        }


@pytest.mark.parametrize(
    ("abi", "size", "files"),
    [(1, 8, 0x1FFF), (3, 8, 0x7FFF), (4, 16, 0x7FFF), (7, 24, 0xFFFF)],
)
def test_a_ruleset_asks_no_more_than_the_kernel_knows(abi, size, files):
    made = landlock.attributes(abi, network=False)
    assert len(made) == size
    assert struct.unpack_from("=Q", made)[0] == files


def test_a_ruleset_leaves_tcp_alone_only_for_who_needs_it():
    _, refused, scopes = struct.unpack("=QQQ", landlock.attributes(7, network=False))
    assert (refused, scopes) == (3, 3)
    _, refused, scopes = struct.unpack("=QQQ", landlock.attributes(7, network=True))
    assert (refused, scopes) == (0, 3)
