# SPDX-License-Identifier: Apache-2.0
"""The giver's side of an upgrade: this process's export goes to another one.

Nothing here is imported only when it is needed: by then the files may be another version's.
"""

import asyncio
import contextlib
import functools
import socket

import structlog

from blkd.errors import BlkdError, UpgradeError
from blkd.export.export import Export
from blkd.host import systemd, unix_socket
from blkd.upgrade import describe, exchange, messages
from blkd.upgrade.descriptors import OutgoingFds
from blkd.upgrade.transport import Transport

log = structlog.get_logger()


class ExportGiver:
    """Gives an export away, with the socket of its API; plays `exchange.Giver`."""

    def __init__(self, export: Export, control: socket.socket) -> None:
        self._export = export
        self._control = control
        self._giving = asyncio.Lock()
        self._interruption: UpgradeError | None = None

    async def give(self, sock: socket.socket) -> messages.Hello | None:
        """Give the export to the process at the other end of `sock`: who has it now.

        None if that failed, which is logged: it is served on.  Else nothing of it may be
        touched any more, and the caller ends the process without waiting for anything.
        """
        busy = "another process is taking it over already" if self._giving.locked() else None
        turn = contextlib.nullcontext() if busy else self._giving
        transport = Transport(sock)
        name = self._export.config.name
        try:
            async with turn:
                if busy is None:
                    interrupt = functools.partial(self._interrupt, transport)
                    self._export.disk.on_lock_change = interrupt
                taker = await exchange.give(transport, self, busy)
        except BlkdError as error:
            log.warning("not handed over", export=name, reason=str(error))
            return None
        finally:
            transport.close()
        # Whose process asked, as the kernel knows it: what it says of itself is not relied on.
        pid = unix_socket.peer(sock) or None
        log.info("handed over", export=name, pid=pid, version=taker.version)
        if pid is not None:
            systemd.main_pid(pid)
        return taker

    def _interrupt(self, transport: Transport) -> None:
        """Break off: the image was opened anew, and what was offered is the open file before."""
        self._interruption = UpgradeError(
            "its image was locked or handed over meanwhile", hint="try again"
        )
        transport.interrupt(self._interruption)

    def offer(self, hello: messages.Hello, out: OutgoingFds) -> messages.Offer:
        """Describe what is served, as far as the taker understands."""
        self._interruption = None
        self._export.require_undisturbed()
        return describe.offer(self._export, hello, self._control.fileno(), out)

    async def freeze(self, out: OutgoingFds) -> messages.State:
        """Come to rest and describe that."""
        began = await self._export.freeze()
        if self._interruption is not None:
            raise self._interruption
        self._export.disk.note_write_errors()  # the kernel may not tell them to the taker's syncs
        return describe.state(self._export, began, out)

    def require_undisturbed(self) -> None:
        """Raise FreezeFailed if the export's rest has been disturbed."""
        self._export.require_undisturbed()

    async def thaw(self) -> None:
        """Serve on."""
        await self._export.thaw()
