# SPDX-License-Identifier: Apache-2.0
"""The dashboard in a thread of its own, in front of exports that a test plays."""

import asyncio
import socket
import threading
from contextlib import contextmanager

from blkd.daemon.dashboard.dashboard_server import serve_dashboard
from blkd.daemon.dashboard.visitor import Key

KEY = Key("the-token-of-this-test")


@contextmanager
def dashboard_in_thread(exports, port=0):
    """Serve the dashboard on a port, a free one if it is 0, from a thread of its own: the port."""
    started = threading.Event()
    found = {}

    async def serve(listener):
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()
        async with serve_dashboard(exports, listener, KEY):
            started.set()
            await found["stop"].wait()

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        try:
            assert started.wait(10)
            yield listener.getsockname()[1]
        finally:
            found["loop"].call_soon_threadsafe(found["stop"].set)
            thread.join()
