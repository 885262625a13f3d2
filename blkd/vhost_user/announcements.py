# SPDX-License-Identifier: Apache-2.0
"""Announcements to the front end, over the back-end channel: the configuration has changed."""

import asyncio
import contextlib
import math
from typing import Final

import structlog

from blkd.errors import ProtocolError
from blkd.vhost_user.backchannel import BackChannel, BackChannelSnapshot
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
    """Owns the back-end channel, and announces on it each change that the front end has not read.

    An announcement goes out once a vring is served and the main channel is quiet (vhost-user,
    "Back-end communication").
    """

    def __init__(self, session: Session, gate: Gate) -> None:
        """`gate` is the main channel's: while it is shut, nothing is announced."""
        self._session = session
        self._gate = gate
        self._back: BackChannel | None = None
        self._quiet_at = -math.inf  # loop time; infinite while a request is carried out
        self._is_due = asyncio.Event()  # there may be something to announce
        self._changed = asyncio.Event()  # the session, or whether there is a channel

    # ---- the channel ----

    @property
    def has_channel(self) -> bool:
        """Whether the front end has given a back-end channel."""
        return self._back is not None

    def use_channel(self, fd: int) -> None:
        """Announce on the socket `fd`, which is taken; an earlier channel is closed.

        Raises RequestRefused where it is no UNIX stream socket.
        """
        self.close()
        self._back = BackChannel.adopt(fd)
        self._is_due.set()

    def close(self) -> None:
        """Close the channel, if there is one."""
        if self._back:
            self._back.close()
            self._back = None
            self._changed.set()

    async def freeze(self) -> None:
        """Read nothing more from the channel until `thaw`."""
        if self._back:
            await self._back.gate.shut()

    def thaw(self) -> None:
        """Read from the channel again."""
        if self._back:
            self._back.gate.open()

    def snapshot(self) -> BackChannelSnapshot | None:
        """The channel, for another process to go on with; None where there is none."""
        return self._back.snapshot() if self._back else None

    def restore(self, snapshot: BackChannelSnapshot | None) -> None:
        """Go on with the channel of another process; takes its descriptors.

        What that process has not announced is announced.  Raises RequestRefused or ProtocolError.
        """
        if snapshot is not None:
            self._back = BackChannel.restore(snapshot)
        self._is_due.set()

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
            if self._back and self._can_announce and self._session.is_stale:
                await self._announce(self._back)

    @property
    def _can_announce(self) -> bool:
        """Whether a change of the configuration can be announced now."""
        needed = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
        return (
            self._back is not None
            and needed in self._session.protocol_features
            and bool(self._session.serving)
        )

    async def _announce(self, back: BackChannel) -> None:
        acknowledged = self._session.has_negotiated(ProtocolFeature.REPLY_ACK)
        try:
            taken = await back.request(
                BackendRequest.CONFIG_CHANGE_MSG, acknowledged=acknowledged, limit=ACK_LIMIT
            )
        except TimeoutError:
            log.warning("configuration change not acknowledged", seconds=ACK_LIMIT)
        except (ProtocolError, OSError) as error:
            log.warning("back-end channel lost", reason=str(error))
            if self._back is back:
                self.close()
        else:
            log.info("configuration change announced", taken=taken)
