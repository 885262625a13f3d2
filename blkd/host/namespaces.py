# SPDX-License-Identifier: Apache-2.0
"""Namespaces of a process's own, and a root directory with nothing in it (namespaces(7))."""

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blkd import sandbox
from blkd.host.sandbox_policy import Policy

CLONE_NEWNS: Final = 0x00020000  # <linux/sched.h>, also below
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

FLAGS: Final = {
    "mount": CLONE_NEWNS,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
}

MS_RDONLY: Final = 1  # <linux/mount.h>, also below
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

HARMLESS: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC

PLACES: Final = ("/tmp", "/run", "/var", "/mnt", "/srv")  # noqa: S108 - nothing is put there
"""Directories of which one is there: the new root is made on it, unseen by others."""

INIT: Final = 1


def available() -> tuple[str, ...]:
    """Which namespaces a process of this user can have, `user` among them where it takes that one.

    Tried by a process that is forked for it.  Raises OSError: why there are none.
    """
    refusal = _attempt([*FLAGS])
    if not refusal:
        return ("pid", *FLAGS)
    if _attempt(["user", *FLAGS]):
        raise OSError(refusal, os.strerror(refusal))
    return ("user", *FLAGS)


def _attempt(names: Sequence[str]) -> int:
    """The errno that a child of this process gets for these namespaces, 0 where it has them."""
    child = os.fork()
    if child == 0:
        try:
            _unshare(names)
        except OSError as error:
            os._exit(error.errno or errno.EPERM)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def enter(policy: Policy, missing: dict[str, str]) -> tuple[str, ...]:
    """Be in namespaces of this process's own, at an empty root: which those are.

    Why others are not goes into `missing`.
    """
    wanted = [name for name in FLAGS if name != "net" or not policy.network]
    found = ["pid"] if os.getpid() == INIT else []
    if not found:
        missing["pid namespace"] = "whoever started the process has made none"
    user, group = os.getuid(), os.getgid()
    try:
        _unshare(wanted)
    except OSError as error:
        # An ordinary user has a right to them in a namespace of users, where the host allows that.
        if error.errno != errno.EPERM or policy.user not in {None, user}:
            _note_all(wanted, missing, error)
            return tuple(found)
        try:
            _unshare(["user", *wanted])
            _map_self(user, group)
        except OSError as refused:
            _note_all(wanted, missing, refused)
            return tuple(found)
        found.append("user")
    found += wanted
    try:
        _leave_root(policy.reach)
    except OSError as error:
        missing["empty root"] = str(error)
    return tuple(found)


def _note_all(names: Sequence[str], missing: dict[str, str], error: OSError) -> None:
    for name in names:
        missing[f"{name} namespace"] = str(error)


def _unshare(names: Sequence[str]) -> None:
    flags = FLAGS | {"user": CLONE_NEWUSER}
    sandbox.unshare(sum(flags[name] for name in names))


def _map_self(user: int, group: int) -> None:
    """Be who one is, in a namespace of users that knows nobody else."""
    # As bytes: a codec that is needed for the first time here might not be readable any more.
    Path("/proc/self/setgroups").write_bytes(b"deny")
    Path("/proc/self/uid_map").write_bytes(b"%d %d 1" % (user, user))
    Path("/proc/self/gid_map").write_bytes(b"%d %d 1" % (group, group))


def _leave_root(reach: Sequence[str]) -> None:
    """Have no files but this process's own pages of /proc, and the directories to `reach`.

    Raises OSError: the process may then see what it saw before.
    """
    sandbox.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    with contextlib.ExitStack() as undo:
        # Named by descriptors: the new root may hide where they are.
        kept = {"/proc/self": _held("/proc/self", undo)}
        kept |= {os.path.realpath(path): _held(path, undo) for path in reach}
        root = next(place for place in PLACES if Path(place).is_dir())
        sandbox.mount(b"none", root.encode(), b"tmpfs", HARMLESS, b"size=64k,mode=755")
        for path, fd in kept.items():
            _show(fd, f"{root}{path}")
    sandbox.mount(b"none", root.encode(), None, MS_REMOUNT | MS_BIND | MS_RDONLY | HARMLESS, None)
    os.chdir(root)
    sandbox.pivot_root(b".", b".")
    sandbox.umount2(b".", MNT_DETACH)
    os.chdir("/")


def _held(path: str, undo: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def _show(fd: int, at: str) -> None:
    """Have the directory open as `fd` seen at a path, read-only."""
    Path(at).mkdir(parents=True)
    sandbox.mount(f"/proc/self/fd/{fd}".encode(), at.encode(), None, MS_BIND, None)
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | HARMLESS
    sandbox.mount(b"none", at.encode(), None, flags, None)
