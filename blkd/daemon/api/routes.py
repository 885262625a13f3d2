# SPDX-License-Identifier: Apache-2.0
"""The calls of the API as a table: the router, openapi.json and the document are made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from blkd.control import daemon_models as models
from blkd.control.models import PauseExport, ResizeExport
from blkd.statistics.figures import NamedFigures

Answers = Mapping[HTTPStatus, Any]
"""The type of the body by status; Any where it is passed on from an export's process."""

OK: Final = HTTPStatus.OK
JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
PROMETHEUS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus's text format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call."""

    method: str
    path: str
    """With `{name}` of an export, `{group}` or `{id}` of an operation in it."""
    call: str
    """Which method of `Calls` answers."""
    text: str
    """What it does."""
    answers: Answers
    query: type = models.NoQuery
    body: type = models.NoBody
    is_operation: bool = False
    """Whether it changes something, in a task that outlives the connection."""
    has_tag: bool = False
    """Whether the answer has an ETag."""
    has_condition: bool = False
    """Whether If-Match is heeded."""
    waits: bool = False
    """Whether `Prefer: wait` is heeded, as every operation does."""
    refusals: Mapping[HTTPStatus, str] = field(default_factory=dict)
    """Why it may be refused beside what is so of all calls like it."""
    media_type: str = JSON
    """Of the answer, with its parameters."""

    @property
    def needs_change(self) -> bool:
        """Whether a caller needs to be one who may change something."""
        return self.method != "GET"


METRICS: Final = Route(
    method="GET",
    path=models.METRICS,
    call="metrics",
    text="Metrics of all exports, for Prometheus",
    answers={OK: str},
    media_type=PROMETHEUS_TEXT,
)
EXPORT: Final = models.EXPORTS + "/{name}"
GROUP: Final = models.GROUPS + "/{group}"
OPERATION: Final = models.OPERATIONS + "/{id}"


def _verb(verb: str, text: str, answer: Any, body: type = models.NoBody) -> Route:
    return Route(
        method="POST",
        path=f"{EXPORT}/{verb}",
        call=verb,
        text=text,
        answers={OK: answer},
        body=body,
        is_operation=True,
    )


ROUTES: Final = (
    Route(
        method="GET",
        path=models.PREFIX,
        call="about",
        text="Which version answers, and what it can do",
        answers={OK: models.DaemonView},
    ),
    Route(
        method="GET",
        path=models.OPENAPI,
        call="openapi",
        text="This API as an OpenAPI 3.1 document",
        answers={OK: dict[str, Any]},
    ),
    Route(
        method="GET",
        path=models.EXPORTS,
        call="list",
        text="All exports",
        answers={OK: models.ExportList},
    ),
    Route(
        method="POST",
        path=models.EXPORTS,
        call="add",
        text="Add an export; one with equal arguments is left as it is (200)",
        answers={HTTPStatus.CREATED: models.ExportView, OK: models.ExportView},
        body=models.AddExport,
        is_operation=True,
        has_tag=True,
    ),
    Route(
        method="GET",
        path=EXPORT,
        call="show",
        text="One export, and what its process says of itself",
        answers={OK: models.ExportView},
        has_tag=True,
    ),
    Route(
        method="PATCH",
        path=EXPORT,
        call="change",
        text="Change settings; with `If-Match` only if they are those of that ETag",
        answers={OK: models.ChangeResult},
        body=models.ChangeExport,
        is_operation=True,
        has_tag=True,
        has_condition=True,
    ),
    Route(
        method="DELETE",
        path=EXPORT,
        call="remove",
        text="Stop an export and forget it; no error if there is none",
        answers={OK: models.Removed},
        query=models.RemoveQuery,
        is_operation=True,
    ),
    Route(
        method="GET",
        path=f"{EXPORT}/stats",
        call="stats",
        text="Its counters",
        answers={OK: Any},
    ),
    Route(
        method="GET",
        path=f"{EXPORT}/inflight",
        call="in_flight",
        text="The requests that it has fetched and not answered, the oldest first",
        answers={OK: Any},
    ),
    Route(
        method="GET",
        path=f"{EXPORT}/figures",
        call="figures",
        text="Its figures, from shared memory: its process is not asked",
        answers={OK: NamedFigures},
    ),
    Route(
        method="GET",
        path=f"{EXPORT}/logs",
        call="logs",
        text="The last events that it has logged",
        answers={OK: models.Logs},
        query=models.LogsQuery,
    ),
    Route(
        method="GET",
        path=models.FIGURES,
        call="all_figures",
        text="The figures of all exports, likewise",
        answers={OK: models.FiguresList},
    ),
    _verb("start", "Serve it from now on", models.ExportView),
    _verb("stop", "Serve it no more, until a start", models.ExportView),
    _verb("pause", "Fetch no more requests, and wait for those in flight", Any, PauseExport),
    _verb("resume", "End a pause", models.ExportView),
    _verb("retry", "Begin a disk's held requests again", Any),
    _verb("resize", "Give a disk another size", Any, ResizeExport),
    _verb("kill", "End its process at once; it is started again", models.ExportView),
    _verb("upgrade", "Go on with a process of the blkd that is installed now", models.ExportView),
    Route(
        method="GET",
        path=models.GROUPS,
        call="groups",
        text="All groups of exports",
        answers={OK: models.GroupList},
    ),
    Route(
        method="POST",
        path=models.GROUPS,
        call="add_group",
        text="Add a group; one with equal limits is left as it is (200)",
        answers={HTTPStatus.CREATED: models.GroupView, OK: models.GroupView},
        body=models.AddGroup,
        is_operation=True,
        has_tag=True,
    ),
    Route(
        method="GET",
        path=GROUP,
        call="group",
        text="One group, and what its members may use at present",
        answers={OK: models.GroupView},
        has_tag=True,
    ),
    Route(
        method="PATCH",
        path=GROUP,
        call="change_group",
        text="Change limits; with `If-Match` only if they are those of that ETag",
        answers={OK: models.GroupView},
        body=models.ChangeGroup,
        is_operation=True,
        has_tag=True,
        has_condition=True,
    ),
    Route(
        method="DELETE",
        path=GROUP,
        call="remove_group",
        text="Forget a group that no export is in; no error if there is none",
        answers={OK: models.RemovedGroup},
        is_operation=True,
    ),
    Route(
        method="GET",
        path=models.DASHBOARD,
        call="dashboard",
        text="Where browsers see the dashboard; 409 if it is off",
        answers={OK: models.DashboardView},
        refusals={HTTPStatus.CONFLICT: "the dashboard is off"},
    ),
    Route(
        method="GET",
        path=models.IMAGES,
        call="images",
        text="The images in the directories `images`",
        answers={OK: models.ImageList},
    ),
    Route(
        method="POST",
        path=models.IMAGES,
        call="create_image",
        text="Make an image",
        answers={HTTPStatus.CREATED: models.ImageView},
        body=models.CreateImage,
        is_operation=True,
    ),
    Route(
        method="GET",
        path=models.OPERATIONS,
        call="operations",
        text="Calls that go on, and the latest that have ended",
        answers={OK: models.OperationList},
    ),
    Route(
        method="GET",
        path=OPERATION,
        call="operation",
        text="One of them, with its result",
        answers={OK: models.Operation},
        waits=True,
    ),
    Route(
        method="DELETE",
        path=OPERATION,
        call="cancel",
        text="Cancel it, where nothing is left half done",
        answers={HTTPStatus.ACCEPTED: models.Operation},
    ),
    Route(
        method="GET",
        path=models.EVENTS,
        call="events",
        text="What happens, as server-sent events",
        answers={OK: models.Event},
        query=models.EventsQuery,
        media_type=EVENT_STREAM,
    ),
    METRICS,
)
