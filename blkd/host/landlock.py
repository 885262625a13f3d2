# SPDX-License-Identifier: Apache-2.0
"""Landlock: no file is opened but a process's own pages of /proc, to read (landlock(7))."""

import os
import struct
from types import TracebackType
from typing import Final, Self

from blkd import sandbox
from blkd.host.sandbox_policy import Policy

READ_FILE: Final = 1 << 2  # LANDLOCK_ACCESS_FS_*, <linux/landlock.h>
READ_DIR: Final = 1 << 3

FILE_RIGHTS: Final = (
    (1, (1 << 13) - 1),  # of version 1: all from EXECUTE to MAKE_SYM
    (2, 1 << 13),  # REFER
    (3, 1 << 14),  # TRUNCATE
    (5, 1 << 15),  # IOCTL_DEV
)
"""What a ruleset may refuse: since which version, and the bits."""
NETWORK_VERSION: Final = 4
NETWORK_RIGHTS: Final = 1 << 0 | 1 << 1  # BIND_TCP, CONNECT_TCP
SCOPE_VERSION: Final = 6
SCOPE_SIGNALS: Final = 1 << 1
SCOPE_ABSTRACT_SOCKETS: Final = 1 << 0

ATTRIBUTES: Final = struct.Struct("=QQQ")
"""struct landlock_ruleset_attr: rights of files, of networks, and scopes."""
SIZES: Final = ((1, 8), (NETWORK_VERSION, 16), (SCOPE_VERSION, 24))
"""Bytes of it that a version knows."""

OWN_PAGES: Final = "/proc/self"


def attributes(abi: int, *, network: bool) -> bytes:
    """What a kernel of this version is asked to refuse: all that it can.

    With `network`, TCP is left alone.  Sockets without a path are out of reach in any case.
    """
    files = sum(bits for since, bits in FILE_RIGHTS if abi >= since)
    scopes = SCOPE_SIGNALS | SCOPE_ABSTRACT_SOCKETS
    size = max(size for since, size in SIZES if abi >= since)
    return ATTRIBUTES.pack(files, 0 if network else NETWORK_RIGHTS, scopes)[:size]


def version() -> int:
    """Of the kernel's Landlock.  Raises OSError where it has none, or has it switched off."""
    return sandbox.landlock_abi()


class Rules:
    """What stays allowed: found while the process still sees it, enforced later."""

    def __init__(self) -> None:
        try:
            self._own = os.open(OWN_PAGES, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._own = -1  # no /proc: nothing is to be allowed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own >= 0:
            os.close(self._own)

    def enforce(self, policy: Policy) -> int:
        """Hold this thread, and those it starts, to the rules: the version of Landlock.

        Raises OSError where the kernel has none.
        """
        abi = version()
        ruleset = sandbox.landlock_ruleset(attributes(abi, network=policy.network))
        try:
            if self._own >= 0:
                sandbox.landlock_allow(ruleset, self._own, READ_FILE | READ_DIR)
            sandbox.landlock_restrict(ruleset)
        finally:
            os.close(ruleset)
        return abi
