# SPDX-License-Identifier: Apache-2.0
"""What goes over the control API as JSON, beside the states that an export shows."""

from typing import Annotated

import msgspec

PROBLEM_JSON = "application/problem+json"  # RFC 9457
PROBLEM_TYPES = "urn:blkd:problem:"
ABOUT_BLANK = "about:blank"  # what HTTP itself has a name for

EXPORT = "/v1/export"
STATS = "/v1/export/stats"
FIGURES = "/v1/export/figures"
INFLIGHT = "/v1/export/inflight"
RESIZE = "/v1/export/resize"
PAUSE = "/v1/export/pause"
RESUME = "/v1/export/resume"
RETRY = "/v1/export/retry"
LIMITS = "/v1/export/limits"
STOP = "/v1/export/stop"
KILL = "/v1/export/kill"
UPGRADE = "/v1/export/upgrade"
UPGRADE_PROTOCOL = "blkd-handover"  # what is said from there on, in HTTP's Upgrade header
LEND = "/v1/export/lend"
LEND_PROTOCOL = "blkd-lend"

MAX_LIMITS = 1000  # characters
DEFAULT_DEADLINE = 10.0  # seconds
MAX_DEADLINE = 3600.0  # seconds


class ResizeExport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give an export another size; without `force` it can only grow."""

    size: Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)]
    """In bytes; a multiple of the disk's logical block size."""
    force: bool = False
    """Shrink, if it comes to that: the guest loses what is beyond `size`."""


class PauseExport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stop fetching requests and let those in flight complete."""

    deadline: Annotated[float, msgspec.Meta(ge=0, le=MAX_DEADLINE)] = DEFAULT_DEADLINE
    """Seconds to wait for the requests in flight."""


class LimitExport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Have a disk keep these limits, and no others."""

    limit: Annotated[str, msgspec.Meta(max_length=MAX_LIMITS)]
    """As `blkd serve --limit` has them: `iops=5000,bps-write=200M`; empty for none."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a call was refused: problem details as RFC 9457 has them."""

    type: str = ABOUT_BLANK
    title: str
    status: int
    detail: str | None = None
    hint: str | None = None
    """What a person can do about it."""
