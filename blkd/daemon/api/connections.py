# SPDX-License-Identifier: Apache-2.0
"""The connections of the API: who has them, how many, how long they may do nothing."""

import asyncio
import collections
import contextlib
import select
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from blkd.control.models import PROBLEM_JSON
from blkd.control.problems import refusal
from blkd.daemon.api.authorisation import Access, Authorisation, Caller, caller_of

IDLE_LIMIT: Final = 60.0  # seconds until a request has come, with all of its headers
HALF_CLOSED_LIMIT: Final = 0.05  # seconds until it is looked whether there is a call left
MOST_OF_A_USER: Final = 256
MOST_OF_NOBODY: Final = 4  # of a user who may not call
LINGER_LIMIT: Final = 1.0  # seconds that the rest of a refused body is read and dropped
MAX_LINE: Final = 8 * 1024  # bytes of a request's first line, and of each header
MAX_HEADERS: Final = 64

log = structlog.get_logger()


class Connection(web.RequestHandler):
    """One connection: what aiohttp does with it, and who is at its other end."""

    __slots__ = ("_connections", "access", "caller", "half_closed", "is_stream", "is_tcp")

    def __init__(self, connections: "Connections", server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_LIMIT,
            tcp_keepalive=False,
            access_log=None,  # type: ignore[arg-type]  # its default is a logger
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_LIMIT,
            auto_decompress=False,
        )
        self._connections = connections
        self.caller = Caller(0, -1, frozenset())
        self.access = Access.NONE
        self.half_closed = False
        """Whether the caller sends no more, but still reads."""
        self.is_stream = False
        """Whether its answer has no end."""
        self.is_tcp = False
        """Whether it came over TCP, so that nobody knows who is at its other end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who it is, and whether that one may have a connection more."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        self.is_tcp = sock.family != socket.AF_UNIX
        try:
            if not self.is_tcp:
                self.caller = caller_of(sock)
        except OSError as error:
            log.warning("unknown caller", reason=error.strerror)
        self.access = self._connections.authorisation.of(self.caller)
        self._connections.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count it no more."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # of asyncio.Protocol
        """Go on where the caller has closed one direction only, to answer what it has asked."""
        if (
            self.transport is None
            or self.is_stream
            or _is_hung_up(self.transport.get_extra_info("socket"))
        ):
            return None
        self.half_closed = True
        self._close_once_idle()
        return True

    def abort(self) -> None:
        """Close it now, whatever has not been read yet."""
        if self.transport is not None:
            self.transport.abort()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Keep it, while the context lasts, from being closed for others of its user."""
        self._connections.set_busy(self, busy=True)
        try:
            yield
        finally:
            self._connections.set_busy(self, busy=False)
            if self.half_closed:
                self._close_once_idle()

    def _close_once_idle(self) -> None:
        """Close it once there is no call left that has come, of a caller that sends no more."""

        def close() -> None:
            if self.transport is None or self._connections.is_busy(self):
                return  # the end of the call comes here again
            if self._waiter is not None and not self._waiter.done():  # aiohttp waits for a request
                self.force_close()
            else:
                self._close_once_idle()

        asyncio.get_running_loop().call_later(HALF_CLOSED_LIMIT, close)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request, as far as it is understood, and close the connection."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("call failed", call=request.path, exc_info=exc)
            message = "see the log of blkd"
        detail = (message or str(exc or "")).partition("\n")[0]
        response = problem_response(refusal(HTTPStatus(status), detail))
        response.force_close()
        return response


def problem_response(problem: Any, headers: dict[str, str] | None = None) -> web.Response:
    """The response that tells of a problem."""
    body = msgspec.json.encode(problem) + b"\n"
    return web.Response(
        status=problem.status, body=body, content_type=PROBLEM_JSON, headers=headers
    )


class Connections:
    """All that there are, by user; those that have been idle for the longest first."""

    def __init__(self, authorisation: Authorisation) -> None:
        """By `authorisation` a caller may have many connections or few."""
        self.authorisation: Final = authorisation
        self._idle: dict[int, dict[Connection, None]] = collections.defaultdict(dict)
        self._busy: dict[int, set[Connection]] = collections.defaultdict(set)

    def add(self, connection: Connection) -> None:
        """Take one more in; another one of its user that is idle may have to go for it."""
        uid = connection.caller.uid
        most = MOST_OF_NOBODY if connection.access is Access.NONE else MOST_OF_A_USER
        self._idle[uid][connection] = None
        if len(self._idle[uid]) + len(self._busy[uid]) > most:
            oldest = next(iter(self._idle[uid]))
            self._idle[uid].pop(oldest)
            log.warning("too many connections", uid=uid, most=most)
            oldest.force_close()

    def remove(self, connection: Connection) -> None:
        """Know one no more."""
        uid = connection.caller.uid
        self._idle[uid].pop(connection, None)
        self._busy[uid].discard(connection)
        if not self._idle[uid] and not self._busy[uid]:
            del self._idle[uid], self._busy[uid]

    def is_busy(self, connection: Connection) -> bool:
        """Whether it has a call under way."""
        return connection in self._busy.get(connection.caller.uid, ())

    def set_busy(self, connection: Connection, *, busy: bool) -> None:
        """Note that a call has begun or ended, if the connection is still there."""
        if connection.transport is None:
            return
        uid = connection.caller.uid
        if busy:
            self._idle[uid].pop(connection, None)
            self._busy[uid].add(connection)
        else:
            self._busy[uid].discard(connection)
            self._idle[uid][connection] = None

    def end_streams(self) -> None:
        """Close those whose answer has no end."""
        for connection in [each for busy in self._busy.values() for each in busy]:
            if connection.is_stream:
                connection.abort()


def _is_hung_up(sock: socket.socket) -> bool:
    """Whether the other end is closed for good, not only for what it sends."""
    poll = select.poll()
    poll.register(sock, 0)  # a hang-up is always reported
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
