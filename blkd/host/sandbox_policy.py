# SPDX-License-Identifier: Apache-2.0
"""What a serving process is to give up, and what is in force afterwards."""

from dataclasses import dataclass, replace
from typing import Final, Self

PRIVATE_MEMORY: Final = 1 << 30
"""Bytes that a process may have besides memory that it shares with a front end: a hundred times
what one takes with all of its workers and queues."""

OPEN_FILES: Final = 4096
"""Descriptors: 509 memory regions, and for each of 64 queues three eventfds and an io_uring each
for it and for its worker, several times over."""


AF_UNIX: Final = 1  # <linux/socket.h>, also below
AF_INET: Final = 2
AF_INET6: Final = 10

THREADS: Final = 4096
"""Threads of one user: 16 for each of some 250 exports that have the same, and less than what a
host has numbers for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What `confine` leaves to a process; each part that the host lacks is left out, and said."""

    keep: frozenset[int]
    """Descriptors that stay open, besides 0, 1 and 2."""
    user: int | None = None
    """User to become; None stays who it is."""
    group: int | None = None
    """Group to become, with no others."""
    reach: tuple[str, ...] = ()
    """Directories that stay visible, at their paths, for UNIX sockets to be connected there."""
    network: bool = False
    """Whether the host's network stays, and TCP connections out of it."""
    private_memory: int = PRIVATE_MEMORY
    """Bytes of memory that is shared with nobody."""
    open_files: int = OPEN_FILES
    """Descriptors, where the host allows as many."""
    threads: int = THREADS
    """Threads that the user may have, all processes together; where it becomes another."""
    required: bool = False
    """Whether what is missing is an error."""

    @property
    def families(self) -> tuple[int, ...]:
        """Of which address families sockets may be made and connected; none for most devices."""
        if self.network:
            return (AF_UNIX, AF_INET, AF_INET6)
        return (AF_UNIX,) if self.reach else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A part of the sandbox that is not in force."""

    part: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What is in force in a process; encoded as it is."""

    user: int
    group: int
    capabilities: bool
    """Whether it has any."""
    no_new_privs: bool
    dumpable: bool
    """Whether others of its user may look into it."""
    landlock: int = 0
    """Version of Landlock that holds it, 0 for none."""
    seccomp: bool = False
    io_uring_restricted: bool = False
    """Whether each io_uring does only what it was made for."""
    namespaces: tuple[str, ...] = ()
    """Those of its own: `mount`, `net`, `ipc`, `uts`, `pid`, `user`."""
    limits: dict[str, int]
    """Of what it may have: `open_files`, `threads` of its user; `private_memory`, `locked_memory`
    and `core` in bytes; -1 for no limit."""
    connects: bool = False
    """Whether it may make and connect sockets: devices of sockets do."""
    missing: tuple[Missing, ...] = ()

    def lacking(self, part: str, reason: str) -> Self:
        """The same, without this part."""
        return replace(self, missing=(*self.missing, Missing(part=part, reason=reason)))
