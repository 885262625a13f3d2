# SPDX-License-Identifier: Apache-2.0
"""An application of aiohttp on a socket that listens, with connections that are counted."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from blkd.daemon.api.authorisation import Authorisation
from blkd.daemon.api.connections import Connection, Connections

SHUTDOWN_LIMIT: Final = 0.5  # seconds that calls under way have when the daemon ends
BACKLOG: Final = 128  # callers that may wait to be accepted


@contextlib.asynccontextmanager
async def serving(
    application: web.Application, listener: socket.socket, authorisation: Authorisation
) -> AsyncIterator[None]:
    """Accept connections for `application` while the context lasts.

    Each request comes by a `Connection`, which knows what `authorisation` says of its caller.  The
    listener is borrowed; answers that have no end are ended.
    """
    connections = Connections(authorisation)
    runner = web.AppRunner(
        application, handler_cancellation=True, shutdown_timeout=SHUTDOWN_LIMIT, access_log=None
    )
    await runner.setup()
    try:
        assert runner.server is not None
        accept = functools.partial(Connection, connections, runner.server)
        loop = asyncio.get_running_loop()
        # create_unix_server would remove the socket's file, which is not the server's to remove.
        server = await loop.create_server(accept, sock=listener.dup(), backlog=BACKLOG)
        try:
            yield
        finally:
            server.close()
            connections.end_streams()
    finally:
        await runner.cleanup()
