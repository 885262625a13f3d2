# SPDX-License-Identifier: Apache-2.0
"""The dashboard over HTTP: a page, a way to log in, and rows as they come.

Nothing can be changed here.  The page itself is no secret; the rows are for those who have shown
the token.
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from types import MappingProxyType
from typing import Final

import msgspec
import structlog
from aiohttp import web

from blkd.control.problems import refusal
from blkd.daemon.api.authorisation import Access, Authorisation
from blkd.daemon.api.connections import Connection, problem_response
from blkd.daemon.api.exports import Exports
from blkd.daemon.api.web_server import serving
from blkd.daemon.dashboard.live_rows import LiveRows
from blkd.daemon.dashboard.visitor import Key, flaw

MAX_BODY: Final = 1024  # bytes
TRANSFER_LIMIT: Final = 10.0  # seconds that a body may take to come, and a part of an answer to go
MOST_WATCHERS: Final = 32
TELL_PERIOD: Final = 10.0  # seconds between two events that somebody was refused
EVENTS: Final = "text/event-stream"
FIRST: Final = "/index.html"
ANYBODY: Final = Authorisation(others=Access.READ)
"""Who may connect: who may see anything is known by the token."""

TYPES: Final = MappingProxyType(
    {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
)
"""Of the files of the page, by the ends of their names."""

HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
            " require-trusted-types-for 'script'; trusted-types 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)
"""Of every answer: only what comes from here is run or shown, and nowhere else."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is sent to log in."""

    token: str


@contextlib.asynccontextmanager
async def serve_dashboard(
    exports: Exports, listener: socket.socket, key: Key
) -> AsyncIterator[None]:
    """Serve the dashboard while the context lasts.

    Args:
        exports: What is shown.
        listener: A socket that listens, of TCP or in the file system; borrowed.
        key: What opens it.
    """
    application = web.Application(middlewares=[_answer], client_max_size=MAX_BODY)
    for path, file in page_files().items():
        application.router.add_get(path, functools.partial(_send_file, file))
    visitors = _Visitors(key, LiveRows(exports))
    application.router.add_post("/login", visitors.log_in)
    application.router.add_post("/logout", visitors.log_out)
    application.router.add_get("/session", visitors.session, allow_head=False)
    application.router.add_get("/rows", visitors.rows, allow_head=False)
    async with serving(application, listener, ANYBODY):
        yield


@dataclass(frozen=True, slots=True)
class PageFile:
    """A part of the page."""

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """All parts of the page by their paths."""
    folder = resources.files("blkd.daemon.dashboard") / "page"
    files = {
        f"/{each.name}": PageFile(each.read_bytes(), TYPES[each.name.rpartition(".")[2]])
        for each in folder.iterdir()
        if each.name.rpartition(".")[2] in TYPES
    }
    return {"/": files.pop(FIRST), **files}


async def _send_file(file: PageFile, _request: web.Request) -> web.Response:
    return web.Response(body=file.content, content_type=file.media_type, charset="utf-8")


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a request, which all go through; an answer that is not read has a limit."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    with connection.busy():
        response = await _response_to(request, handler)
        response.headers.update(HEADERS)
        try:
            async with asyncio.timeout(TRANSFER_LIMIT):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            connection.abort()
        except ConnectionError:
            pass  # the browser has left
    return response


async def _response_to(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The response to a request; every failure becomes problem details."""
    if (wrong := flaw(request.method, request.headers)) is not None:
        return _refusal(HTTPStatus.FORBIDDEN, wrong)
    try:
        return await handler(request)
    except web.HTTPException as found:
        return _refusal(HTTPStatus(found.status), request.rel_url.raw_path)
    except Exception:  # the daemon goes on
        log.exception("dashboard failed", path=request.rel_url.raw_path)
        return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log of blkd")


def _refusal(status: HTTPStatus, detail: str) -> web.Response:
    return problem_response(refusal(status, detail))


class _Visitors:
    """What is for those alone who have shown the token, and how they show it."""

    def __init__(self, key: Key, rows: LiveRows) -> None:
        self._key = key
        self._rows = rows
        self._watchers = 0
        self._told = float("-inf")

    async def log_in(self, request: web.Request) -> web.Response:
        """Take the token: the browser has a cookie from then on."""
        try:
            async with asyncio.timeout(TRANSFER_LIMIT):
                login = msgspec.json.decode(await request.read(), type=Login)
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except msgspec.DecodeError as error:
            return _refusal(HTTPStatus.BAD_REQUEST, str(error))
        if not self._key.opens(login.token):
            self._tell_refusal()
            return _refusal(HTTPStatus.FORBIDDEN, "this is not the token")
        response = web.Response(status=HTTPStatus.NO_CONTENT)
        response.set_cookie(
            self._key.cookie_name, self._key.cookie, path="/", httponly=True, samesite="Strict"
        )
        return response

    def _tell_refusal(self) -> None:
        """Log it, but not each time: anybody on this host may try."""
        now = asyncio.get_running_loop().time()
        if now - self._told >= TELL_PERIOD:
            self._told = now
            log.warning("dashboard refused", reason="this is not the token")

    async def log_out(self, _request: web.Request) -> web.Response:
        """Have the browser forget its cookie."""
        response = web.Response(status=HTTPStatus.NO_CONTENT)
        response.del_cookie(self._key.cookie_name, path="/", httponly=True, samesite="Strict")
        return response

    async def session(self, request: web.Request) -> web.Response:
        """Say whether a browser has to show the token."""
        self._require_known(request)
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def rows(self, request: web.Request) -> web.StreamResponse:
        """Send the rows as they come, until the browser leaves or does not read in time."""
        self._require_known(request)
        if self._watchers >= MOST_WATCHERS:
            raise web.HTTPServiceUnavailable
        self._watchers += 1
        try:
            return await self._send_rows(request)
        finally:
            self._watchers -= 1

    async def _send_rows(self, request: web.Request) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.is_stream = True
        response = web.StreamResponse(headers=HEADERS)
        response.content_type = EVENTS
        response.force_close()
        await response.prepare(request)
        try:
            async for look in self._rows.follow():
                async with asyncio.timeout(TRANSFER_LIMIT):
                    await response.write(b"data: %b\n\n" % look)
        except (TimeoutError, ConnectionError):
            connection.abort()
        except Exception:  # the daemon goes on
            log.exception("dashboard failed", path=request.path)
            connection.abort()
        return response

    def _require_known(self, request: web.Request) -> None:
        """Raise HTTPUnauthorized unless who asks has shown the token."""
        if not self._key.admits(request.cookies.get(self._key.cookie_name, "")):
            raise web.HTTPUnauthorized
