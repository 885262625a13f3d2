# SPDX-License-Identifier: Apache-2.0
"""Translations that the data path lacks: asked for on the back-end channel, and denied there."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from blkd.errors import ProtocolError
from blkd.vhost_user.backend_requests import BackendRequests
from blkd.vhost_user.data_path import DataPath
from blkd.vhost_user.iotlb import Access, IotlbEntry, IotlbKind, IotlbMessage
from blkd.vhost_user.wire import BackendRequest
from blkd.virtio.device import Device

WINDOW: Final = 64
"""Misses that are sent and not answered, at most: as many fit into any socket's buffer."""

LARGEST_WAIT: Final = 1024
"""Misses that a vring can wait for: of its own place, its next chain and some of those behind."""

CatchUp = Callable[[], Awaitable[None]]
"""Returns when all that the front end has sent so far is dealt with: translations, too."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Miss:
    """A translation that is lacking."""

    iova: int
    access: Access

    def is_met_by(self, entry: IotlbEntry) -> bool:
        """Whether this is that translation."""
        is_inside = entry.iova <= self.iova < entry.iova + entry.size
        return is_inside and self.access in entry.access

    def encode(self) -> bytes:
        """The message that asks for it."""
        return IotlbMessage(self.iova, 0, 0, self.access, IotlbKind.MISS).encode()


@dataclass(slots=True)
class _Sent:
    """A miss that the front end has been sent, until it is settled."""

    miss: Miss
    is_met: bool = False
    """Whether a translation has come, was denied, or is not wanted any more."""


class Misses:
    """Asks the front end for translations, and tells the data path of those that there are not.

    A front end answers a MISS when it has sent the translation on the main channel, or has none
    (vhost-user, "IOMMU support").  Nobody waits here for either: requests that lack a translation
    wait on the data path, and no others.
    """

    def __init__(
        self, device: Device, data_path: DataPath, requests: BackendRequests, catch_up: CatchUp
    ) -> None:
        self._data_path = data_path
        self._requests = requests
        self._catch_up = catch_up
        self._most = device.queues * LARGEST_WAIT
        self._waiting: dict[Miss, None] = {}  # to be sent, in this order
        self._sent: list[_Sent] = []
        self._unmet: asyncio.Queue[tuple[_Sent, bool]] = asyncio.Queue()  # answered
        requests.at_open.append(self._send)
        data_path.on_miss = self.note

    def note(self, iova: int, access: Access) -> None:
        """Ask for a translation, unless that is done already.

        Where more are asked for than all vrings can wait for, the oldest is forgotten.
        """
        miss = Miss(iova, access)
        if miss in self._waiting or any(
            sent.miss == miss and not sent.is_met for sent in self._sent
        ):
            return
        if len(self._waiting) >= self._most:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[miss] = None
        self._send()

    def note_update(self, entry: IotlbEntry) -> None:
        """A translation has come: what it meets is not asked for any more."""
        for sent in self._sent:
            sent.is_met = sent.is_met or sent.miss.is_met_by(entry)
        for miss in [miss for miss in self._waiting if miss.is_met_by(entry)]:
            del self._waiting[miss]

    def forget(self) -> None:
        """No vring is served: nothing is asked for, and no answer counts."""
        self._waiting.clear()
        for sent in self._sent:
            sent.is_met = True

    async def run(self) -> None:
        """Tell the data path of the translations that there are not; endless."""
        while True:
            sent, taken = await self._unmet.get()
            if taken:
                await self._catch_up()
            if not sent.is_met:
                sent.is_met = True  # who misses it from now on may miss the denial: ask again
                log.warning("translation denied", iova=sent.miss.iova, access=sent.miss.access.name)
                await self._data_path.deny_iotlb(sent.miss.iova, sent.miss.access)
            self._settle(sent)

    def _send(self) -> None:
        """Send what waits, as much as goes."""
        while self._waiting and len(self._sent) < WINDOW and self._requests.can_send:
            miss = next(iter(self._waiting))
            try:
                answer = self._requests.send(
                    BackendRequest.IOTLB_MSG, miss.encode(), acknowledged=True
                )
            except ProtocolError:
                return  # the channel is closed: it waits for the next one
            del self._waiting[miss]
            sent = _Sent(miss)
            self._sent.append(sent)
            answer.add_done_callback(partial(self._take_answer, sent))

    def _take_answer(self, sent: _Sent, answer: asyncio.Future[bool]) -> None:
        if answer.exception() is None and not sent.is_met:
            self._unmet.put_nowait((sent, answer.result()))
            return
        if not sent.is_met:  # the channel was lost
            self._waiting = {sent.miss: None, **self._waiting}
        self._settle(sent)

    def _settle(self, sent: _Sent) -> None:
        self._sent.remove(sent)
        self._send()
