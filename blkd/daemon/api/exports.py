# SPDX-License-Identifier: Apache-2.0
"""What the API asks of the daemon, and what it lends to calls that take long."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from blkd.control.daemon_models import (
    AddExport,
    ChangeExport,
    ChangeResult,
    CreateImage,
    Event,
    ExportSummary,
    ExportView,
    ImageView,
    Logs,
    Removed,
)
from blkd.daemon.api.groups import Groups
from blkd.daemon.observed import Observed


class Work(Protocol):
    """How far a call has come: what takes long says so here."""

    def report(self, progress: float | None, doing: str) -> None:
        """Say that `progress`, from 0 to 1, is done, and what is done at present."""

    def may_be_cancelled(self) -> AbstractContextManager[None]:
        """While the context lasts CancelledError may be raised: a caller wants no more of it.

        Nothing may be left of what was begun.  Outside of such a context a call is only cancelled
        when the daemon ends.
        """


class Exports(Protocol):
    """The exports of a daemon.

    Every call is carried out to its end, also if its caller goes away.  Calls on one export are
    carried out one after the other, in the order in which they came; `kill` does not wait.

    All raise NoSuchExport for a name that is not known, and other errors of `blkd.errors` for what
    cannot be done.
    """

    @property
    def groups(self) -> Groups:
        """The groups that exports may be in."""

    def list(self) -> Sequence[ExportSummary]:
        """All exports, by name."""

    async def get(self, name: str) -> ExportView:
        """All there is to know of an export; asks its process, with a limit."""

    async def add(self, wanted: AddExport, work: Work) -> tuple[ExportView, bool]:
        """Keep an export, create its image, start it: what it is now, and whether it is new.

        An export of that name, with that device and those settings, is left as it is.

        Raises:
            ExportExists: One of that name has another device or other settings.
            ConfigError: The settings are not those of the device.
        """

    async def change(
        self, name: str, wanted: ChangeExport, if_match: Sequence[str]
    ) -> ChangeResult:
        """Change settings.

        Args:
            name: Which export.
            wanted: The settings that are to change.
            if_match: Tags, as `entity_tag` makes them, of which one must be that of the settings
                until now; empty for no condition.

        Raises:
            ExportChanged: None of the tags is.
            ConfigError: The settings would not be those of the device.
        """

    async def remove(self, name: str, *, delete_image: bool) -> Removed:
        """Stop an export and forget it; does not raise NoSuchExport."""

    async def start(self, name: str) -> ExportView:
        """Serve it, from now on: returns once it is ready, or has failed."""

    async def stop(self, name: str) -> ExportView:
        """Serve it no more: returns once its process has ended."""

    async def kill(self, name: str) -> ExportView:
        """End its process at once; it is started again unless it is to be stopped."""

    async def upgrade(self, name: str, work: Work) -> ExportView:
        """Go on with a process of the blkd that is installed now, unnoticed by the guest."""

    async def pause(self, name: str, deadline: float) -> object:
        """Fetch no more requests, and wait `deadline` seconds for those in flight: the result."""

    async def resume(self, name: str) -> ExportView:
        """End a pause."""

    async def retry(self, name: str) -> object:
        """Begin a disk's held requests again: the result, as its process says it."""

    async def resize(self, name: str, size: int, *, force: bool) -> object:
        """Give a disk a size in bytes: the result, as its process says it."""

    async def in_flight(self, name: str) -> object:
        """A disk's requests in flight, as its process says them."""

    async def stats(self, name: str) -> object:
        """The counters, as its process says them."""

    async def observe(self) -> Sequence[Observed]:
        """All exports by name, without a question to their processes."""

    async def logs(self, name: str, lines: int) -> Logs:
        """The last events that it logged, `lines` at the most."""

    async def images(self) -> Sequence[ImageView]:
        """The images in the configured directories."""

    async def create_image(self, wanted: CreateImage, work: Work) -> ImageView:
        """Make an image.  Raises ImageError; nothing is left then."""

    def events(self, since: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """The events after the one with the id `since`, or only those to come.

        Ends at the present unless `follow`.
        """
