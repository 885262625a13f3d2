# SPDX-License-Identifier: Apache-2.0
"""What an image fails, in the log: the first request of a kind, then every while how many more."""

import asyncio
import os
from typing import Final

import structlog

from blkd import block

log = structlog.get_logger()

PERIOD: Final = 10.0
"""Seconds from one line on a failing image to the next."""

ENDS_EARLY: Final = "the image ends before the disk does"


class FailureLog:
    """Logs the requests that one worker could not carry out on a block device."""

    def __init__(self, part: block.BlkPart, image: str) -> None:
        self._part = part
        self._image = image
        self._logged: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def report(self, kind: int) -> None:
        """Log that a request of a kind failed, the first of late."""
        name, _, offset, error = self._part.failures[kind]
        self._logged[kind] = self._logged.get(kind, 0) + 1
        log.error(
            "image failed a request",
            image=self._image,
            request=name,
            offset=offset,
            reason=os.strerror(error) if error else ENDS_EARLY,
        )
        if self._timer is None:
            self._wait()

    def close(self) -> None:
        """Log no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._look)

    def _look(self) -> None:
        """Log how many more have failed; after a while without any the next one is news again."""
        more = {}
        for kind, (name, count, _, _) in self._part.failures.items():
            if count > self._logged.get(kind, 0):
                more[name] = count - self._logged.get(kind, 0)
                self._logged[kind] = count
        if more:
            log.error("image goes on failing", image=self._image, requests=more, seconds=PERIOD)
            self._wait()
        else:
            self._timer = None
            self._part.report_failures()
