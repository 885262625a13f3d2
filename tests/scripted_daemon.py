# SPDX-License-Identifier: Apache-2.0
"""Plays a daemon at a UNIX socket: answers as a test says, and notes what it was asked."""

import contextlib
import json
import socketserver
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """What a call is answered with."""

    body: Any = None
    """Sent as JSON; bytes as they are."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What a call asked."""

    method: str
    target: str
    body: Any = None


def problem(status: int, kind: str, detail: str, hint: str | None = None) -> Answer:
    """A refusal, as RFC 9457 has it."""
    fields = {"type": f"urn:blkd:problem:{kind}", "title": kind.replace("-", " ").capitalize()}
    return Answer({**fields, "status": status, "detail": detail, "hint": hint}, status)


class ScriptedDaemon:
    """Answers each call with the next of the answers for its method and path.

    The last answer is kept for all further calls.  One that can be called is, with the call, before
    it is answered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[Call] = []
        self._answers: dict[tuple[str, str], list[Any]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        server = self._stack.enter_context(_Server(str(self.path), _handler(self)))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(server.shutdown)
        self._stack.callback(self.path.unlink)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def on(self, method: str, path: str, *answers: Any) -> None:
        """Answer calls of a path: with an Answer, or with what is 200 and this JSON."""
        self._answers[method, path] = [
            each if isinstance(each, Answer) or callable(each) else Answer(each) for each in answers
        ]

    def answer(self, call: Call) -> Answer:
        self.calls.append(call)
        answers = self._answers.get((call.method, call.target.partition("?")[0]))
        if not answers:
            return Answer({"title": "Not Found", "status": 404}, 404)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(call) if callable(answer) else answer


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Say nothing on standard error, which a test may read: a caller has left."""


def _handler(daemon: ScriptedDaemon) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self):
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(data) if data else None
            answer = daemon.answer(Call(self.command, self.path, body))
            raw = isinstance(answer.body, bytes)
            sent = answer.body if raw else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if not raw:
                self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)
            self.close_connection = True

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - as http.server wants them

        def log_message(self, *_):
            """Say nothing."""

    return Handler
