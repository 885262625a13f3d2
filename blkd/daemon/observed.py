# SPDX-License-Identifier: Apache-2.0
"""An export at one moment, by all that a daemon knows of it without a question to its process."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from blkd.control.daemon_models import Device, State, Wanted
from blkd.export.limits import Limits
from blkd.statistics.figures import Figures

Word = Annotated[str, Meta(max_length=64)]


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What the process of a disk has said of it when it came to serve.

    It is checked: a guest may have got hold of that process.
    """

    serial: Word = ""
    engine: Word = ""
    cache: Word = ""

    @classmethod
    def read(cls, state: Any) -> Self:
        """What the answer to `GET /v1/export` says, nothing if it is not as it should be."""
        try:
            return msgspec.convert(state, cls)
        except msgspec.ValidationError:
            return cls()

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Likewise of the answer before it is decoded."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError:
            return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The room for an image that is a file; bytes."""

    free: int
    """Of its file system, for whoever may not take the last reserve."""
    total: int
    """Of its file system."""
    allocated: int
    """What the image takes of it."""
    nearly_full: bool
    """Whether a guest that goes on to write may soon find no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One export."""

    name: str
    device: Device
    wanted: Wanted
    state: State
    restarts: int = 0
    since: float | None = None
    """When the process that serves it was started, in seconds since 1970."""
    image: str = ""
    described: Described = field(default_factory=Described)
    space: Space | None = None
    """None where the image is no file, or its file system has not answered yet."""
    figures: Figures | None = None
    """None where it has none: a device of another kind, or never started."""
    limits: Limits = field(default_factory=Limits)
    """A disk's own."""
    group: str = ""
    """That it is in; empty for none."""

    @property
    def is_up(self) -> bool:
        """Whether a process serves it."""
        return self.state in {"serving", "held", "paused"}
