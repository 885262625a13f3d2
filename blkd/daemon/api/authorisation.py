# SPDX-License-Identifier: Apache-2.0
"""Who may call the API, by what the kernel says of the process that connects."""

import enum
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from blkd.host.unix_socket import UCRED

SO_PEERGROUPS: Final = 59  # the groups of the peer beside its own (Linux 4.13)
GID: Final = struct.Struct("=I")
MOST_OPTION: Final = 1024  # bytes of a socket option that Python reads: 256 groups
OWNER_ONLY: Final = 0o600
OWNER_AND_GROUP: Final = 0o660
ANYBODY: Final = 0o666


class Access(enum.IntEnum):
    """What a caller may do; each includes those before it."""

    NONE = 0
    READ = 1
    CHANGE = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end of a connection, as it was when it connected."""

    pid: int
    """0 for one of another pid namespace."""
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Authorisation:
    """Who may do what: root and the daemon's own user all, members of groups what is said here."""

    read_group: int | None = None
    change_group: int | None = None
    owner: int = -1
    """The daemon's own user: the one of this process if it is not given."""
    others: Access = Access.NONE
    """What everybody else may do."""

    def of(self, caller: Caller) -> Access:
        """What `caller` may do."""
        owner = os.geteuid() if self.owner < 0 else self.owner
        if caller.uid in {0, owner} or self.change_group in caller.groups:
            return Access.CHANGE
        return Access.READ if self.read_group in caller.groups else self.others

    def socket_file(self) -> tuple[int, int | None]:
        """The mode and the group that the socket's file needs, for those who may call to connect.

        With two groups anybody may connect: others are told that they may not call.
        """
        groups = {self.read_group, self.change_group} - {None}
        if not groups:
            return OWNER_ONLY, None
        return (OWNER_AND_GROUP, groups.pop()) if len(groups) == 1 else (ANYBODY, None)


def caller_of(sock: socket.socket) -> Caller:
    """Who has connected to this end; of one in too many groups only its own.  Raises OSError."""
    pid, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    try:
        listed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MOST_OPTION)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        listed = b""
    return Caller(pid, uid, frozenset({gid, *(group for (group,) in GID.iter_unpack(listed))}))
