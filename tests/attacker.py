# SPDX-License-Identifier: Apache-2.0
"""The process of an export with an attacker in it: code that runs there once it is confined.

    python -m tests.attacker ORDER FDS...     (ORDER as JSON; the last descriptor is the attacker's)

Serves as a launcher's child does; a thread of it, there before the process is sealed, does what
comes as a line on the attacker's socket, and answers with a line: null, or the errno.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from blkd.daemon import child, confining, orders
from blkd.host import confinement, log

MIB = 1 << 20
IO_URING_SETUP, IO_URING_REGISTER = 425, 427
PROCESS_VM_READV, PTRACE, OPENAT2, UNSHARE, MOUNT = 310, 101, 437, 272, 165
CLONE_FORK = 56, signal.SIGCHLD
RLIMIT_DATA = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
buffer = ctypes.create_string_buffer(4096)


def call(number, *arguments):
    """A system call by its number.  Raises OSError."""
    result = libc.syscall(*map(ctypes.c_long, (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def at(address=buffer):
    return ctypes.addressof(address)


def links():
    """Each descriptor that is open, and where it leads."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            yield int(entry.name), str(entry.readlink())
        except FileNotFoundError:
            continue  # that of the list itself


# ---- what is tried; each takes an argument of the test's ----


def open_to_read(path):
    os.close(os.open(path, os.O_RDONLY))


def open_to_write(path):
    os.close(os.open(path, os.O_WRONLY))


def open_with_openat2(path):
    how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_RDONLY, 0, 0))
    name = ctypes.create_string_buffer(path.encode())
    call(OPENAT2, -100, at(name), at(how), 24)


def climb_out(path):
    """By whatever directory is open here."""
    for fd, _ in links():
        try:
            os.close(os.open(f"../../../../../..{path}", os.O_RDONLY, dir_fd=fd))
        except NotADirectoryError:
            continue
        else:
            return
    raise PermissionError(errno.EACCES, "no directory leads out")


def open_own_image_again(_):
    for fd, where in links():
        if "disk.img" in where:
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))


def connect_unix(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def connect_tcp(port):
    with socket.socket(socket.AF_INET) as sock:
        sock.connect(("127.0.0.1", int(port)))


def connect_what_is_there(path):
    """By a socket that need not be made: one end of a pair."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", path)


def execute(_):
    subprocess.run(["/bin/true"], check=True)


def execute_here(_):
    os.execv("/bin/true", ["true"])


def fork(_):
    if os.fork() == 0:
        os._exit(0)


def fork_by_clone(_):
    if call(*CLONE_FORK, 0, 0, 0, 0) == 0:
        os._exit(0)


def thread(_):
    worker = threading.Thread(target=lambda: None)
    worker.start()
    worker.join()


def trace(pid):
    call(PTRACE, 16, int(pid), 0, 0)  # PTRACE_ATTACH


def read_memory_of(pid):
    place = ctypes.create_string_buffer(struct.pack("=QQ", at(), 8))
    call(PROCESS_VM_READV, int(pid), at(place), 1, at(place), 1, 0)


def send_signal(pid):
    os.kill(int(pid), signal.SIGTERM)


def signal_all(_):
    os.kill(-1, signal.SIGTERM)


def signal_by_pidfd(pid):
    signal.pidfd_send_signal(os.pidfd_open(int(pid)), signal.SIGTERM)


def signal_by_io(pid):
    import fcntl  # noqa: PLC0415 - there since blkd is

    one, other = socket.socketpair()
    with one, other:
        fcntl.fcntl(one, fcntl.F_SETOWN, int(pid))


def make_io_uring(_):
    call(IO_URING_SETUP, 8, at())


def register_more_with_io_uring(_):
    for fd, where in links():
        if "io_uring" in where:
            call(IO_URING_REGISTER, fd, 9, 0, 0)  # IORING_REGISTER_PERSONALITY


def fill_memory(_):
    kept = []
    while len(kept) < 1 << 16:
        kept.append(bytearray(MIB))


def fill_shared_memory(_):
    mmap.mmap(-1, MIB)


def fill_memory_file(_):
    os.close(os.memfd_create("x"))


def execute_memory(_):
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC)


def raise_limit(_):
    import resource  # noqa: PLC0415 - likewise

    try:
        resource.setrlimit(RLIMIT_DATA, (1 << 40, 1 << 40))
    except ValueError as error:  # so Python says that it is not permitted
        raise PermissionError(errno.EPERM, str(error)) from error


def become_root(_):
    os.setuid(0)


def unshare_user(_):
    call(UNSHARE, 0x10000000)


def mount(_):
    call(MOUNT, at(), at(), at(), 0, 0)


def seccomp_off(_):
    Path("/proc/self/attr/current").write_text("unconfined")


def by_number(number):
    call(int(number), 0, 0, 0, 0)


def die(_):
    os._exit(1)


def abort(_):
    os.abort()


def _obey(sock):
    with sock.makefile("rw") as lines:
        for line in lines:
            name, argument = json.loads(line)
            lines.write(json.dumps(_errno(globals()[name], argument)) + "\n")
            lines.flush()


def _errno(attack, argument):
    try:
        attack(argument)
    except MemoryError:
        return errno.ENOMEM
    except OSError as error:
        return error.errno
    return None


def main():
    order = orders.decode_order(sys.argv[1].encode(), list(map(int, sys.argv[2:-1])))
    fds, own = [int(fd) for fd in sys.argv[2:-1]], int(sys.argv[-1])
    close, confine = child.close_all_but, confining.Confined.__init__

    def confined(*arguments):
        confine(*arguments)
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        sock = socket.socket(fileno=own)
        threading.Thread(target=_obey, args=(sock,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)

    child.close_all_but = lambda kept: close([*kept, own])
    confining.Confined.__init__ = confined
    log.configure(json=True)
    log.hold()
    child.preload()
    pid, _ = confinement.fork_apart()
    if pid == 0:
        child.run(order, fds)
    print(pid, flush=True)  # noqa: T201 - the test reads it
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
