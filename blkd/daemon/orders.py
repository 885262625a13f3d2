# SPDX-License-Identifier: Apache-2.0
"""What supervisor and launcher say to each other: one JSON document a SOCK_SEQPACKET message.

Orders go from the supervisor to the launcher, reports come back: `Started` or `Refused` for each
order, in the order of the orders, and `Ended` for each process that was started, some time later.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from blkd.control.daemon_models import Device, Settings
from blkd.errors import LaunchError

MAX_DOCUMENT: Final = 64 * 1024
"""Bytes of one message; settings have 64 KiB at the most at the API, too."""
MAX_NAME: Final = 255
MAX_FDS: Final = 253  # the kernel's SCM_MAX_FD: what one message can carry

Number = Annotated[int, Meta(ge=0, le=0xFFFFFFFE)]
"""Of a user or a group; the one above means none."""


class Sandbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far a process is confined before it meets a front end."""

    on: bool = True
    user: Number | None = None
    """Whose process it becomes; None: whoever the launcher is, without capabilities."""
    group: Number | None = None
    required: bool = False
    """Whether what the host lacks for it is an error; else it is left out, and shown."""


class Places(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where what an order names has to lie."""

    directories: tuple[str, ...] = ()
    """Images lie beneath one of these."""
    devices: tuple[str, ...] = ()
    """Block devices that may be served, by path; `*` and `?` match within a name."""


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="launch"):
    """Serve an export in a process of its own.

    Its descriptors: where the process says that it is ready, its log, its statistics area with
    its eventfd if they come along, the listening socket of its control API, and the listening
    vhost-user socket of each of its devices.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    device: Device
    settings: Settings
    """Plain values, as `plain_settings` has them."""
    run: str
    """The directory of the sockets whose paths are not among the settings."""
    places: Places | None = None
    """None where what the settings name may lie anywhere."""
    sandbox: Sandbox = Sandbox()
    statistics: bool = False
    """Whether its statistics area and the eventfd of that come along."""


class Take(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="take"):
    """Serve on, in a new process, what another process serves, which ends.

    Its descriptors: where the process says that it is ready, its log, and its statistics area with
    its eventfd if they come along.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    control: str
    """Path of that process's control socket."""
    sandbox: Sandbox = Sandbox()
    statistics: bool = False
    """Likewise; else the other process has them."""


class Started(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="started"):
    """A process was started; comes with a pidfd of it."""

    pid: int


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """No process could be started for an order."""

    reason: str


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ended"):
    """A process has ended, and its parent has taken note."""

    pid: int
    status: int
    """As wait(2) has it: for os.waitstatus_to_exitcode."""


Order = Launch | Take
Report = Started | Refused | Ended

FDS_OF: Final = {Launch: 3, Take: 2}
"""Fewest descriptors of each order; a launch has one more for each device."""
FDS_OF_STATISTICS: Final = 2


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ready"):
    """What the process writes, as a line, once it serves."""

    state: msgspec.Raw
    """What `GET /v1/export` answers."""


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="failed"):
    """What it writes instead where it cannot."""

    kind: str
    """Name of a class of `blkd.errors`."""
    reason: str
    hint: str | None = None


Outcome = Ready | Failed


def encode(document: Order | Report | Outcome) -> bytes:
    """The bytes of a message.  Raises LaunchError where it is too long to be one."""
    data = msgspec.json.encode(document)
    if len(data) > MAX_DOCUMENT:
        raise LaunchError(f"{len(data)} bytes are too much to start a process with")
    return data


def decode_order(data: bytes, fds: Sequence[int]) -> Order:
    """The order of a message that came with these descriptors.  Raises LaunchError."""
    order: Order = _decode(data, Order)
    least = FDS_OF[type(order)] + (FDS_OF_STATISTICS if order.statistics else 0)
    fits = len(fds) > least if isinstance(order, Launch) else len(fds) == least
    if not fits:
        raise LaunchError(f"an order came with {len(fds)} descriptors, after {least} that it needs")
    return order


def decode_report(data: bytes) -> Report:
    """The report of a message.  Raises LaunchError."""
    report: Report = _decode(data, Report)
    return report


def decode_outcome(data: bytes) -> Outcome:
    """What a process has said of itself.  Raises LaunchError."""
    outcome: Outcome = _decode(data, Outcome)
    return outcome


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LaunchError(f"a message that is none: {error}") from error
