# SPDX-License-Identifier: Apache-2.0
"""TAP devices: the host's end of a guest's network (Linux, Documentation/networking/tuntap.rst).

Each queue of a TAP is a descriptor.  What changes the device as a whole may wait for other changes
of the host's network, so it is done off the event loop (`blocking.ask`).
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final, Self

from blkd.errors import ConfigError

TUN: Final = "/dev/net/tun"
TUN_DEVICE: Final = os.makedev(10, 200)  # Linux, Documentation/admin-guide/devices.txt

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9
SIOCGIFFLAGS: Final = 0x8913
SIOCGIFMTU: Final = 0x8921
SIOCSIFMTU: Final = 0x8922

IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_MULTI_QUEUE: Final = 0x0100
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_DETACH_QUEUE: Final = 0x0400
IFF_UP: Final = 0x1

NAME_BYTES: Final = 16  # IFNAMSIZ, the last a zero
REQUEST: Final = struct.Struct(f"={NAME_BYTES}sH22x")  # struct ifreq with flags
REQUEST_INT: Final = struct.Struct(f"={NAME_BYTES}si20x")  # ... with a number
LONGEST_READ: Final = 1 << 17  # more than a packet has

LINK_GROUP: Final = 1  # RTMGRP_LINK


class Offload(IntFlag):
    """What a guest takes of the work that a card would do (TUN_F_...)."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08
    UFO = 0x10


@dataclass(slots=True)
class Tap:
    """A TAP device with its queues, whose descriptors are ours: see `close`."""

    name: str
    fds: Sequence[int]
    _network: socket.socket = field(
        default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    )
    """Whom to ask about the device, also once this process has no network any more."""

    @classmethod
    def open(cls, name: str, queues: int) -> Self:
        """Open so many queues of the TAP `name`, which is made if there is none.

        Raises ConfigError where it cannot be had.
        """
        if not 0 < len(name.encode()) < NAME_BYTES:
            raise ConfigError(f"{name!r} is no name of a TAP: 1 to {NAME_BYTES - 1} bytes")
        with contextlib.ExitStack() as undo:
            fds: list[int] = []
            for _ in range(queues):
                fd, name = _open_queue(name, several=queues > 1, undo=undo)
                fds.append(fd)
            undo.pop_all()
        return cls(name, fds)

    @classmethod
    def adopt(cls, fds: Sequence[int]) -> Self:
        """Use descriptors that somebody else has opened, each a queue of one TAP; they are taken.

        Raises ConfigError where they are anything else.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(_close, fds)
            if len(set(fds)) < len(fds):
                raise ConfigError("a descriptor of a TAP is given twice")
            names = {_require_queue(fd, several=len(fds) > 1) for fd in fds}
            if len(names) != 1:
                raise ConfigError(f"queues of {len(names)} TAPs: {', '.join(sorted(names))}")
            for fd in fds:
                os.set_blocking(fd, False)
                os.set_inheritable(fd, False)
            undo.pop_all()
        return cls(names.pop(), fds)

    def close(self) -> None:
        """Close every queue; a TAP that is not persistent ends with the last."""
        self._network.close()
        _close(self.fds)
        self.fds = ()

    @property
    def read_flags(self) -> int:
        """The flags by which a read and a write never wait, whatever is done to the descriptor.

        0 where this kernel has none for a TAP: then it has to stay non-blocking.
        """
        try:
            os.pwritev(self.fds[0], [b""], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return 0
        return os.RWF_NOWAIT

    def set_header_bytes(self, size: int) -> None:
        """Have a header of `size` bytes before each packet; may block.  Raises OSError."""
        fcntl.ioctl(self.fds[0], TUNSETVNETHDRSZ, struct.pack("=i", size))

    def set_offload(self, offload: Offload) -> None:
        """Give the guest packets of which this is left to do; may block.  Raises OSError."""
        fcntl.ioctl(self.fds[0], TUNSETOFFLOAD, int(offload))

    def attach(self, queue: int, *, on: bool) -> None:
        """Have packets put into a queue, or not; may block.  Raises OSError."""
        flags = IFF_ATTACH_QUEUE if on else IFF_DETACH_QUEUE
        try:
            fcntl.ioctl(self.fds[queue], TUNSETQUEUE, REQUEST.pack(b"", flags))
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is so already
                raise

    def set_mtu(self, mtu: int) -> None:
        """Set the longest packet, Ethernet's header aside; may block.  Raises ConfigError."""
        try:
            fcntl.ioctl(self._network, SIOCSIFMTU, REQUEST_INT.pack(self.name.encode(), mtu))
        except OSError as error:
            raise ConfigError(f"{self.name} cannot have an MTU of {mtu}: {error}") from error

    @property
    def mtu(self) -> int | None:
        """The longest packet, Ethernet's header aside; None for a TAP of another namespace."""
        return self._ask(SIOCGIFMTU, REQUEST_INT)

    @property
    def is_up(self) -> bool:
        """Whether the host uses it; yes for one of another namespace, where that is not known."""
        flags = self._ask(SIOCGIFFLAGS, REQUEST)
        return flags is None or bool(flags & IFF_UP)

    def _ask(self, request: int, layout: struct.Struct) -> int | None:
        try:
            answer = fcntl.ioctl(self._network, request, layout.pack(self.name.encode(), 0))
        except OSError:
            return None
        value: int = layout.unpack(answer)[1]
        return value

    def send(self, frame: bytes, header_bytes: int) -> None:
        """Send a frame of our own into the host's network; never waits.  Raises OSError."""
        os.pwritev(self.fds[0], [bytes(header_bytes), frame], -1, self.read_flags)


class LinkWatch:
    """Is readable once some link of the host has changed, until `drop`."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)  # NETLINK_ROUTE
        self._sock.setblocking(False)
        self._sock.bind((0, LINK_GROUP))

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._sock.fileno()

    def drop(self) -> None:
        """Drop what has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._sock.recv(LONGEST_READ)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # more has come than there was room for
                        raise

    def close(self) -> None:
        """Watch no more."""
        self._sock.close()


def _open_queue(name: str, *, several: bool, undo: contextlib.ExitStack) -> tuple[int, str]:
    """A queue of a TAP, and the TAP's name: the kernel numbers one that is called tap%d."""
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = "it takes the kernel's module tun, and the right to open it"
        raise ConfigError(f"{TUN} cannot be opened: {error.strerror}", hint=hint) from error
    undo.callback(os.close, fd)
    choices = (IFF_MULTI_QUEUE,) if several else (0, IFF_MULTI_QUEUE)
    for choice in choices:
        try:
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | choice
            made = fcntl.ioctl(fd, TUNSETIFF, REQUEST.pack(name.encode(), flags))
        except OSError as error:
            if error.errno == errno.EINVAL and choice != choices[-1]:
                continue  # it is of the other kind
            what = f"the TAP {name} cannot be used: {error.strerror}"
            raise ConfigError(what, hint=_hint(error)) from error
        else:
            break
    return fd, _name(made)


def _name(request: bytes) -> str:
    """The interface that an answer of the kernel names."""
    return bytes(REQUEST.unpack(request)[0]).rstrip(b"\0").decode(errors="replace")


def _hint(failure: OSError) -> str:
    if failure.errno == errno.EPERM:
        return "it takes CAP_NET_ADMIN, or a TAP that belongs to this user"
    if failure.errno == errno.EBUSY:
        return "somebody else has it open"
    return "make it by: ip tuntap add NAME mode tap vnet_hdr [multi_queue]"


def _require_queue(fd: int, *, several: bool) -> str:
    """The name of the TAP that `fd` is a queue of.  Raises ConfigError where it is none."""
    try:
        status = os.fstat(fd)
        if not (stat.S_ISCHR(status.st_mode) and status.st_rdev == TUN_DEVICE):
            raise ConfigError(f"descriptor {fd} is no TAP")
        request = fcntl.ioctl(fd, TUNGETIFF, REQUEST.pack(b"", 0))
    except OSError as error:
        raise ConfigError(f"descriptor {fd} is no TAP: {error.strerror}") from error
    _, flags = REQUEST.unpack(request)
    wanted = {"IFF_TAP": IFF_TAP, "IFF_NO_PI": IFF_NO_PI, "IFF_VNET_HDR": IFF_VNET_HDR}
    if several:
        wanted["IFF_MULTI_QUEUE"] = IFF_MULTI_QUEUE
    if missing := [word for word, flag in wanted.items() if not flags & flag]:
        raise ConfigError(f"descriptor {fd} is a TAP without {' and '.join(missing)}")
    return _name(request)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
