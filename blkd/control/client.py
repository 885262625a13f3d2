# SPDX-License-Identifier: Apache-2.0
"""One call of the control API from another process."""

import contextlib
import errno
import http.client
import io
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from blkd.control import models
from blkd.errors import ControlError, NoAnswer, SocketError
from blkd.host.unix_socket import UCRED

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

ANSWER_LIMIT = 10.0  # seconds for an answer, beyond what the call itself may wait
MAX_ANSWER = 4 * 1024 * 1024  # bytes: who answers may be in the hands of a guest
END_OF_REFUSALS = 600  # of statuses of HTTP that refuse a call
MAX_HEADS = 256 * 1024  # bytes before them
FORBIDDEN = "be its owner, or serve with --control-group and --control-mode"
MISSING = "is `blkd serve --control` running with this path?"


def call(
    path: str,
    method: str,
    target: str,
    body: object = None,
    *,
    wait: float = 0,
    limit: float = ANSWER_LIMIT,
) -> Any:
    """The JSON that the API at the socket `path` answers to `method target`.

    Args:
        path: The socket that `blkd serve --control` listens on.
        method: GET or POST.
        target: One of the paths in `models`.
        body: What to send as JSON, if anything.
        wait: Seconds that the call may take by its nature.
        limit: Seconds that the answer may take beyond that.

    Raises:
        ControlError: the call was refused, or there was no answer in time; the message says so.
        SocketError: nobody answers at `path`.
    """
    status, answer = _exchange(path, method, target, body, wait + limit)
    if status < 400:  # noqa: PLR2004 - where HTTP's errors begin
        return decode(answer, Any)
    raise _refusal(status, answer)


def switch(path: str, target: str, protocol: str, *, limit: float = ANSWER_LIMIT) -> socket.socket:
    """The socket on which the API at `path` goes on with `protocol`; the caller owns it.

    Raises:
        ControlError: the call was refused, or there was no answer within `limit` seconds.
        SocketError: nobody answers at `path`.
    """
    headers = {"Connection": "upgrade", "Upgrade": protocol}
    with contextlib.closing(http.client.HTTPConnection("blkd")) as connection:
        sock = connect(path, limit)
        connection.sock = _Bounded(sock, limit)
        try:
            connection.request("POST", target, headers=headers)
            response = connection.getresponse()
            if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
                kept = sock.dup()
                kept.settimeout(limit)
                return kept
            raise _refusal(response.status, response.read(MAX_ANSWER))
        except TimeoutError as error:
            raise no_answer(path, limit) from error
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{path} does not speak the control API: {error}") from error


@contextlib.contextmanager
def watch_process(path: str) -> Iterator[Callable[[float], bool]]:
    """Watch the process that answers at `path`.

    Yields a function that waits for its end, for up to so many seconds: whether it has ended.  A
    process that cannot be watched from here, in another namespace, counts as ended.

    Raises:
        SocketError: nobody answers at `path`.
    """
    with contextlib.ExitStack() as stack:
        with connect(path, ANSWER_LIMIT) as sock:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        try:
            handle = os.pidfd_open(UCRED.unpack(credentials)[0])
        except OSError:
            yield lambda _limit: True
            return
        stack.callback(os.close, handle)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        yield lambda limit: bool(poll.poll(limit * 1000))


def no_answer(path: str, limit: float) -> NoAnswer:
    """What is raised where nothing came from `path` for `limit` seconds."""
    return NoAnswer(
        f"no answer from {path} within {limit:g} s",
        hint="the process that listens there may be stopped; --timeout waits for longer",
    )


def _refusal(status: int, answer: bytes) -> ControlError:
    problem = decode(answer, models.Problem)
    if status == HTTPStatus.NOT_FOUND:
        return ControlError(
            f"there is no call {problem.detail} there",
            hint="the process is of an older version: blkd upgrade, or SIGTERM, works all the same",
        )
    return refusal(problem)


def refusal(problem: models.Problem) -> ControlError:
    """The error that a problem of the API is for who called."""
    error = ControlError(problem.detail or problem.title, hint=problem.hint)
    error.kind, error.title = problem.type, problem.title
    # It is answered again by a daemon: who answered it may be in the hands of a guest.
    is_refusal = HTTPStatus.BAD_REQUEST <= problem.status < END_OF_REFUSALS
    error.status = problem.status if is_refusal else HTTPStatus.INTERNAL_SERVER_ERROR
    return error


def _exchange(path: str, method: str, target: str, body: object, limit: float) -> tuple[int, bytes]:
    data = None if body is None else msgspec.json.encode(body)
    headers = {"Content-Type": "application/json"} if data else {}
    with contextlib.closing(http.client.HTTPConnection("blkd")) as connection:
        connection.sock = _Bounded(connect(path, limit), limit)
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER + 1)
        except TimeoutError as error:
            raise no_answer(path, limit) from error
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{path} does not speak the control API: {error}") from error
    if len(answer) > MAX_ANSWER:
        raise ControlError(f"the answer of {path} is longer than {MAX_ANSWER} bytes")
    return response.status, answer


class _Bounded:
    """A connection for `http.client`, whose answer has an end whatever who answers may send.

    There is no limit in `http.client` to what comes before an answer ("100 Continue"), nor to the
    time in which it comes byte by byte.
    """

    def __init__(self, sock: socket.socket, limit: float) -> None:
        """Takes `sock`; all of the answer comes within `limit` seconds."""
        self._sock = sock
        self._deadline = time.monotonic() + limit
        self.close = sock.close
        self.sendall = sock.sendall

    def makefile(self, _mode: str) -> io.BufferedReader:
        """As `http.client` reads; raises TimeoutError, or HTTPException of what is too long."""
        return io.BufferedReader(_Answer(self._sock, self._deadline))


class _Answer(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock.dup()  # the connection closes its own before it is read
        self._deadline = deadline
        self._left = MAX_HEADS + MAX_ANSWER

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        count = self._sock.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise http.client.HTTPException("the answer does not end")
        return count

    def close(self) -> None:
        self._sock.close()
        super().close()


def connect(
    path: str, limit: float, *, forbidden: str = FORBIDDEN, missing: str = MISSING
) -> socket.socket:
    """A connection to who listens at `path`; the caller owns it.

    Args:
        path: The socket.
        limit: Seconds that each step on the connection may take.
        forbidden: The hint where this user may not connect.
        missing: The hint where nobody listens.

    Raises:
        SocketError: nobody answers at `path`.
    """
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.settimeout(limit)
        try:
            sock.connect(path)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM}:
                raise SocketError(
                    f"{path} may not be opened by this user: {os.strerror(error.errno)}",
                    hint=forbidden,
                ) from error
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise SocketError(
                f"nobody answers at {path}: {reason}",
                hint=missing,
            ) from error
        undo.pop_all()
    return sock


def decode(answer: bytes, kind: Any) -> Any:
    """What JSON of the API says, as a value of the type `kind`.  Raises ControlError."""
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ControlError(f"the answer is not of the control API: {error}") from error
