# SPDX-License-Identifier: Apache-2.0
"""A Connection that serves a scripted front end from a thread, for tests that are synchronous."""

import asyncio
import concurrent.futures
import socket
import threading
from typing import Self

from blkd.vhost_user.connection import Connection
from blkd.vhost_user.iotlb import Access
from harness.frontend import FrontEnd
from tests.doubles import RecordingDataPath, ToyDevice


class Served:
    """One connection over a socket pair, with doubles of the device and its data path."""

    def __init__(self) -> None:
        self.device, self.data_path = ToyDevice(), RecordingDataPath()
        ours, self._theirs = socket.socketpair()
        self.front_end = FrontEnd.from_socket(ours)
        self.error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.connection = Connection(self._theirs, self.device, self.data_path)
        self._ready.set()
        try:
            await self.connection.serve()
        except BaseException as error:  # noqa: BLE001 - what it is, is what tests look at
            self.error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> BaseException | None:
        """Let the front end vanish: what `serve` raised."""
        self.front_end.close()
        self._thread.join(10)
        assert not self._thread.is_alive(), "serve() does not return"
        return self.error

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.connection.close)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)

    def miss(self, iova: int, access: Access) -> None:
        """Let the data path lack a translation."""
        self._loop.call_soon_threadsafe(self.data_path.on_miss, iova, access)

    def announce(self, timeout: float) -> concurrent.futures.Future[bool]:
        """Change the device and announce that; the answer comes later."""
        self.device.change()
        announcing = self.connection.announce_config(timeout)
        return asyncio.run_coroutine_threadsafe(announcing, self._loop)
