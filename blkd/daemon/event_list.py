# SPDX-License-Identifier: Apache-2.0
"""What has happened to the exports of a daemon: the latest events, and those to come."""

import asyncio
import collections
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import structlog

from blkd.control.daemon_models import Event

MOST_EVENTS: Final = 10_000
MOST_LOGGED: Final = 500
"""Of the lines that the process of one export has logged: it may be in the hands of a guest."""
MOST_LOGS: Final = 1_000  # exports of which such lines are kept
MICROSECONDS: Final = 1_000_000

log = structlog.get_logger()


class EventList:
    """The last MOST_EVENTS events of the daemon, and MOST_LOGGED of what each export has logged.

    Their ids are microseconds since 1970, or more, so that they grow over restarts of the daemon.
    """

    def __init__(self) -> None:
        self._events: collections.deque[Event] = collections.deque(maxlen=MOST_EVENTS)
        self._logged: dict[str, collections.deque[Event]] = {}
        self._last = time.time_ns() // 1000
        self._more = asyncio.Event()

    def tell(self, event: str, *, export: str | None, level: str = "info", **fields: Any) -> None:
        """Log an event, of an export if one is named, and keep it."""
        named = {} if export is None else {"export": export}
        getattr(log, level)(event, **named, **fields)
        self.add(event, export=export, level=level, fields=fields)

    def add(
        self,
        event: str,
        *,
        export: str | None,
        level: str = "info",
        fields: Mapping[str, Any],
        at: float | None = None,
        of: str | None = None,
    ) -> None:
        """Keep an event that is logged already; `of` the export whose process has logged it."""
        now = time.time() if at is None else at
        self._last = max(self._last + 1, time.time_ns() // 1000)
        kept = self._events if of is None else self._log_of(of)
        kept.append(
            Event(
                id=self._last,
                time=now,
                event=event,
                export=export,
                level=level,
                fields=dict(fields),
            )
        )
        self._more.set()
        self._more = asyncio.Event()

    async def after(self, since: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """The events after the one with the id `since`; None: only those to come.

        One that was never fetched in time, because there were too many, is left out.
        """
        last = self._last if since is None else since
        while True:
            more = self._more
            news = self._later_than(last)
            for event in news:
                last = event.id
                yield event
            if not news:
                if not follow:
                    return
                await more.wait()  # for as long as nothing happens

    def _later_than(self, last: int) -> list[Event]:
        late: list[Event] = []
        for kept in (self._events, *self._logged.values()):
            late += itertools.takewhile(lambda event: event.id > last, reversed(kept))
        return sorted(late, key=lambda event: event.id)

    def _log_of(self, export: str) -> collections.deque[Event]:
        """What is kept of the lines of an export: those of exports that say least lately go."""
        kept = self._logged.pop(export, None) or collections.deque(maxlen=MOST_LOGGED)
        self._logged[export] = kept
        if len(self._logged) > MOST_LOGS:
            del self._logged[next(iter(self._logged))]
        return kept
