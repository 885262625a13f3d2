# SPDX-License-Identifier: Apache-2.0
"""Announcements to the front end, over the back-end channel: the configuration has changed."""

import asyncio
import contextlib
import math
from typing import Final

import structlog

from blkd.errors import ProtocolError
from blkd.vhost_user.backend_requests import BackendRequests
from blkd.vhost_user.gate import Gate
from blkd.vhost_user.session import Session
from blkd.vhost_user.wire import BackendRequest, ProtocolFeature

QUIET: Final = 0.05
"""Seconds of silence on the main channel before a request goes out on the back-end channel.

QEMU 7.2 serves the back-end channel while it waits for an answer on the main one, so that a
message of ours would have it read the configuration in the middle of starting the device.
"""

QUIET_LIMIT: Final = 1.0
"""Seconds after which a pause between two requests has to do."""

ACK_LIMIT: Final = 5.0
"""Seconds that a front end may take to acknowledge a request of ours."""

log = structlog.get_logger()


class Announcements:
    """Announces each change that the front end has not read.

    An announcement goes out once a vring is served and the main channel is quiet (vhost-user,
    "Back-end communication").
    """

    def __init__(self, session: Session, gate: Gate, requests: BackendRequests) -> None:
        """`gate` is the main channel's: while it is shut, nothing is announced."""
        self._session = session
        self._gate = gate
        self._requests = requests
        self._quiet_at = -math.inf  # loop time; infinite while a request is carried out
        self._is_due = asyncio.Event()  # there may be something to announce
        self._changed = asyncio.Event()  # the session, or whether there is a channel
        requests.at_open.append(self._is_due.set)
        requests.at_close.append(self._changed.set)

    # ---- the main channel, as far as announcements depend on it ----

    def note_request(self) -> None:
        """A request of the front end is carried out from now on: wait."""
        self._quiet_at = math.inf

    def note_reply(self) -> None:
        """That request has been answered."""
        self._quiet_at = asyncio.get_running_loop().time() + QUIET

    def note_session(self, *, serves_more: bool) -> None:
        """The session has changed; `serves_more` says that a vring is served that was not."""
        self._changed.set()
        if serves_more:
            self._is_due.set()

    async def _quiet(self) -> None:
        """Wait until the main channel has been silent for QUIET, or for QUIET_LIMIT in all."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + QUIET_LIMIT
        while (wait := self._quiet_at - loop.time()) > 0:
            if loop.time() > patience and self._quiet_at < math.inf:
                return
            await asyncio.sleep(min(wait, QUIET))

    # ---- announcing ----

    async def announce_config(self, limit: float) -> bool:
        """Announce that the configuration has changed: whether the front end reads it in time.

        Returns once it has been read, or cannot be announced now, or after `limit` seconds; what
        was not announced is when the next vring is served.
        """
        self._is_due.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._session.is_stale and self._can_announce:
                    self._changed.clear()
                    await self._changed.wait()
        return not self._session.is_stale

    async def run(self) -> None:
        """Announce what the front end has not read, each time that something is due; endless."""
        while True:
            await self._is_due.wait()
            await self._quiet()
            await self._gate.opened()
            self._is_due.clear()
            if self._can_announce and self._session.is_stale:
                await self._announce()

    @property
    def _can_announce(self) -> bool:
        """Whether a change of the configuration can be announced now."""
        needed = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
        return (
            self._requests.has_channel
            and needed in self._session.protocol_features
            and bool(self._session.serving)
        )

    async def _announce(self) -> None:
        acknowledged = self._session.has_negotiated(ProtocolFeature.REPLY_ACK)
        try:
            answer = self._requests.send(
                BackendRequest.CONFIG_CHANGE_MSG, acknowledged=acknowledged
            )
            async with asyncio.timeout(ACK_LIMIT):
                taken = await answer
        except TimeoutError:
            log.warning("configuration change not acknowledged", seconds=ACK_LIMIT)
        except ProtocolError:
            log.warning("configuration change not announced")
        else:
            log.info("configuration change announced", taken=taken)
