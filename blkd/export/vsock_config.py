# SPDX-License-Identifier: Apache-2.0
"""What `blkd vsock` is asked for: guests, their sockets, their groups, forwarded ports."""

import ipaddress
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from blkd.errors import ConfigError
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.option import Option
from blkd.virtio.socket_device import FIRST_CID, LAST_CID

MOST_PORT: Final = 0xFFFFFFFE
"""The one above means any port."""
MOST_TCP_PORT: Final = 0xFFFF
MOST_UNIX_PATH: Final = 107
UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Forward:
    """Where connections of a guest to one port of the host go instead."""

    port: int
    to: str
    """As it was written: `unix:PATH`, or a loopback address and a port."""
    address: bytes
    """As the kernel has it."""

    @property
    def is_unix(self) -> bool:
        """Whether that is a UNIX socket."""
        return self.to.startswith(UNIX)

    def __str__(self) -> str:
        """As it was written."""
        return f"{self.port}:{self.to}"


def read_forward(text: str) -> Forward:
    """Read `PORT:unix:PATH` or `PORT:ADDRESS:PORT`.  Raises ConfigError."""
    port, _, to = text.partition(":")
    if to.startswith(UNIX):
        return Forward(_number(port, MOST_PORT, text), to, _unix(to.removeprefix(UNIX), text))
    return Forward(_number(port, MOST_PORT, text), to, _loopback(to, text))


def _unix(path: str, text: str) -> bytes:
    name = path.encode(errors="surrogateescape")
    if not 0 < len(name) <= MOST_UNIX_PATH or b"\0" in name:
        raise ConfigError(f"{text!r} has no path of 1 to {MOST_UNIX_PATH} bytes")
    return struct.pack("=H", socket.AF_UNIX) + name + b"\0"


def _loopback(to: str, text: str) -> bytes:
    host, _, port = to.rpartition(":")
    number = _number(port, MOST_TCP_PORT, text)
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ConfigError(f"{text!r}: {host!r} is no address; write 127.0.0.1 or [::1]") from None
    if not address.is_loopback:
        raise ConfigError(
            f"{text!r}: {address} is not of this host alone",
            hint="only addresses such as 127.0.0.1 and ::1 can be forwarded to",
        )
    where = struct.pack("!H", number)
    if address.version == 4:  # noqa: PLR2004 - of the protocol
        return struct.pack("=H", socket.AF_INET) + where + address.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + where + bytes(4) + address.packed + bytes(4)


def _number(text: str, most: int, whole: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 0 < int(text) <= most:
        raise ConfigError(f"{whole!r}: {text!r} is no port from 1 to {most}")
    return int(text)


def read_cid(text: str) -> int:
    """Read a guest's CID.  Raises ConfigError."""
    if not text.isdecimal() or not text.isascii() or not FIRST_CID <= int(text) <= LAST_CID:
        raise ConfigError(f"{text!r} is no CID of a guest, from {FIRST_CID} to {LAST_CID}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest of a command line."""

    cid: int
    socket: str
    uds: str | None
    group: str


class VsockConfig(EndpointConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The guests that one process serves; what is given several times is for one guest each."""

    cid: Annotated[
        tuple[Annotated[int, Meta(ge=FIRST_CID, le=LAST_CID)], ...],
        Meta(min_length=1),
        Option(
            "The guest's CID, from 3 on; once a guest, and so with the two that follow.",
            metavar="N",
            required=True,
            read=read_cid,
            is_repeated=True,
        ),
    ]
    socket: Annotated[
        tuple[str, ...],
        Option(
            "Where the guest's front end connects.",
            metavar="PATH",
            required=True,
            read=str,
            is_repeated=True,
        ),
    ]
    uds: Annotated[
        tuple[str, ...],
        Option(
            "Where host programs connect, and say CONNECT and a port; connections of the guest to"
            " port P of the host go to PATH_P.",
            metavar="PATH",
            read=str,
            is_repeated=True,
        ),
    ] = ()
    group: Annotated[
        tuple[str, ...],
        Option(
            "Which guests reach each other; if not given, all, and if once, likewise.",
            metavar="NAME",
            read=str,
            is_repeated=True,
        ),
    ] = ()
    forward: Annotated[
        tuple[Forward, ...],
        Option(
            "Connect the guest to TARGET, unix:PATH or a loopback address and port, where it"
            " connects to this port of the host; as often as needed.",
            metavar="PORT:TARGET",
            read=read_forward,
            is_repeated=True,
        ),
    ] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError where the options do not belong together."""
        EndpointConfig.__post_init__(self)
        guests = len(self.cid)
        if len(self.socket) != guests or len(self.uds) not in {0, guests}:
            raise ConfigError(
                f"{guests} times --cid, {len(self.socket)} times --socket and {len(self.uds)}"
                " times --uds",
                hint="give each guest its --cid, its --socket and, if any has, its --uds",
            )
        if len(self.group) not in {0, 1, guests}:
            raise ConfigError(f"{guests} guests, but {len(self.group)} times --group")
        if len(set(self.cid)) != guests:
            raise ConfigError("two guests cannot have one CID")
        self._check_paths()

    def _check_paths(self) -> None:
        """Raise ConfigError where a guest could reach what is not for it, by a path of its own."""
        named = [*self.socket, *self.uds, *([self.control] if self.control else [])]
        taken = [Path(path).absolute() for path in named]
        if len(set(taken)) != len(taken):
            raise ConfigError("each --socket, --uds and --control needs a path of its own")
        for uds in self.uds:
            of_guest = Path(uds).absolute()
            pattern = re.compile(re.escape(str(of_guest)) + r"(_[0-9]+|\.seqpacket)")
            for path in taken:
                if pattern.fullmatch(str(path)):
                    raise ConfigError(
                        f"{path} is one of the sockets that belong to --uds {uds}",
                        hint="a guest is connected to its --uds with _ and a port behind it",
                    )

    @property
    def guests(self) -> tuple[Guest, ...]:
        """Each guest with what is its own."""
        groups = self.group if len(self.group) > 1 else (self.group or ("",)) * len(self.cid)
        paths = self.uds or (None,) * len(self.cid)
        return tuple(map(Guest, self.cid, self.socket, paths, groups))

    @property
    def directories(self) -> tuple[str, ...]:
        """Where the UNIX sockets lie that guests may be connected to."""
        named = [each.to.removeprefix(UNIX) for each in self.forward if each.is_unix]
        return tuple({str(Path(path).absolute().parent): None for path in (*self.uds, *named)})

    @property
    def reaches_network(self) -> bool:
        """Whether guests may be connected to addresses."""
        return not all(each.is_unix for each in self.forward)
