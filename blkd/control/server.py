# SPDX-License-Identifier: Apache-2.0
"""The control API of one export: HTTP over a UNIX socket."""

import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Protocol, TypeVar

import msgspec
import structlog
from aiohttp import web

from blkd import errors
from blkd.control import models

SHUTDOWN_LIMIT = 0.5  # seconds that a call under way has when the export ends
MAX_BODY = 64 * 1024  # bytes of a request's body

STATUS = {
    errors.ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ImageError: HTTPStatus.CONFLICT,
    errors.RequestRefused: HTTPStatus.CONFLICT,
    errors.DrainTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    errors.BlkdError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=msgspec.Struct)

log = structlog.get_logger()


class Controlled(Protocol):
    """What the API asks of an export; every answer can be encoded by msgspec."""

    def show(self) -> object:
        """All there is to know but the counters."""

    def stats(self) -> object:
        """The counters."""

    async def resize(self, size: int, *, force: bool = False) -> object:
        """Make the disk `size` bytes long and tell the front end."""

    async def pause(self, deadline: float) -> object:
        """Stop fetching requests; wait `deadline` seconds for those in flight."""

    async def resume(self) -> None:
        """Fetch requests again."""

    def kill(self) -> None:
        """End at once."""


@contextlib.asynccontextmanager
async def control_api(export: Controlled, listener: socket.socket) -> AsyncIterator[None]:
    """Answer calls about `export` on `listener`, which is borrowed, while the context lasts."""
    app = web.Application(middlewares=[_problems], client_max_size=MAX_BODY)
    app.add_routes(_Calls(export).routes())
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_LIMIT
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener.dup()).start()
        yield
    finally:
        await runner.cleanup()


class _Calls:
    """One method for each call."""

    def __init__(self, export: Controlled) -> None:
        self._export = export

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(models.EXPORT, self.show),
            web.get(models.STATS, self.stats),
            web.post(models.RESIZE, self.resize),
            web.post(models.PAUSE, self.pause),
            web.post(models.RESUME, self.resume),
            web.post(models.KILL, self.kill),
        ]

    async def show(self, _request: web.Request) -> web.Response:
        return _answer(self._export.show())

    async def stats(self, _request: web.Request) -> web.Response:
        return _answer(self._export.stats())

    async def resize(self, request: web.Request) -> web.Response:
        wanted = await _body(request, models.ResizeExport)
        return _answer(await self._export.resize(wanted.size, force=wanted.force))

    async def pause(self, request: web.Request) -> web.Response:
        wanted = await _body(request, models.PauseExport)
        return _answer(await self._export.pause(wanted.deadline))

    async def resume(self, _request: web.Request) -> web.Response:
        await self._export.resume()
        return _answer(self._export.show())

    async def kill(self, _request: web.Request) -> web.Response:
        last = _answer(self._export.show(), status=HTTPStatus.ACCEPTED)
        self._export.kill()
        return last


async def _body(request: web.Request, model: type[Model]) -> Model:
    """The request's JSON as `model`; an empty body is an empty object."""
    return msgspec.json.decode(await request.read() or b"{}", type=model)


def _answer(
    content: object, status: HTTPStatus = HTTPStatus.OK, content_type: str = "application/json"
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content) + b"\n", status=status, content_type=content_type
    )


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into problem details."""
    try:
        return await handler(request)
    except msgspec.ValidationError as error:
        return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    except msgspec.DecodeError as error:
        return _refusal(HTTPStatus.BAD_REQUEST, str(error))
    except web.HTTPException as error:
        return _refusal(
            HTTPStatus(error.status), f"{request.method} {request.path}", error.headers.get("Allow")
        )
    except errors.BlkdError as error:
        log.info("call refused", call=request.path, reason=str(error))
        return _problem_of(error)
    except Exception:
        log.exception("call failed", call=request.path)
        return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log of blkd")


def _problem_of(error: errors.BlkdError) -> web.Response:
    """The problem that tells of `error`: its kind, what was found, what can be done."""
    kind = type(error).__name__
    words = re.findall("[A-Z][a-z]+", kind)
    return _problem(
        models.Problem(
            type=models.PROBLEM_TYPES + "-".join(words).lower(),
            title=" ".join(words).capitalize(),
            status=next(STATUS[base] for base in type(error).__mro__ if base in STATUS),
            detail=str(error),
            hint=error.hint,
        )
    )


def _refusal(status: HTTPStatus, detail: str, allow: str | None = None) -> web.Response:
    """The problem that HTTP itself has a name for; `allow` is what a 405 must tell."""
    response = _problem(models.Problem(title=status.phrase, status=status, detail=detail))
    if allow is not None:
        response.headers["Allow"] = allow
    return response


def _problem(problem: models.Problem) -> web.Response:
    return _answer(problem, HTTPStatus(problem.status), models.PROBLEM_JSON)
