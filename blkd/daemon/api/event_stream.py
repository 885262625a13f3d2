# SPDX-License-Identifier: Apache-2.0
"""Events as a stream that does not end (server-sent events, of the HTML standard)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
import structlog
from aiohttp import web

from blkd.control.daemon_models import Event

TRANSFER_LIMIT: Final = 10.0  # seconds that a caller may take to read an event
MEDIA_TYPE: Final = "text/event-stream"

log = structlog.get_logger()


def encode_event(event: Event) -> bytes:
    """An event as the stream has it; `id` is what a caller that comes again says as `since`."""
    return b"id: %d\ndata: %b\n\n" % (event.id, msgspec.json.encode(event))


async def send_events(
    request: web.Request, events: AsyncIterator[Event], abort: Callable[[], None]
) -> web.StreamResponse:
    """Send `events` to the end, or until the caller leaves or does not read in time: `abort`s."""
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = MEDIA_TYPE
    response.force_close()
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        async for event in events:
            async with asyncio.timeout(TRANSFER_LIMIT):
                await response.write(encode_event(event))
    except (TimeoutError, ConnectionError):
        abort()
    except Exception:  # the daemon goes on
        log.exception("events failed")
        abort()
    return response
