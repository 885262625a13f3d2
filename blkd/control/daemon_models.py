# SPDX-License-Identifier: Apache-2.0
"""What goes over the API of `blkd daemon` as JSON.

A field that is not known is refused in what a caller sends; answers may get new fields in later
versions.
Times are seconds since 1970 where they are points in time.  What a served export says of itself
(`ExportView.served`, counters, the results of a resize or a pause) is as docs/control-api.md has it
for the API of one export, and is passed on as it came.
"""

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from blkd.control.models import Problem
from blkd.statistics.figures import NamedFigures

API: Final = "v1"
EXTENSIONS: Final = (
    "exports",
    "images",
    "operations",
    "events",
    "prefer-wait",
    "metrics",
    "figures",
    "inflight",
    "groups",
    "retry",
    "dashboard",
)
"""What this API can do beyond its first form; names are added, never taken away."""

PREFIX: Final = "/v1"
EXPORTS: Final = "/v1/exports"
IMAGES: Final = "/v1/images"
GROUPS: Final = "/v1/groups"
OPERATIONS: Final = "/v1/operations"
EVENTS: Final = "/v1/events"
FIGURES: Final = "/v1/figures"
DASHBOARD: Final = "/v1/dashboard"
OPENAPI: Final = "/v1/openapi.json"
METRICS: Final = "/metrics"
"""Where Prometheus looks for them."""

MAX_BYTES: Final = 2**63 - 1
MAX_LINES: Final = 10_000
DEFAULT_LINES: Final = 100
MAX_NAME: Final = 64
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)"
TAKEN_NAMES: Final = frozenset({"blkd", "blkd-dashboard", "exports"})
"""Their sockets would lie where the daemon has its own."""

Device = Literal["blk", "net", "vsock"]
Wanted = Literal["serving", "stopped"]
State = Literal[
    "starting", "serving", "held", "paused", "stopping", "stopped", "restarting", "failed"
]
"""`held`: it is served, and holds requests that its image fails.  `restarting`: it has died and
will be started again after a while; `failed`: it will not."""
MemberState = Literal["sharing", "stopped", "apart"]
"""`stopped`: no process serves it; `apart`: its process is of a version that knows no groups, and
is not limited by them before its next start or upgrade."""
OperationState = Literal["running", "done", "failed", "cancelled"]

Name = Annotated[str, Meta(max_length=MAX_NAME, pattern=NAME_PATTERN)]
Bytes = Annotated[int, Meta(gt=0, le=MAX_BYTES)]
Limits = dict[str, Any]
"""By their names as `blkd limit` has them, in requests or bytes a second."""
Settings = dict[str, Any]
"""By the names of the fields of the device's model, as `blkd.daemon.plain_settings` has them."""


class NewImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image that is to be made."""

    size: Bytes
    """In bytes; a multiple of 512."""
    preallocate: bool = False
    """Take all of the space now, not as the guest writes."""


class AddExport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An export that the daemon is to keep, and to serve over restarts and reboots."""

    name: Name
    """At most 64 letters, digits, dots, dashes and underscores; the first is a letter or digit."""
    device: Device = "blk"
    """`blk`: a disk; `net`: a network device; `vsock`: sockets of guests."""
    settings: Settings
    """As the options of `blkd serve`, `blkd net` or `blkd vsock`."""
    create: NewImage | None = None
    """Make the image first; only of a disk.  The image may not exist."""
    start: bool = True
    """Serve it at once, not only when it is asked for."""

    def __post_init__(self) -> None:
        """Raise ValueError on a name that cannot be had."""
        if self.name in TAKEN_NAMES:
            raise ValueError(f"{self.name!r} is a name that the daemon needs itself")
        if self.create is not None and self.device != "blk":
            raise ValueError("only a disk has an image that can be created")


class ChangeExport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Other values of some settings."""

    settings: Settings
    """Those that change; null means the default.

    `features` with `latest` is one besides: show the guest what this version can from the next
    start on, and keep to that.
    """


class CreateImage(NewImage, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image that no export needs yet."""

    path: Annotated[str, Meta(pattern=r"^[^\u0000]+$")]
    """Beneath one of the directories `images`; relative to the first of them if not absolute."""


class AddGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A group of exports that share what all of them together may use."""

    name: Name
    limits: Limits
    """What all members together may use."""


class ChangeGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Other values of some limits of a group, which hold at once."""

    limits: Limits
    """Those that change; null takes a limit away."""


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A call takes no parameters."""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A call takes no body but an empty object."""


class RemoveQuery(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"
):
    """How to remove an export."""

    delete_image: bool = False
    """Delete the image as well; only one beneath the directories `images`, never a device."""


class LogsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which of an export's events to show."""

    lines: Annotated[int, Meta(ge=1, le=MAX_LINES)] = DEFAULT_LINES
    """The most, of the latest."""


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which events to send."""

    since: Annotated[int, Meta(ge=0, le=MAX_BYTES)] | None = None
    """Those after the event with this id; 0 for all that are remembered, none for those to come."""
    follow: bool = True
    """Go on with those to come; otherwise the answer ends at the present."""


class ExportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An export in the list."""

    name: str
    device: Device
    wanted: Wanted
    """What it is to be: also after a restart of the daemon or the host."""
    state: State
    """`restarting`: it has died, and is started again after a while; `failed`: it is not."""
    reason: str | None = None
    """Why it is `failed` or `restarting`."""
    pid: int | None = None
    """Of the process that serves it, if one does."""
    image: str | None = None
    """None for what is no disk."""
    sockets: tuple[str, ...] = ()
    """Where front ends connect."""


class ExportView(ExportSummary, frozen=True, kw_only=True):
    """All there is to know of an export but its counters."""

    settings: Settings
    """As they are kept: those that are not the default."""
    pending: tuple[str, ...] = ()
    """Names of the settings that take effect at the next start."""
    restarts: int = 0
    """How often it has died and was started again since the daemon or the export was started."""
    since: float | None = None
    """When the process that serves it was started."""
    served: Any = None
    """What the process says of itself, which includes its size and its front end.

    None if none serves, or if it does not answer in time.
    """


class ChangeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a change of settings."""

    applied: tuple[str, ...]
    """Settings that have changed in what is served."""
    at_next_start: tuple[str, ...]
    """Settings that take effect when the export is started again."""
    export: ExportView


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a removal."""

    name: str
    removed: bool
    """False if there was no such export."""
    image_deleted: bool = False
    """Whether its image is gone as well."""


class Logs(msgspec.Struct, frozen=True, kw_only=True):
    """The last events that an export has logged, the latest last."""

    name: str
    events: tuple[dict[str, Any], ...]
    """A line that is no event is one with the only field `text`."""


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """An image in one of the directories `images`; bytes unless said."""

    path: str
    size: int
    allocated: int
    """What it takes of the disk below."""
    used_by: tuple[str, ...] = ()
    """Names of exports whose settings have it."""


class GroupMember(msgspec.Struct, frozen=True, kw_only=True):
    """An export of a group."""

    export: str
    weight: int
    """Its share, beside the weights of the others."""
    state: MemberState
    granted: dict[str, float] = {}
    """What it may use at present: requests or bytes a second, by the names of the group's limits.

    It follows from what all members need, while one of them waits every 20 ms.
    """


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A group and its members."""

    name: str
    limits: Limits
    """Of all members together."""
    members: tuple[GroupMember, ...] = ()
    """By name; empty for a group whose record is refused."""
    reason: str | None = None
    """Why the record is refused, and nobody limited by it."""


class RemovedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a removal."""

    name: str
    removed: bool
    """False if there was no such group."""


class DaemonView(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers."""

    version: str
    """Of blkd."""
    api: str = API
    extensions: tuple[str, ...] = EXTENSIONS
    """What it can do beyond the first form of this API: names are added, never taken away."""
    pid: int


class DashboardView(msgspec.Struct, frozen=True, kw_only=True):
    """How a browser reaches the dashboard."""

    url: str
    """With the token behind `#`, which a browser does not send and no log has."""
    forward: str | None = None
    """Where it is on a UNIX socket: the command that makes it reachable from another host."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that has happened to an export, or to the daemon."""

    id: int
    """Greater than that of every earlier event, over restarts of the daemon as well."""
    time: float
    event: str
    """What, as a phrase in lower case."""
    export: str | None = None
    level: str = "info"
    fields: dict[str, Any] = {}
    """What else is known of it."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A call that goes on, or has ended a while ago."""

    id: str
    call: str
    """Its method and path."""
    status: OperationState
    began: float
    ended: float | None = None
    progress: float | None = None
    """From 0 to 1; None where that is not known."""
    doing: str | None = None
    """What it does at present."""
    may_cancel: bool = False
    """Whether a DELETE ends it early, and leaves nothing of it."""
    result: Any = None
    """What the call would have answered."""
    problem: Problem | None = None
    """Why it has failed."""


class ExportList(msgspec.Struct, frozen=True, kw_only=True):
    """All exports, by name."""

    exports: tuple[ExportSummary, ...]


class FiguresList(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of all exports, by name, as docs/monitoring.md explains them."""

    exports: tuple[NamedFigures, ...]


class GroupList(msgspec.Struct, frozen=True, kw_only=True):
    """All groups, by name."""

    groups: tuple[GroupView, ...]


class ImageList(msgspec.Struct, frozen=True, kw_only=True):
    """All images, by path."""

    images: tuple[ImageView, ...]


class OperationList(msgspec.Struct, frozen=True, kw_only=True):
    """Operations that go on, and the latest of those that have ended; the oldest first."""

    operations: tuple[Operation, ...]


def group_tag(limits: Limits) -> str:
    """The ETag, with its quotes, of a group with these limits."""
    return _tag(limits)


def entity_tag(device: Device, settings: Settings) -> str:
    """The ETag, with its quotes, of an export with these settings: what If-Match compares."""
    return _tag((device, settings))


def _tag(content: object) -> str:
    encoded = msgspec.json.encode(content, order="deterministic")
    return f'"{hashlib.sha256(encoded).hexdigest()[:32]}"'
