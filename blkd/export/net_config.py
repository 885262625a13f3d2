# SPDX-License-Identifier: Apache-2.0
"""The settings of a network device."""

import re
from typing import Annotated, Final

from msgspec import Meta

from blkd.errors import ConfigError
from blkd.export.config import MAX_POLL_US, Cpu, cpu_list
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.option import Option
from blkd.virtio.net import LEAST_MTU, LONGEST_MTU, MOST_PAIRS

MULTICAST: Final = 1  # of a MAC address's first byte


def mac_bytes(text: str) -> bytes:
    """The six bytes of a MAC address that a device can have.  Raises ConfigError."""
    if re.fullmatch("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text) is None:
        raise ConfigError(f"{text!r} is no MAC address; write 52:54:00:12:34:56")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & MULTICAST or not any(mac):
        raise ConfigError(f"{text} is the address of no device")
    return mac


def _require_mac(text: str) -> None:
    mac_bytes(text)


def fd_list(text: str) -> tuple[int, ...]:
    """The descriptors of a list such as `3,4`.  Raises ConfigError."""
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text) is None:
        raise ConfigError(f"{text!r} are no descriptors; write 3,4")
    return tuple(map(int, text.split(",")))


def fd_text(fds: tuple[int, ...]) -> str:
    """A list as `fd_list` reads it."""
    return ",".join(map(str, fds))


class NetConfig(EndpointConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one network device is to be served."""

    socket: Annotated[str, Option("Where the VMM is to connect.", metavar="PATH", required=True)]
    tap: Annotated[
        str | None, Option("The TAP behind the device; made if there is none.", metavar="NAME")
    ] = None
    tap_fd: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Option(
            "Descriptors of a TAP that is open already, one for each pair of queues.",
            metavar="LIST",
            read=fd_list,
            write=fd_text,
        ),
    ] = ()
    queues: Annotated[
        int,
        Meta(ge=1, le=MOST_PAIRS),
        Option("Most pairs of queues that a guest may use; as --tap-fd has, if that is given."),
    ] = 1
    mac: Annotated[
        str | None,
        Option(
            "The address that the guest is told, by front ends that ask for it.",
            rule=_require_mac,
        ),
    ] = None
    mtu: Annotated[
        Annotated[int, Meta(ge=LEAST_MTU, le=LONGEST_MTU)] | None,
        Option("The MTU of TAP and guest; that of the TAP if not given."),
    ] = None
    control_queue: Annotated[
        bool,
        Option("The VMM hands the control queue over, as the one behind the pairs; QEMU does not."),
    ] = False
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=2 * MOST_PAIRS)] | None,
        Option("Threads for all queues; one, or as many as pairs, if not given."),
    ] = None
    cpus: Annotated[
        tuple[Cpu, ...],
        Option("Pin the workers to these CPUs in turn.", metavar="LIST", read=cpu_list),
    ] = ()
    poll_us: Annotated[
        int,
        Meta(ge=0, le=MAX_POLL_US),
        Option("Most microseconds that a worker polls before it sleeps, while that pays."),
    ] = 32

    def __post_init__(self) -> None:
        """Raise ConfigError on what the fields' types cannot refuse."""
        super().__post_init__()
        if bool(self.tap_fd) == (self.tap is not None):
            raise ConfigError("one of --tap and --tap-fd is needed, and one only")
        if len(self.tap_fd) > MOST_PAIRS or self.queues not in {1, len(self.tap_fd) or self.queues}:
            raise ConfigError(f"{self.queues} pairs of queues, and {len(self.tap_fd)} descriptors")

    @property
    def pairs(self) -> int:
        """Pairs of queues, each with a queue of the TAP."""
        return len(self.tap_fd) or self.queues
