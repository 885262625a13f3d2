# SPDX-License-Identifier: Apache-2.0
"""The control API of one export: HTTP over a UNIX socket."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol, TypeVar

import msgspec
import structlog

from blkd import errors
from blkd.control import models
from blkd.control.http import Request, Response, Switch, serve_one
from blkd.control.problems import problem_of, refusal

SHUTDOWN_LIMIT = 0.5  # seconds that a call under way has when the export ends

Give = Callable[[socket.socket], Awaitable[None]]
"""Gives the export to the process at the other end of a socket; it reports what goes wrong."""
Lend = Callable[[socket.socket], Awaitable[None]]
"""Sends the export's listening sockets to the process at the other end of a socket."""

Handler = Callable[[Request], Awaitable[Response | Switch]]
Routes = dict[str, dict[str, Handler]]
"""What answers each method of each path."""
Model = TypeVar("Model", bound=msgspec.Struct)

log = structlog.get_logger()


class ControlledExport(Protocol):
    """What the API asks of an export; every answer can be encoded by msgspec."""

    def show(self) -> object:
        """All there is to know but the counters."""

    def stats(self) -> object:
        """The counters."""

    def in_flight(self) -> object:
        """The requests in flight."""

    def figures(self) -> object:
        """What was counted and measured."""

    async def resize(self, size: int, *, force: bool = False) -> object:
        """Make the disk `size` bytes long and announce that to the front end."""

    async def pause(self, deadline: float) -> object:
        """Stop fetching requests; wait `deadline` seconds for those in flight."""

    async def resume(self) -> None:
        """Fetch requests again."""

    def limits(self) -> object:
        """The limits that are kept."""

    async def limit(self, text: str) -> object:
        """Keep other limits from now on."""

    async def retry(self) -> object:
        """Begin held requests again."""

    def kill(self) -> None:
        """End at once."""


@contextlib.asynccontextmanager
async def control_api(
    export: ControlledExport,
    listener: socket.socket,
    give: Give | None,
    stop: Callable[[], None],
    lend: Lend,
) -> AsyncIterator[None]:
    """Answer calls about `export` on `listener`, which is borrowed, while the context lasts.

    Without `give` it cannot be upgraded.  `stop` begins an orderly end of the process, and returns
    at once.
    """
    routes = _Handlers(export, give, stop, lend).routes()
    calls: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as tasks:

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            call = tasks.create_task(_serve_call(reader, writer, routes))
            calls.add(call)
            call.add_done_callback(calls.discard)

        # start_unix_server would look at the socket's file, which a sandbox hides, and remove it.
        server = await asyncio.start_server(begin, sock=listener.dup())
        try:
            yield
        finally:
            server.close()
            if calls:
                await asyncio.wait(calls, timeout=SHUTDOWN_LIMIT)
            for call in calls:
                call.cancel()


async def _serve_call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routes: Routes
) -> None:
    try:
        await serve_one(reader, writer, functools.partial(_answer_to, routes), _refusal)
    except Exception:  # the disk goes on
        log.exception("control connection failed")


class _Handlers:
    """One method for each call of the API."""

    def __init__(
        self,
        export: ControlledExport,
        give: Give | None,
        stop: Callable[[], None],
        lend: Lend,
    ) -> None:
        self._export = export
        self._give = give
        self._stop = stop
        self._lend = lend

    def routes(self) -> Routes:
        return {
            models.EXPORT: {"GET": self.show},
            models.STATS: {"GET": self.stats},
            models.FIGURES: {"GET": self.figures},
            models.INFLIGHT: {"GET": self.in_flight},
            models.RESIZE: {"POST": self.resize},
            models.PAUSE: {"POST": self.pause},
            models.RESUME: {"POST": self.resume},
            models.RETRY: {"POST": self.retry},
            models.LIMITS: {"GET": self.limits, "POST": self.limit},
            models.STOP: {"POST": self.stop},
            models.KILL: {"POST": self.kill},
            models.UPGRADE: {"POST": self.upgrade},
            models.LEND: {"POST": self.lend},
        }

    async def show(self, _request: Request) -> Response:
        return _answer(self._export.show())

    async def stats(self, _request: Request) -> Response:
        return _answer(self._export.stats())

    async def in_flight(self, _request: Request) -> Response:
        return _answer(self._export.in_flight())

    async def figures(self, _request: Request) -> Response:
        return _answer(self._export.figures())

    async def resize(self, request: Request) -> Response:
        wanted = _body(request, models.ResizeExport)
        return _answer(await self._export.resize(wanted.size, force=wanted.force))

    async def pause(self, request: Request) -> Response:
        wanted = _body(request, models.PauseExport)
        return _answer(await self._export.pause(wanted.deadline))

    async def resume(self, _request: Request) -> Response:
        await self._export.resume()
        return _answer(self._export.show())

    async def limits(self, _request: Request) -> Response:
        return _answer(self._export.limits())

    async def limit(self, request: Request) -> Response:
        return _answer(await self._export.limit(_body(request, models.LimitExport).limit))

    async def retry(self, _request: Request) -> Response:
        return _answer(await self._export.retry())

    async def stop(self, request: Request) -> Response:
        log.info("call ends the disk", call=request.path)
        last = _answer(self._export.show(), status=HTTPStatus.ACCEPTED)
        self._stop()
        return last

    async def kill(self, request: Request) -> Response:
        log.info("call ends the disk", call=request.path)
        last = _answer(self._export.show(), status=HTTPStatus.ACCEPTED)
        self._export.kill()
        return last

    async def upgrade(self, request: Request) -> Response | Switch:
        if request.upgrade != models.UPGRADE_PROTOCOL:
            return _other_protocol(models.UPGRADE_PROTOCOL)
        if self._give is None:
            return _problem(
                problem_of(errors.RequestRefused("only a disk can go on in another process"))
            )
        return Switch(models.UPGRADE_PROTOCOL, self._give)

    async def lend(self, request: Request) -> Response | Switch:
        if request.upgrade != models.LEND_PROTOCOL:
            return _other_protocol(models.LEND_PROTOCOL)
        return Switch(models.LEND_PROTOCOL, self._lend)


def _other_protocol(needed: str) -> Response:
    """The refusal of a call that is for going on with the protocol `needed`."""
    return _refusal(HTTPStatus.UPGRADE_REQUIRED, f"Upgrade: {needed} is missing", upgrade=needed)


def _body(request: Request, model: type[Model]) -> Model:
    """The request's JSON as `model`; an empty body is an empty object."""
    return msgspec.json.decode(request.body or b"{}", type=model)


def _answer(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(status, msgspec.json.encode(content) + b"\n", "application/json")


async def _answer_to(routes: Routes, request: Request) -> Response | Switch:
    """What `request` finds: its handler's response, or that there is none."""
    called = f"{request.method} {request.path}"
    methods = routes.get(request.path)
    if methods is None:
        return _refusal(HTTPStatus.NOT_FOUND, called)
    handler = methods.get("GET" if request.method == "HEAD" else request.method)
    if handler is None:
        return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, called, allow=", ".join(methods))
    return await _carry_out(handler, request)


async def _carry_out(handler: Handler, request: Request) -> Response | Switch:
    """The response of `handler`; every failure becomes problem details."""
    try:
        return await handler(request)
    except msgspec.ValidationError as error:
        return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    except msgspec.DecodeError as error:
        return _refusal(HTTPStatus.BAD_REQUEST, str(error))
    except errors.BlkdError as error:
        log.info("call refused", call=request.path, reason=str(error))
        return _problem(problem_of(error))
    except Exception:
        log.exception("call failed", call=request.path)
        return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log of blkd")


def _refusal(
    status: HTTPStatus, detail: str, *, allow: str | None = None, upgrade: str | None = None
) -> Response:
    """The problem that HTTP itself has a name for; a 405 tells `allow`, a 426 `upgrade`."""
    return replace(_problem(refusal(status, detail)), allow=allow, upgrade=upgrade)


def _problem(problem: models.Problem) -> Response:
    body = msgspec.json.encode(problem) + b"\n"
    return Response(HTTPStatus(problem.status), body, models.PROBLEM_JSON)
