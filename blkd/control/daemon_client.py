# SPDX-License-Identifier: Apache-2.0
"""Calls of a daemon's API from another process."""

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, Any, Final
from urllib.parse import quote, urlencode

import msgspec

from blkd.control import client, daemon_models
from blkd.control.daemon_models import Event, Operation
from blkd.control.models import Problem
from blkd.errors import ControlError

FORBIDDEN: Final = "blkd.toml names who may read (read-group) and who may change (change-group)"
MISSING: Final = "is blkd daemon running?  --daemon or BLKD_SOCKET name the socket of another one"
FIRST_POLL: Final = 0.05  # seconds between two questions how far an operation is
LAST_POLL: Final = 0.5
MOST_LINE: Final = 1 << 20  # bytes of a line of events

Observe = Callable[[Operation], None]
"""Is shown an operation each time that something new may be known of it."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon, which answers at the socket `path`.

    Every method raises SocketError where nobody answers, and ControlError where the call is refused
    or no answer comes in time.
    """

    path: str
    limit: float = client.ANSWER_LIMIT
    """Seconds that an answer may take, beyond what the call itself may wait."""

    def get(self, target: str, **query: object) -> Any:
        """What GET answers."""
        status, answer, _ = self._exchange("GET", _with_query(target, query))
        return _result(status, answer)

    def call(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        wait: float = 0,
        observe: Observe | None = None,
        **query: object,
    ) -> Any:
        """What a call that changes something comes to, however long that takes.

        Args:
            method: POST, PATCH or DELETE.
            target: The path.
            body: What to send as JSON, if anything.
            wait: Seconds that the call may take by its nature before the daemon says that it goes
                on as an operation.
            observe: Is shown each state of an operation that goes on.
            query: Parameters behind the path.

        An operation that may be cancelled is, if this is interrupted meanwhile.
        """
        status, answer, headers = self._exchange(method, _with_query(target, query), body, wait)
        if status != HTTPStatus.ACCEPTED:
            return _result(status, answer)
        operation = client.decode(answer, Operation)
        place = headers.get("Location") or f"{daemon_models.OPERATIONS}/{operation.id}"
        try:
            return self._await_end(place, operation, observe)
        except KeyboardInterrupt:
            self._cancel(place)
            raise

    def events(self, since: int | None = None, *, follow: bool) -> Iterator[Event]:
        """The events after the one with the id `since`; with `follow` also those to come.

        Ends at the present unless `follow`, or when the daemon does.  An event to come is waited
        for without a limit: nobody knows when there is one.
        """
        query = {"since": since, "follow": None if follow else "false"}
        with self._connection(self.limit) as connection:
            sock = connection.sock  # of which http.client lets go before the answer has ended
            with self._speaking(self.limit):
                connection.request("GET", _with_query(daemon_models.EVENTS, query))
                response = connection.getresponse()
                if response.status != HTTPStatus.OK:
                    raise _refusal(response.status, response.read())
            if follow:
                sock.settimeout(None)
            with self._speaking(self.limit):
                yield from read_events(response)

    def _await_end(self, place: str, operation: Operation, observe: Observe | None) -> Any:
        pause = FIRST_POLL
        while operation.status == "running":
            if observe is not None:
                observe(operation)
            time.sleep(pause)
            pause = min(2 * pause, LAST_POLL)
            operation = msgspec.convert(self.get(place), Operation)
        if observe is not None:
            observe(operation)
        if isinstance(operation.problem, Problem):
            raise client.refusal(operation.problem)
        if operation.status != "done":
            raise ControlError(f"{operation.call} was {operation.status}")
        return operation.result

    def _cancel(self, place: str) -> None:
        """Have an operation end early, if it can: the daemon says no otherwise."""
        with contextlib.suppress(ControlError):
            self._exchange("DELETE", place)

    def _exchange(
        self, method: str, target: str, body: object = None, wait: float = 0
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of the answer."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if data else {}
        with self._connection(self.limit + wait) as connection, self._speaking(self.limit + wait):
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            return response.status, response.read(), dict(response.headers)

    @contextlib.contextmanager
    def _connection(self, limit: float) -> Iterator[http.client.HTTPConnection]:
        with contextlib.closing(http.client.HTTPConnection("blkd")) as connection:
            connection.sock = client.connect(self.path, limit, forbidden=FORBIDDEN, missing=MISSING)
            yield connection

    @contextlib.contextmanager
    def _speaking(self, limit: float) -> Iterator[None]:
        """Name what goes wrong on a connection."""
        try:
            yield
        except TimeoutError as error:
            raise client.no_answer(self.path, limit) from error
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{self.path} does not speak the control API: {error!r}") from error


def export_path(name: str, *, verb: str | None = None) -> str:
    """Where the API has an export, or what is done with it."""
    place = f"{daemon_models.EXPORTS}/{quote(name, safe='')}"
    return place if verb is None else f"{place}/{verb}"


def read_events(stream: IO[bytes] | http.client.HTTPResponse) -> Iterator[Event]:
    """The events that are in a stream of server-sent events."""
    data: list[bytes] = []
    while line := stream.readline(MOST_LINE):
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif not field and not value and data:
            yield client.decode(b"\n".join(data), Event)
            data.clear()


def _with_query(target: str, query: Mapping[str, object]) -> str:
    given = {name.replace("_", "-"): value for name, value in query.items() if value is not None}
    return f"{target}?{urlencode(given)}" if given else target


def _result(status: int, answer: bytes) -> Any:
    if status >= HTTPStatus.BAD_REQUEST:
        raise _refusal(status, answer)
    return client.decode(answer, Any) if answer else None


def _refusal(status: int, answer: bytes) -> ControlError:
    problem = client.decode(answer, Problem)
    if status == HTTPStatus.NOT_FOUND and problem.type == "about:blank":
        return ControlError(
            f"the daemon has no such call: {problem.detail or problem.title}",
            hint="it is of another version: blkd --version says this one's",
        )
    return client.refusal(problem)
