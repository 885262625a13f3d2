# SPDX-License-Identifier: Apache-2.0
"""One call over HTTP/1.1: a request comes, a response goes.  h11 knows the protocol."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

MAX_BODY: Final = 64 * 1024  # bytes of a request's body
TRANSFER_LIMIT: Final = 10.0  # seconds that a request may take to come, and a response to go
PIECE: Final = 64 * 1024  # bytes read at once


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked."""

    method: str
    path: str
    """Without a query."""
    body: bytes
    upgrade: str | None = None
    """The protocol that the caller wants to go on with."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Instead of an answer: the connection goes on with another protocol."""

    protocol: str
    converse: Callable[[socket.socket], Awaitable[None]]
    """Speaks it on a socket that it borrows."""


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered."""

    status: HTTPStatus
    body: bytes
    content_type: str
    allow: str | None = None
    """The methods that there are, where the one asked is not among them."""
    upgrade: str | None = None
    """The protocol that the call is for, where another was asked."""


Answer = Callable[[Request], Awaitable[Response | Switch]]
Refuse = Callable[[HTTPStatus, str], Response]


async def serve_one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, refuse: Refuse
) -> None:
    """Serve the one call that a connection is for.

    Args:
        reader: Where the request comes from.
        writer: Where the response goes; closed.
        answer: Makes the response to a request, in the time that it takes.
        refuse: Makes the response to what is no request, from a status and the reason.
    """
    call = _Call(reader, writer)
    try:
        try:
            async with asyncio.timeout(TRANSFER_LIMIT):
                request = await call.receive()
            response = await answer(request)
        except h11.RemoteProtocolError as wrong:
            response = refuse(HTTPStatus(wrong.error_status_hint), str(wrong))
        if isinstance(response, Switch):
            await call.switch(response)
            return
        async with asyncio.timeout(TRANSFER_LIMIT):
            await call.send(response)
    except (ConnectionError, TimeoutError):
        pass  # the caller has left or does not go on: nobody receives a response
    finally:
        writer.transport.abort()


class _Call:
    """One request and its response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._state = h11.Connection(h11.SERVER)
        self._reader = reader
        self._writer = writer
        self._head: h11.Request | None = None

    async def receive(self) -> Request:
        """The whole request.  Raises RemoteProtocolError where it is none, or is too long."""
        body, size = bytearray(), 0
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            match event:
                case h11.Request():
                    self._head = event
                case h11.Data():
                    size += len(event.data)
                    body += event.data if size <= MAX_BODY else b""  # or else read and dropped
                case _:
                    raise ConnectionResetError("closed in mid-request")
        assert self._head is not None
        if size > MAX_BODY:
            raise h11.RemoteProtocolError(
                f"a body of {size} bytes, not {MAX_BODY} at most",
                error_status_hint=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        path = self._head.target.decode("ascii").partition("?")[0]
        wanted = dict(self._head.headers).get(b"upgrade")
        upgrade = None if wanted is None else wanted.decode("latin-1")
        return Request(self._head.method.decode("ascii"), path, bytes(body), upgrade)

    async def _next_event(self) -> h11.Event:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            if self._state.they_are_waiting_for_100_continue:
                self._put(h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[]))
            self._state.receive_data(await self._reader.read(PIECE))
        assert not isinstance(event, type)  # PAUSED comes only after a whole request
        return event

    async def switch(self, to: Switch) -> None:
        """Say that another protocol begins, and let it have the socket."""
        if self._state.trailing_data[0]:
            return  # the caller did not wait: what it said is no HTTP any more
        # asyncio would drop descriptors that come along: nothing is to be read by it now.
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]
        headers = [("Connection", "upgrade"), ("Upgrade", to.protocol)]
        self._put(h11.InformationalResponse(status_code=101, headers=headers))
        async with asyncio.timeout(TRANSFER_LIMIT):
            await self._writer.drain()
        watched = self._writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(watched.fileno())) as sock:
            self._writer.transport.abort()
            await to.converse(sock)

    async def send(self, response: Response) -> None:
        """Send `response` as the last there is."""
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
            *([] if response.allow is None else [("Allow", response.allow)]),
            *([] if response.upgrade is None else [("Upgrade", response.upgrade)]),
        ]
        phrase = response.status.phrase
        self._put(h11.Response(status_code=response.status, headers=headers, reason=phrase))
        if self._head is None or self._head.method != b"HEAD":
            self._put(h11.Data(data=response.body))
        self._put(h11.EndOfMessage())
        self._writer.close()
        await self._writer.wait_closed()

    def _put(self, event: h11.Event) -> None:
        self._writer.write(self._state.send(event) or b"")
