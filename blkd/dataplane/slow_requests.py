# SPDX-License-Identifier: Apache-2.0
"""Requests that take longer than they may, in the log: once answered, and while they are not."""

import asyncio
import os
import time
from typing import Final

import structlog

from blkd import block

log = structlog.get_logger()

NANOSECONDS: Final = 1_000_000_000  # of a second
MICROSECOND: Final = 1000  # nanoseconds
SHORTEST_PERIOD: Final = 1.0
"""Seconds from one look at what is in flight to the next, at the least."""


class SlowRequests:
    """Logs the slow requests of one worker."""

    def __init__(self, part: block.BlkPart, worker: int, image: str, slow_ns: int) -> None:
        """Requests are slow that take `slow_ns` nanoseconds; with 0 none are."""
        self._part = part
        self._worker = worker
        self._image = image
        self._slow_ns = slow_ns
        self._missed = 0
        self._stuck: set[tuple[int, int]] = set()
        """Those that were logged as stuck: vring, and when they were fetched."""
        self._timer: asyncio.TimerHandle | None = None
        if slow_ns:
            self._wait()

    def report(self) -> None:
        """Log what the worker has kept."""
        requests, missed = self._part.take_slow()
        for ring, request, offset, size, times, error, bounced, durable in requests:
            in_ring, in_throttle, at_disk = times
            log.warning(
                "slow request",
                image=self._image,
                request=request,
                offset=offset,
                bytes=size,
                ring=ring,
                worker=self._worker,
                ring_us=in_ring // MICROSECOND,
                throttle_us=in_throttle // MICROSECOND,
                disk_us=at_disk // MICROSECOND,
                bounced=bounced,
                durable=durable,
                reason=os.strerror(error) if error else None,
            )
        if missed > self._missed:
            log.warning("slow requests not told", image=self._image, count=missed - self._missed)
            self._missed = missed

    def close(self) -> None:
        """Log no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        period = max(self._slow_ns / NANOSECONDS, SHORTEST_PERIOD)
        self._timer = asyncio.get_running_loop().call_later(period, self._look)

    def _look(self) -> None:
        """Log each request in flight that is slow already, once."""
        latest = time.monotonic_ns() - self._slow_ns
        stuck = set()
        for ring, request, offset, size, begun_at, where in self._part.in_flight():
            if begun_at > latest:
                continue
            stuck.add((ring, begun_at))
            if (ring, begun_at) not in self._stuck:
                log.warning(
                    "request stuck",
                    image=self._image,
                    request=request,
                    offset=offset,
                    bytes=size,
                    ring=ring,
                    worker=self._worker,
                    seconds=round((time.monotonic_ns() - begun_at) / NANOSECONDS, 3),
                    where=where,
                )
        self._stuck = stuck
        self._wait()
