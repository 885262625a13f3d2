# SPDX-License-Identifier: Apache-2.0
"""Addresses that only this host reaches: where the daemon answers over TCP, if it does."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from blkd.errors import ConfigError

ADDRESS: Final = re.compile(r"\[([^\]]+)\]:([0-9]{1,5})|([0-9.]+):([0-9]{1,5})")
HOST: Final = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::[0-9]{1,5})?")
MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class LoopbackAddress:
    """Where to listen."""

    host: str
    """An address of 127.0.0.0/8, or ::1."""
    port: int

    def __str__(self) -> str:
        """As `read_address` reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> LoopbackAddress:
    """The address that `127.0.0.1:9750` or `[::1]:9750` says.  Raises ConfigError."""
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is no address and port, such as 127.0.0.1:9750 or [::1]:9750")
    host, port = found[1] or found[3], int(found[2] or found[4])
    if not _is_loopback(host):
        raise ConfigError(f"{host} is no address of the loopback, such as 127.0.0.1 or ::1")
    if not 0 < port <= MAX_PORT:
        raise ConfigError(f"{port} is no port: they are 1 to {MAX_PORT}")
    return LoopbackAddress(host, port)


def names_loopback(host: str) -> bool:
    """Whether the header `Host` of a request names this host as only itself can reach it.

    A page of the web whose name was made to mean 127.0.0.1 has its own name there.
    """
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1] or found[2]
    return name.lower() == "localhost" or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
