# SPDX-License-Identifier: Apache-2.0
"""Our requests to the front end, on the back-end channel that it has given last."""

import asyncio
from collections.abc import Callable

import structlog

from blkd.errors import ProtocolError
from blkd.vhost_user.backchannel import BackChannel, BackChannelSnapshot
from blkd.vhost_user.wire import BackendRequest

Notice = Callable[[], None]

log = structlog.get_logger()


class BackendRequests:
    """Owns the back-end channel of a connection, while there is one.

    Whoever sends on it may wait for the answer or not; `run` takes the answers in.
    """

    def __init__(self) -> None:
        self._channel: BackChannel | None = None
        self._is_running = False
        self._is_given = asyncio.Event()
        self.at_open: list[Notice] = []
        """What is called when something may be sent again: by a new channel, a thaw or `run`."""
        self.at_close: list[Notice] = []
        """What is called when a channel is closed."""

    @property
    def has_channel(self) -> bool:
        """Whether the front end has given a back-end channel."""
        return self._channel is not None

    @property
    def can_send(self) -> bool:
        """Whether there is a channel, not frozen, whose answers are taken in.

        While a channel of another process is restored, it may still be that one's.
        """
        return self._is_running and self._channel is not None and not self._channel.gate.is_shut

    def use_channel(self, fd: int) -> None:
        """Send on the socket `fd`, which is taken; an earlier channel is closed.

        Raises RequestRefused where it is no UNIX stream socket.
        """
        self.close()
        self._use(BackChannel.adopt(fd))

    def close(self) -> None:
        """Close the channel, if there is one; requests that are not answered fail."""
        if self._channel:
            self._channel.close()
            self._channel = None
            for call in self.at_close:
                call()

    def send(
        self, request: BackendRequest, payload: bytes = b"", *, acknowledged: bool
    ) -> asyncio.Future[bool]:
        """Send a request on the channel that there is: see `BackChannel.send`.

        Raises ProtocolError where the channel has turned out to be of no use; it is closed.
        """
        assert self._channel is not None
        try:
            return self._channel.send(request, payload, acknowledged=acknowledged)
        except ProtocolError as error:
            self._lose(error)
            raise

    async def run(self) -> None:
        """Take answers in, of one channel after the other; endless."""
        self._is_running = True
        self._call_openers()
        while True:
            await self._is_given.wait()
            self._is_given.clear()
            if channel := self._channel:
                try:
                    await channel.read_answers()
                except (ProtocolError, OSError) as error:
                    if channel is self._channel:
                        self._lose(error)

    # ---- frozen ----

    async def freeze(self) -> None:
        """Read nothing more from the channel until `thaw`."""
        if self._channel:
            await self._channel.gate.shut()

    def thaw(self) -> None:
        """Read from the channel again."""
        if self._channel and self._channel.gate.is_shut:
            self._channel.gate.open()
            self._call_openers()

    def snapshot(self) -> BackChannelSnapshot | None:
        """The channel, for another process to go on with; None where there is none."""
        return self._channel.snapshot() if self._channel else None

    def restore(self, snapshot: BackChannelSnapshot | None) -> None:
        """Go on with the channel of another process; takes its descriptors.

        What that process was not answered yet is not known here: only that answers may come.
        Raises RequestRefused or ProtocolError.
        """
        if snapshot is not None:
            self._use(BackChannel.restore(snapshot))

    def _use(self, channel: BackChannel) -> None:
        self._channel = channel
        self._is_given.set()
        self._call_openers()

    def _call_openers(self) -> None:
        for call in self.at_open:
            call()

    def _lose(self, error: Exception) -> None:
        log.warning("back-end channel lost", reason=str(error))
        self.close()
