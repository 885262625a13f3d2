# SPDX-License-Identifier: Apache-2.0
"""The API of the daemon on its socket: HTTP in front of the calls.

A request is checked by the models of its route, first of all by who sends it.  The metrics can be
read over TCP besides, by anybody on this host.  A call that changes
something goes on if its caller leaves; every other ends then.  aiohttp knows the protocol.
"""

import asyncio
import contextlib
import functools
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import msgspec
import structlog
from aiohttp import HttpVersion11, web

from blkd.control import models
from blkd.control.daemon_models import OPERATIONS, DashboardView
from blkd.control.problems import problem_of, refusal
from blkd.daemon.api.authorisation import Access, Authorisation
from blkd.daemon.api.call_and_reply import DEFAULT_WAIT, Call, Reply, preferred_wait, tags_of
from blkd.daemon.api.calls import Calls
from blkd.daemon.api.connections import Connection, problem_response
from blkd.daemon.api.event_stream import send_events
from blkd.daemon.api.exports import Exports
from blkd.daemon.api.operations import Operations, wait_for
from blkd.daemon.api.routes import JSON, METRICS, ROUTES, Route
from blkd.daemon.api.web_server import serving
from blkd.daemon.loopback import names_loopback
from blkd.errors import BlkdError, ConfigError

MAX_BODY: Final = 64 * 1024  # bytes
TRANSFER_LIMIT: Final = 10.0  # seconds that a body may take to come, and an answer to go
WHOLE_NUMBER: Final = re.compile("-?[0-9]{1,19}")
TRUTH: Final = MappingProxyType({"true": True, "false": False})

READABLE_BY_ALL: Final = Authorisation(others=Access.READ)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def daemon_api(
    exports: Exports,
    listener: socket.socket,
    authorisation: Authorisation,
    metrics_listener: socket.socket | None = None,
    dashboard: DashboardView | None = None,
) -> AsyncIterator[None]:
    """Answer calls about `exports` on `listener` while the context lasts.

    At its end, calls that change something are cancelled wherever they are.

    Args:
        exports: What the calls are about.
        listener: A UNIX socket that listens; borrowed.
        authorisation: Who may call there.
        metrics_listener: A TCP socket that listens, on which anybody may read the metrics and
            nothing else; borrowed.
        dashboard: Where browsers see the dashboard, if it is on.
    """
    async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
        operations = Operations(tasks)
        api = _Api(exports, operations, dashboard)
        await stack.enter_async_context(_serving(api, listener, authorisation, ROUTES))
        if metrics_listener is not None:
            metrics = _serving(api, metrics_listener, READABLE_BY_ALL, (METRICS,))
            await stack.enter_async_context(metrics)
        try:
            yield
        finally:
            operations.end()


@contextlib.asynccontextmanager
async def _serving(
    api: "_Api", listener: socket.socket, authorisation: Authorisation, routes: Sequence[Route]
) -> AsyncIterator[None]:
    """Accept connections for these routes, while the context lasts."""
    application = web.Application(middlewares=[_answer], client_max_size=MAX_BODY)
    for route in routes:
        handler = functools.partial(api.respond, route)
        application.router.add_route(route.method, route.path, handler, expect_handler=_expect)
        if route.method == "GET":
            application.router.add_route("HEAD", route.path, handler, expect_handler=_expect)
    async with serving(application, listener, authorisation):
        yield


async def _expect(request: web.Request) -> None:
    """Ask for the body of a caller that waits for that."""
    if request.headers["Expect"].lower() != "100-continue":
        text = msgspec.json.encode(refusal(HTTPStatus.EXPECTATION_FAILED, "only 100-continue"))
        raise web.HTTPExpectationFailed(text=text.decode(), content_type=models.PROBLEM_JSON)
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a request, which every call goes through; an answer that is not read has a limit."""
    connection = _connection(request)
    with connection.busy():
        response = await _response_to(request, connection, handler)
        try:
            async with asyncio.timeout(TRANSFER_LIMIT):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            connection.abort()
        except ConnectionError:
            pass  # the caller has left
    return response


async def _response_to(
    request: web.Request, connection: Connection, handler: Handler
) -> web.StreamResponse:
    """The response to a request; every failure becomes problem details."""
    if (refused := _unauthorised(request, connection) or _misled(request, connection)) is not None:
        return refused
    called = _called(request)
    try:
        return await handler(request)
    except web.HTTPException as found:
        return _of_http(found, called)
    except (msgspec.DecodeError, RecursionError) as error:
        wrong = isinstance(error, msgspec.ValidationError)
        status = HTTPStatus.UNPROCESSABLE_ENTITY if wrong else HTTPStatus.BAD_REQUEST
        return problem_response(refusal(status, str(error)))
    except BlkdError as error:
        log.info("call refused", call=called, reason=str(error))
        return problem_response(problem_of(error))
    except Exception:  # the daemon goes on
        log.exception("call failed", call=called)
        return problem_response(refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log of blkd"))


def _of_http(found: web.HTTPException, called: str) -> web.Response:
    """The response to what has no route, or a body that does not come or does not end."""
    allow = {"Allow": found.headers["Allow"]} if "Allow" in found.headers else None
    is_long = found.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    detail = f"the body is longer than {MAX_BODY} bytes" if is_long else called
    return problem_response(refusal(HTTPStatus(found.status), detail), allow)


def _unauthorised(request: web.Request, connection: Connection) -> web.Response | None:
    """The refusal of a caller that may not do this; None of one that may."""
    reads = request.method in {"GET", "HEAD"}
    if connection.access >= (Access.READ if reads else Access.CHANGE):
        return None
    caller = connection.caller
    log.warning("caller not allowed", call=_called(request), uid=caller.uid, pid=caller.pid)
    verb = "read" if reads else "change"
    who = "who calls over TCP" if connection.is_tcp else f"user {caller.uid}"
    return problem_response(
        refusal(
            HTTPStatus.FORBIDDEN,
            f"{who} may not {verb} anything here",
            hint=f"be root, or in the {verb}-group of blkd.toml",
        )
    )


def _misled(request: web.Request, connection: Connection) -> web.Response | None:
    """The refusal of a browser that takes this host for another one; None of everybody else."""
    if not connection.is_tcp or names_loopback(request.headers.get("Host", "")):
        return None
    return problem_response(
        refusal(HTTPStatus.FORBIDDEN, "this is not the host that was asked for")
    )


class _Api:
    """What stands between a request and the call that its route names."""

    def __init__(
        self, exports: Exports, operations: Operations, dashboard: DashboardView | None
    ) -> None:
        self._exports = exports
        self._operations = operations
        self._calls = Calls(exports, operations, dashboard)

    async def respond(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Respond to a request for `route`.  Raises BlkdError, DecodeError or HTTPException."""
        call = await _read_call(route, request)
        if route.call == "events":
            return await self._send_events(call, request)
        if route.is_operation:
            return await self._change(route, call, request)
        return _response(await getattr(self._calls, route.call)(call), route.media_type)

    async def _send_events(self, call: Call, request: web.Request) -> web.StreamResponse:
        """Send what happens; to a caller that has closed its side only up to the present."""
        connection = _connection(request)
        since = call.query.since
        last = request.headers.get("Last-Event-ID", "")
        if since is None and WHOLE_NUMBER.fullmatch(last):
            since = max(int(last), 0)
        follow = call.query.follow and not connection.half_closed
        connection.is_stream = True
        events = self._exports.events(since, follow=follow)
        return await send_events(request, events, connection.abort)

    async def _change(self, route: Route, call: Call, request: web.Request) -> web.Response:
        """Carry out what changes something: its result, or where it goes on."""
        called = _called(request)
        caller = _connection(request).caller
        log.info("call", call=called, uid=caller.uid, pid=caller.pid)
        method = getattr(self._calls, route.call)
        running = self._operations.begin(called, functools.partial(method, call))
        if not await wait_for(running, call.wait):
            headers = {"Location": f"{OPERATIONS}/{running.id}"}
            return _response(Reply(running.show(), HTTPStatus.ACCEPTED, headers))
        self._operations.forget(running)
        if running.problem is not None:
            return problem_response(running.problem)
        assert running.reply is not None
        return _response(running.reply)


def _connection(request: web.Request) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


def _called(request: web.Request) -> str:
    """The method and the path as they came, for logs and problems."""
    return f"{request.method} {request.rel_url.raw_path}"


async def _read_call(route: Route, request: web.Request) -> Call:
    """What `request` asks, checked."""
    return Call(
        name=next(iter(request.match_info.values()), ""),
        query=_query(route, request),
        body=await _body(route, request) if route.needs_change else None,
        if_match=_condition(route, request),
        wait=preferred_wait(
            request.headers.getall("Prefer", []), DEFAULT_WAIT if route.is_operation else 0
        ),
    )


def _query(route: Route, request: web.Request) -> Any:
    """The parameters behind the path.  Raises ValidationError or ConfigError."""
    given = {name: _parameter(text) for name, text in request.query.items()}
    if len(given) != len(request.query):
        raise ConfigError("a parameter is given twice")
    return msgspec.convert(given, route.query)


def _parameter(text: str) -> object:
    """What the text of a parameter says: true, false, a number or a text."""
    if WHOLE_NUMBER.fullmatch(text):
        return int(text)
    return TRUTH.get(text, text)


async def _body(route: Route, request: web.Request) -> Any:
    """The body as the route's model; none is an empty object."""
    try:
        async with asyncio.timeout(TRANSFER_LIMIT):
            content = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return msgspec.json.decode(content or b"{}", type=route.body)


def _condition(route: Route, request: web.Request) -> tuple[str, ...]:
    tags = tags_of(request.headers.getall("If-Match", []))
    if tags and not route.has_condition:
        raise ConfigError(f"{_called(request)} does not heed If-Match", hint="only a PATCH does")
    return tags


def _response(reply: Reply, media_type: str = JSON) -> web.Response:
    is_json = media_type == JSON
    body = msgspec.json.encode(reply.content) + b"\n" if is_json else reply.content
    headers = {"Content-Type": media_type, **reply.headers}
    return web.Response(status=reply.status, body=body, headers=headers)
