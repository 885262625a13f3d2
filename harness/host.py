# SPDX-License-Identifier: Apache-2.0
"""`blkd daemon` as a process of its own, with directories of its own, for tests and drills."""

import contextlib
import json
import os
import shutil
import signal
import socket
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, Self

from harness.daemon import PROGRAMS, Process
from harness.network import Namespace

READY_LIMIT = 20.0  # seconds until it answers
ANSWER_LIMIT = 30.0  # seconds for an answer
GONE_LIMIT = 10.0  # seconds for a process to end


class Refused(Exception):
    """A call was answered with a problem."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem["title"])
        self.problem = problem


class HostDaemon:
    """A daemon with `state`, `run` and `images` in one folder.

    Its exports outlive it, as they are to; leaving the context ends them as well.
    """

    def __init__(
        self, folder: Path, namespace: Namespace | None = None, **settings: object
    ) -> None:
        """Start it; `settings` are further lines of blkd.toml, with `_` for `-`."""
        self.folder = folder
        self._namespace = namespace
        self.images = folder / "images"
        self.images.mkdir(exist_ok=True)
        self.run = folder / "run"
        self.socket = self.run / "blkd.sock"
        self.records = folder / "state" / "exports"
        self.config = folder / "blkd.toml"
        lines = {"state": "state", "run": "run", "images": ["images"], **settings}
        written = [_line(key.replace("_", "-"), value) for key, value in lines.items()]
        self.config.write_text("".join(written))
        self._pids: set[int] = set()
        self.process = self._start()

    def _start(self) -> Process:
        command: list[object] = ["blkd", "daemon", "--config", self.config, "--json"]
        if self._namespace:
            nsenter, *words = self._namespace.entering
            command = [shutil.which(nsenter), *words, PROGRAMS / "blkd", *command[1:]]
        return Process(command, self.folder / "daemon.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.process.poll() is None:
            with contextlib.suppress(OSError, Refused):
                for export in self.exports():
                    self.call("DELETE", f"/v1/exports/{export['name']}")
            with contextlib.suppress(Exception):
                self.process.end()
        self.process.__exit__()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ready(self) -> dict[str, Any]:
        """What it announces once it answers."""
        line = self.process.line(READY_LIMIT)
        assert line, f"it has ended: {self.process.errors()}"
        announced: dict[str, Any] = json.loads(line)
        return announced

    def kill(self) -> None:
        """Kill it, and not its exports."""
        self.exports()
        self.crash()

    def crash(self) -> None:
        """The same without asking it anything, so at any moment."""
        self.process.end(signal.SIGKILL)

    def restart(self) -> dict[str, Any]:
        """Start another one on the same directories, once the first has ended: as `ready`."""
        self.begin_again()
        return self.ready()

    def begin_again(self) -> None:
        """Start another one on the same directories, once the first has ended."""
        self.process.process.wait(GONE_LIMIT)
        self.process.__exit__()
        self.process = self._start()

    def exports(self) -> list[dict[str, Any]]:
        """The list of its exports."""
        found: list[dict[str, Any]] = self.call("GET", "/v1/exports")["exports"]
        self._pids |= {export["pid"] for export in found if export["pid"] is not None}
        return found

    def image(self, name: str, size: int) -> Path:
        """A sparse image that it may serve."""
        path = self.images / name
        path.touch()
        os.truncate(path, size)
        return path

    def add(self, name: str, image: object, **settings: object) -> dict[str, Any]:
        """Add a disk, and have it served: what the daemon shows of it."""
        body = {"name": name, "settings": {"image": str(image), **settings}}
        added: dict[str, Any] = self.call("POST", "/v1/exports", body)
        return added

    def call(
        self, method: str, target: str, body: object = None, wait: float = ANSWER_LIMIT
    ) -> Any:
        """The JSON that is answered to a call, which may take `wait` seconds.

        Raises Refused.
        """
        headers = {"Prefer": f"wait={wait:g}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        with contextlib.closing(_Connection(self.socket, wait + ANSWER_LIMIT)) as connection:
            connection.request(method, target, data, headers)
            response: HTTPResponse = connection.getresponse()
            answer = json.loads(response.read())
        if response.status >= 400:  # noqa: PLR2004 - where HTTP's errors begin
            raise Refused(answer)
        return answer

    def stream(self, target: str) -> str:
        """The text that is answered to a call which ends its answer by itself."""
        with contextlib.closing(_Connection(self.socket, ANSWER_LIMIT)) as connection:
            connection.request("GET", target)
            return connection.getresponse().read().decode()


def _line(key: str, value: object) -> str:
    """A line of TOML; a table is one with dots in its keys."""
    if isinstance(value, dict):
        return "".join(_line(f"{key}.{inner}", each) for inner, each in value.items())
    return f"{key} = {json.dumps(value)}\n"


class _Connection(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path, limit: float) -> None:
        super().__init__("blkd")
        self._path = path
        self._limit = limit

    def connect(self) -> None:
        """Connect to the daemon."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._limit)
        self.sock.connect(str(self._path))
