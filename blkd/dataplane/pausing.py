# SPDX-License-Identifier: Apache-2.0
"""Pausing: no worker fetches requests, and what is in flight is drained."""

import asyncio
from collections.abc import Iterable
from typing import Final

from blkd.dataplane.workers import Answer, Workers, WorkerThread
from blkd.errors import DrainTimeout

SEEN_LIMIT: Final = 1.0
"""Seconds for workers to take a command, whatever is in flight."""


class Pausing:
    """Whether the workers of a device are paused, and which of them have drained."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._drained: list[Answer] = []
        self.is_paused = False
        workers.at_start.append(self._post_first)

    def begin(self) -> None:
        """Fetch nothing more; `pause` waits for what is in flight."""
        if not self.is_paused:
            self.is_paused = True
            self._drained = [self._post(thread) for thread in self._workers]

    async def pause(self, deadline: float) -> None:
        """Fetch nothing more and wait for what is in flight.

        Raises:
            DrainTimeout: Requests are still in flight after `deadline` seconds, and the vrings
                stay paused and go on draining; or `resume` came meanwhile.
        """
        self.begin()
        drained = self._drained
        if unfinished := [answer for answer in drained if not answer.done()]:
            _, late = await asyncio.wait(unfinished, timeout=deadline)
            if late:  # a worker that answers anything else has seen the pause and fetches no more
                seen = [thread.configure() for thread in self._workers]
                await asyncio.wait(seen, timeout=SEEN_LIMIT)
        if not all(map(has_succeeded, drained)):
            raise DrainTimeout(
                f"{self._workers.in_flight} requests in flight after {deadline:g} seconds"
            )

    async def resume(self) -> None:
        """Fetch again; requests that waited are served now.  A pause under way ends."""
        if not self.is_paused:
            return
        drained, self._drained, self.is_paused = self._drained, [], False
        await self._workers.post(lambda thread: thread.answer_to(thread.worker.resume()))
        await asyncio.gather(*drained, return_exceptions=True)

    def _post(self, thread: WorkerThread) -> Answer:
        return thread.answer_to(thread.worker.pause())

    def _post_first(self, thread: WorkerThread) -> Iterable[Answer]:
        if self.is_paused:
            self._drained.append(self._post(thread))
        return ()  # what is paused already need not be waited for


def has_succeeded(answer: Answer) -> bool:
    """Whether there is an answer, neither an exception nor a cancellation."""
    return answer.done() and not answer.cancelled() and answer.exception() is None
