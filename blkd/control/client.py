# SPDX-License-Identifier: Apache-2.0
"""One call of the control API from another process."""

import contextlib
import errno
import http.client
import os
import select
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import msgspec

from blkd.control import models
from blkd.errors import ControlError, SocketError
from blkd.host.unix_socket import UCRED

ANSWER_LIMIT = 10.0  # seconds for an answer, beyond what the call itself may wait


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
        return _decode(answer, Any)
    raise _refusal(status, answer)


def switch(path: str, target: str, protocol: str, *, limit: float = ANSWER_LIMIT) -> socket.socket:
    """The socket on which the API at `path` goes on with `protocol`; the caller owns it.

    Raises:
        ControlError: the call was refused, or there was no answer within `limit` seconds.
        SocketError: nobody answers at `path`.
    """
    headers = {"Connection": "upgrade", "Upgrade": protocol}
    with contextlib.closing(http.client.HTTPConnection("blkd")) as connection:
        connection.sock = sock = _connect(path, limit)
        try:
            connection.request("POST", target, headers=headers)
            response = connection.getresponse()
            if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return sock.dup()
            raise _refusal(response.status, response.read())
        except TimeoutError as error:
            raise _no_answer(path, limit) from error
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
        with _connect(path, ANSWER_LIMIT) as sock:
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


def _no_answer(path: str, limit: float) -> ControlError:
    return ControlError(
        f"no answer from {path} within {limit:g} s",
        hint="the process that listens there may be stopped; --timeout waits for longer",
    )


def _refusal(status: int, answer: bytes) -> ControlError:
    problem = _decode(answer, models.Problem)
    if status == HTTPStatus.NOT_FOUND:
        return ControlError(
            f"there is no call {problem.detail} there",
            hint="the process is of an older version: blkd upgrade, or SIGTERM, works all the same",
        )
    return ControlError(problem.detail or problem.title, hint=problem.hint)


def _exchange(path: str, method: str, target: str, body: object, limit: float) -> tuple[int, bytes]:
    data = None if body is None else msgspec.json.encode(body)
    headers = {"Content-Type": "application/json"} if data else {}
    with contextlib.closing(http.client.HTTPConnection("blkd")) as connection:
        connection.sock = _connect(path, limit)
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            raise _no_answer(path, limit) from error
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"{path} does not speak the control API: {error}") from error


def _connect(path: str, limit: float) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.settimeout(limit)
        try:
            sock.connect(path)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM}:
                raise SocketError(
                    f"{path} may not be opened by this user: {os.strerror(error.errno)}",
                    hint="be its owner, or serve with --control-group and --control-mode",
                ) from error
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise SocketError(
                f"nobody answers at {path}: {reason}",
                hint="is `blkd serve --control` running with this path?",
            ) from error
        undo.pop_all()
    return sock


def _decode(answer: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise ControlError(f"the answer is not of the control API: {error}") from error
