# SPDX-License-Identifier: Apache-2.0
"""Processes of exports, started by a launcher as the supervisor of a daemon starts them."""

import asyncio
import contextlib
import os
import select
import signal
import sys
from pathlib import Path

from blkd.daemon import orders
from blkd.daemon.launching import Launcher
from blkd.host import unix_socket

LIMIT = 20.0  # seconds for a process to serve, or to end


class Launching:
    """A launcher, the sockets of its exports in a directory, and the ends that it has told of."""

    def __init__(self, directory: Path, *, sandbox=True, user=None) -> None:
        self.directory = directory
        self.sandbox = orders.Sandbox(on=sandbox, user=user, group=user)
        self.log = directory / "log.jsonl"
        self.ends: asyncio.Queue[orders.Ended] = asyncio.Queue()
        self.is_gone = asyncio.Event()
        self._sockets: dict[str, list] = {}
        self._launched: list = []
        self._launcher: Launcher

    async def __aenter__(self):
        self.start()
        return self

    async def __aexit__(self, *_):
        for launched in self._launched:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
            launched.close()
        for sock in [sock for sockets in self._sockets.values() for sock in sockets]:
            sock.close()
        self._launcher.close()

    def start(self):
        """Begin a launcher."""
        self._launcher = Launcher.start(on_end=self.ends.put_nowait, on_gone=self.is_gone.set)

    @property
    def pid(self):
        """The launcher's."""
        return self._launcher.pid

    def control(self, name):
        return str(self.directory / f"{name}.control")

    def socket(self, name):
        return str(self.directory / f"{name}.sock")

    async def launch(self, name, device="blk", *, count=1, places=None, **settings):
        """A process that was started; not waited for.  Its sockets outlive it."""
        sockets = self._sockets.get(name)
        if sockets is None:
            paths = [self.socket(name)] if count == 1 else settings["socket"]
            sockets = [unix_socket.listen(path, 0o600) for path in (self.control(name), *paths)]
            self._sockets[name] = sockets
        order = orders.Launch(
            name=name,
            device=device,
            settings=settings,
            run=str(self.directory),
            places=places,
            sandbox=self.sandbox,
        )
        with self.log.open("ab") as log:
            launched = await self._launcher.launch(
                order, log=log.fileno(), control=sockets[0], listeners=sockets[1:]
            )
        self._launched.append(launched)
        return launched

    async def take(self, name):
        """A process that was started to take over what another one serves; not waited for."""
        order = orders.Take(name=name, control=self.control(name), sandbox=self.sandbox)
        with self.log.open("ab") as log:
            launched = await self._launcher.take(order, log=log.fileno())
        self._launched.append(launched)
        return launched

    async def serve(self, name, device="blk", **how):
        """A process that serves."""
        launched = await self.launch(name, device, **how)
        await launched.ready(LIMIT)
        return launched

    async def end(self):
        """The next end of a process."""
        async with asyncio.timeout(LIMIT):
            return await self.ends.get()


def has_ended(pidfd, limit=LIMIT):
    """Whether a process ends within `limit` seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(limit * 1000))


async def _supervise(directory: str) -> None:
    """Launch a disk, say its pid and the launcher's, and wait to be killed."""
    async with Launching(Path(directory)) as launching:
        image = Path(directory) / "disk.img"
        launched = await launching.serve("disk", image=str(image), cache="writeback")
        sys.stdout.write(f"{launched.pid} {launching.pid}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(_supervise(sys.argv[1]))
