# SPDX-License-Identifier: Apache-2.0
"""Where the dashboard is served, and how a browser gets there: as blkd.toml says it."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import structlog

from blkd.control.daemon_models import DashboardView
from blkd.daemon.api.exports import Exports
from blkd.daemon.daemon_config import DaemonConfig
from blkd.daemon.dashboard.dashboard_server import serve_dashboard
from blkd.daemon.dashboard.token_file import kept_token
from blkd.daemon.dashboard.visitor import Key
from blkd.daemon.listeners import loopback_listener, unix_listener
from blkd.daemon.loopback import LoopbackAddress

FORWARDED: Final = LoopbackAddress("127.0.0.1", 9751)
"""Where a browser finds what ssh forwards."""

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def open_dashboard(
    config: DaemonConfig, exports: Exports, mode: int, group: int | None
) -> AsyncIterator[DashboardView | None]:
    """Serve the dashboard while the context lasts, if it is to be on: how a browser gets there.

    Args:
        config: Says where; its directories are there.
        exports: What is shown.
        mode: Of the file of a UNIX socket.
        group: Likewise.

    Raises SocketError and StateError.
    """
    if config.dashboard.listen is None:
        yield None
        return
    key = Key(kept_token(Path(config.dashboard_token)))
    async with contextlib.AsyncExitStack() as stack:
        if (address := config.dashboard.address) is None:
            place = unix_listener(config.dashboard_socket, mode, group)
            listener = await stack.enter_async_context(place)
        else:
            listener = stack.enter_context(loopback_listener(address, "dashboard"))
        await stack.enter_async_context(serve_dashboard(exports, listener, key))
        log.info("dashboard ready", listen=config.dashboard.listen)
        yield _view(config, address, key)


def _view(config: DaemonConfig, address: LoopbackAddress | None, key: Key) -> DashboardView:
    url = f"http://{address or FORWARDED}/#{key.token}"
    if address is not None:
        return DashboardView(url=url)
    place = f"{FORWARDED.port}:{config.dashboard_socket}"
    return DashboardView(url=url, forward=f"ssh -N -L {place} {socket.gethostname()}")
