# SPDX-License-Identifier: Apache-2.0
"""Held requests: begun again when there is space, or after a while, or by order.

Workers hold requests that fail, as the disk's error policy has it, and begin none again by
themselves (`src/blk/holding.pxd`): when to is decided here.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from blkd.dataplane import HeldRequests
from blkd.host.blocking import ask
from blkd.image.error_policy import ErrorPolicy

PERIOD: Final = 1.0
"""Seconds between two looks at what is held, and at the space that there is."""
LONGEST_WAIT: Final = 16.0
"""Seconds between two tries, however often they have come to nothing."""
ASK_LIMIT: Final = 0.8
"""Seconds for a file system to say how much space it has."""
TRIED: Final = 8
"""Requests of each worker that one try begins again; all others follow where one gets through."""
ALL: Final = 0xFFFF
"""More than a worker can hold."""
RETRY_POLL: Final = 0.02
RETRY_POLLS: Final = 25
"""Looks that an order has at what comes of it, half a second in all."""

NANOSECONDS: Final = 1_000_000_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What became of a retry."""

    retried: int
    """Requests that were held, and were begun again."""
    held: int
    """Requests that are held now."""
    reason: str | None
    """Why, of the last one of these."""


class Holder(Protocol):
    """What holds requests; `dataplane.ServedDisk` is one."""

    policy: ErrorPolicy
    on_held: Callable[[], None]

    @property
    def held(self) -> HeldRequests | None:
        """What is held at the moment."""


class Retries(Protocol):
    """What begins them again; `dataplane.DataPlane` is one."""

    async def retry(self, count: int) -> None:
        """Have each worker begin up to `count` of them again, and end what is overdue."""


class Spacious(Protocol):
    """Where there may be space; `image.base.Image` is one."""

    path: str

    def space(self) -> int | None:
        """Bytes that are free for it; None where that is not known."""


class Holding:
    """Sees to the held requests of one disk."""

    def __init__(self, name: str, holder: Holder, image: Spacious, retries: Retries) -> None:
        self._name = name
        self._holder = holder
        self._image = image
        self._retries = retries
        self._begun = asyncio.Event()
        holder.on_held = self._begun.set

    async def watch(self) -> None:
        """See through each episode in which requests are held; does not end."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            if (held := self._holder.held) is not None:
                await self._see_through(held)

    async def retry(self) -> RetryResult:
        """Begin all again, now: what has come of that after a moment."""
        before = self._holder.held
        if before is None:
            return RetryResult(retried=0, held=0, reason=None)
        log.info("requests retried", export=self._name, requests=before.count, by="order")
        await self._retries.retry(ALL)
        for _ in range(RETRY_POLLS):
            if (held := self._holder.held) is None:
                break
            await asyncio.sleep(RETRY_POLL)
        return RetryResult(
            retried=before.count,
            held=held.count if held else 0,
            reason=held.reason if held else None,
        )

    async def _see_through(self, held: HeldRequests) -> None:
        """Have what is held begun again until nothing is."""
        log.warning(
            "requests held",
            export=self._name,
            image=self._image.path,
            request=held.request,
            offset=held.offset,
            reason=held.reason,
            hint="they go on by themselves once the image takes them; blkd retry tries at once",
        )
        tries = Tries(time.monotonic())
        gauge = SpaceGauge(self._image)
        while (held_now := self._holder.held) is not None:
            held = held_now
            await asyncio.sleep(PERIOD)
            has_more = held.no_space and await gauge.has_grown()
            is_due = tries.are_due(time.monotonic(), at_once=bool(has_more))
            await self._retries.retry(TRIED if is_due else 0)
        seconds = round((time.monotonic_ns() - held.since_ns) / NANOSECONDS, 3)
        log.info("held requests have ended", export=self._name, seconds=seconds)


class Tries:
    """When to try again: at ever longer intervals, and at once when there is reason to."""

    def __init__(self, now: float) -> None:
        self._wait = PERIOD
        self._next = now + self._wait

    def are_due(self, now: float, *, at_once: bool) -> bool:
        """Whether to try at the time `now`; if so, the next try comes later than this one did."""
        if at_once:
            self._wait = PERIOD
        elif now < self._next:
            return False
        else:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._next = now + self._wait
        return True


class SpaceGauge:
    """Whether there is more space for an image than there was."""

    def __init__(self, image: Spacious) -> None:
        self._image = image
        self._known: int | None = None
        self._is_asked = True

    async def has_grown(self) -> bool:
        """Whether there is more space than the last time.

        A file system that does not answer in time is not asked again: a thread waits for it.
        """
        if not self._is_asked:
            return False
        try:
            found = await ask(self._image.space, ASK_LIMIT)
        except (OSError, TimeoutError):
            self._is_asked = False
            return False
        before, self._known = self._known, found
        return before is not None and found is not None and found > before
