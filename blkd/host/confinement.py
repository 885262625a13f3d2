# SPDX-License-Identifier: Apache-2.0
"""A process that gives up what it does not need, in two steps.

`confine`, while it has one thread: all that a thread hands on to those it starts.  `seal`, once
its threads and io_urings exist: no call but those it serves with, in every thread.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from blkd import sandbox
from blkd.errors import SandboxError
from blkd.host import landlock, namespaces, syscall_filter
from blkd.host.sandbox_policy import Confinement, Policy
from blkd.host.standard_fds import STANDARD

T = TypeVar("T")

PR_SET_DUMPABLE: Final = 4  # <linux/prctl.h>, also below
PR_GET_DUMPABLE: Final = 3
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

LAST_CAPABILITY: Final = 63  # a set has 64 bits

RLIMIT_KINDS: Final = {
    "open_files": resource.RLIMIT_NOFILE,
    "private_memory": resource.RLIMIT_DATA,  # all of shared memory, a guest's too, is outside it
    "core": resource.RLIMIT_CORE,
    "threads": resource.RLIMIT_NPROC,
    "locked_memory": resource.RLIMIT_MEMLOCK,
}


def confine(policy: Policy) -> Confinement:
    """Give up all that `policy` does not leave to this process, which has one thread.

    Raises:
        SandboxError: It has more threads; or something cannot be done that is required, or
            that must not fail: to become another user. The process is to end then.
    """
    _require_one_thread()
    close_all_but(policy.keep)
    missing: dict[str, str] = {}
    _limit(policy)
    # Rules name files by descriptors of the old root: those are opened before it is left.
    with landlock.Rules() as rules:
        own = namespaces.enter(policy, missing)
        _attempt("capability bounds", missing, _drop_bounds)
        _become(policy)
        sandbox.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        sandbox.drop_capabilities()
        sandbox.prctl(PR_SET_NO_NEW_PRIVS, 1)
        sandbox.prctl(PR_SET_DUMPABLE, 0)
        abi = _attempt("landlock", missing, lambda: rules.enforce(policy)) or 0
    found = replace(observe(), landlock=abi, namespaces=own, connects=bool(policy.families))
    for part, reason in missing.items():
        found = found.lacking(part, reason)
    return _required(policy, found)


def seal(policy: Policy, confinement: Confinement, *, io_uring_restricted: bool) -> Confinement:
    """Have no thread make another system call than those that serve; for ever.

    `io_uring_restricted` says whether each io_uring of theirs does only what it was made for: the
    filter does not see what is done by one.

    Raises SandboxError where that is required and cannot be.
    """
    confinement = replace(confinement, io_uring_restricted=io_uring_restricted)
    if not io_uring_restricted:
        confinement = confinement.lacking("io_uring restrictions", "the kernel refuses them")
    try:
        syscall_filter.install(policy.families)
    except OSError as error:
        return _required(policy, confinement.lacking("seccomp", str(error)))
    return _required(policy, replace(confinement, seccomp=True))


def observe() -> Confinement:
    """What the kernel says of this process, as far as it can be asked."""
    return Confinement(
        user=os.getuid(),
        group=os.getgid(),
        capabilities=_has_capabilities(),
        no_new_privs=bool(sandbox.prctl(PR_GET_NO_NEW_PRIVS)),
        dumpable=sandbox.prctl(PR_GET_DUMPABLE) == 1,
        limits={name: resource.getrlimit(kind)[0] for name, kind in RLIMIT_KINDS.items()},
    )


def fork_apart() -> tuple[int, str | None]:
    """fork(2): the child is the first process of a PID namespace of its own.

    The answer has the child's number, as this process sees it, or 0 in the child; and why it is
    in no namespace of its own, or None.  There it is 1, and sees nobody else; a signal without a
    handler that is not blocked does nothing to it, but for SIGKILL and SIGSTOP.  Whoever calls has
    one thread.
    """
    with contextlib.ExitStack() as undo:
        try:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, own)
            sandbox.unshare(namespaces.CLONE_NEWPID)
        except OSError as error:
            return os.fork(), str(error)
        try:
            child = os.fork()
        except OSError:
            sandbox.setns(own, namespaces.CLONE_NEWPID)
            raise
        if child:  # whose next child is as any other
            sandbox.setns(own, namespaces.CLONE_NEWPID)
        return child, None


def _require_one_thread() -> None:
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise SandboxError(f"{threads} threads at the start of the sandbox: expected one")


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor that is not in `keep`, nor standard."""
    first = STANDARD
    for fd in sorted(keep):
        if fd >= first:
            if fd > first:
                sandbox.close_range(first, fd - 1)
            first = fd + 1
    sandbox.close_range(first, (1 << 32) - 1)


def _limit(policy: Policy) -> None:
    """Never RLIMIT_FSIZE or RLIMIT_AS: an image, and a guest's memory, count for these."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = policy.open_files if most == resource.RLIM_INFINITY else min(policy.open_files, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_DATA, (policy.private_memory, policy.private_memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if policy.user is not None:  # of that user's threads; the process's own user has others
        resource.setrlimit(resource.RLIMIT_NPROC, (policy.threads, policy.threads))
    # What is locked is what io_uring registers: a guest's memory, of whatever size.  No other call
    # that locks is left.
    with contextlib.suppress(ValueError):  # who may not raise it has what it had
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)


def _become(policy: Policy) -> None:
    """Be another user, of one group."""
    try:
        if policy.group is not None:
            os.setgroups([])
            os.setresgid(policy.group, policy.group, policy.group)
        if policy.user is not None:
            os.setresuid(policy.user, policy.user, policy.user)
    except OSError as error:
        who = f"user {policy.user}, group {policy.group}"
        raise SandboxError(f"cannot become {who}: {error.strerror}") from error


def _drop_bounds() -> None:
    """Have no capability to come by."""
    for capability in range(LAST_CAPABILITY + 1):
        try:
            sandbox.prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # this kernel has no more
            raise


def _has_capabilities() -> bool:
    # As bytes: no codec can be imported any more.
    lines = Path("/proc/self/status").read_bytes().splitlines()
    values = dict(line.split(b":\t", 1) for line in lines if line.startswith(b"Cap"))
    return any(int(values[name], 16) for name in (b"CapInh", b"CapPrm", b"CapEff", b"CapAmb"))


def _attempt(part: str, missing: dict[str, str], step: Callable[[], T]) -> T | None:
    """What `step` answers; None where the host does not let it, and why in `missing`."""
    try:
        return step()
    except OSError as error:
        missing[part] = str(error)
        return None


def _required(policy: Policy, confinement: Confinement) -> Confinement:
    if policy.required and confinement.missing:
        first = confinement.missing[0]
        raise SandboxError(
            f"the sandbox lacks its {first.part}: {first.reason}",
            hint="blkd doctor tells what this host has",
        )
    return confinement
