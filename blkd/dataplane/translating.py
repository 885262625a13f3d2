# SPDX-License-Identifier: Apache-2.0
"""Addresses behind an IOMMU: what the front end says of them reaches the workers and the vrings."""

from collections.abc import Iterable

from blkd.dataplane.memory import GuestMemory
from blkd.dataplane.vrings import Vrings
from blkd.dataplane.workers import Answer, Workers, WorkerThread, wait_all
from blkd.errors import RequestRefused
from blkd.vhost_user.iotlb import Access, IotlbEntry


class Translating:
    """Whether addresses are IOVAs, and what has been said of those.

    Each worker knows by itself what the buffers' are; where vrings lie is known here.
    """

    def __init__(self, workers: Workers, memory: GuestMemory, vrings: Vrings) -> None:
        self._workers = workers
        self._memory = memory
        self._vrings = vrings
        self._is_on = False
        workers.at_start.append(self._post_first)

    async def switch(self, *, on: bool) -> None:
        """Take addresses for IOVAs, of which nothing is known, or not any more; no vring runs.

        Raises RequestRefused where there is no room for what is to be known of them.
        """
        self._is_on = on
        await wait_all([self._post(thread) for thread in self._workers])

    async def clear(self) -> None:
        """Take addresses as they are."""
        if self._is_on:
            await self.switch(on=False)

    async def update(self, entry: IotlbEntry) -> None:
        """Translate by an entry.  Raises RequestRefused where that is not all in memory."""
        pieces = self._memory.pieces(entry.user_address, entry.size)
        if not (self._is_on and pieces):
            raise RequestRefused(
                f"a translation of {entry.size} bytes at {entry.iova:#x} to memory that there is"
                f" not, at {entry.user_address:#x}"
            )
        iova = entry.iova
        for address, size in pieces:
            await self._update(iova, size, address, entry.access)
            iova += size
        await self._vrings.learn(entry)

    async def _update(self, iova: int, size: int, address: int, access: Access) -> None:
        await self._workers.post(
            lambda thread: thread.answer_to(thread.worker.update_iotlb(iova, size, address, access))
        )

    async def invalidate(self, iova: int, size: int) -> None:
        """Forget a range; returns when nothing that has begun touches its memory."""
        if self._is_on:
            await self._vrings.forget(iova, size)

    async def deny(self, iova: int, access: Access) -> None:
        """Fail all that waits for this miss; a vring waits on, until it is started anew."""
        await self._workers.post(
            lambda thread: thread.answer_to(thread.worker.deny_iotlb(iova, access))
        )
        self._vrings.note_denied(iova)

    def _post(self, thread: WorkerThread) -> Answer:
        try:
            return thread.answer_to(thread.worker.set_iotlb(self._is_on))
        except MemoryError as error:
            raise RequestRefused(f"no translations: {error}") from error

    def _post_first(self, thread: WorkerThread) -> Iterable[Answer]:
        return [self._post(thread)] if self._is_on else ()
