# SPDX-License-Identifier: Apache-2.0
"""A call once it is checked, and its reply before it is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from blkd.errors import ConfigError

DEFAULT_WAIT: Final = 1.0  # seconds for what changes something, before it goes on as an operation
MOST_WAIT: Final = 3600.0
TAG: Final = re.compile(r'\s*((?:W/)?"[^"]*")\s*(?:,|$)')
WAIT: Final = re.compile(r"wait\s*=\s*\"?([0-9]{1,6}(?:\.[0-9]{1,6})?)\"?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a caller asks, checked by the models of its route."""

    name: str = ""
    """Of the export or the group in the path, or the operation's id."""
    query: Any = None
    body: Any = None
    if_match: tuple[str, ...] = ()
    """Tags with their quotes; empty for no condition."""
    wait: float = 0
    """Seconds that the caller is ready to wait for the end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered."""

    content: Any
    """What becomes JSON; of a route of another media type the bytes themselves."""
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


def preferred_wait(values: Sequence[str], default: float) -> float:
    """How many seconds the headers `Prefer` ask to wait for the end (RFC 7240).

    What they ask for beside that, or wrongly, is passed over, as the standard wants it.
    """
    preferences = [each.strip().lower() for value in values for each in value.split(",")]
    for each in preferences:
        if (found := WAIT.fullmatch(each)) is not None:
            return min(float(found[1]), MOST_WAIT)
    return 0.0 if "respond-async" in preferences else default


def tags_of(values: Sequence[str]) -> tuple[str, ...]:
    """The tags that the headers `If-Match` name; none for `*`, which anything matches.

    Raises ConfigError on what is no list of tags.
    """
    text = ",".join(values).strip()
    if text in {"", "*"}:
        return ()
    tags, at = [], 0
    while at < len(text):
        found = TAG.match(text, at)
        if found is None:
            raise ConfigError(f"If-Match: {text!r} is no list of ETags in their quotes")
        tags.append(found[1])
        at = found.end()
    return tuple(tags)
