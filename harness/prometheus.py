# SPDX-License-Identifier: Apache-2.0
"""Prometheus as a process of its own, which scrapes a daemon over the loopback."""

import contextlib
import json
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.daemon import Process

READY_LIMIT = 30.0  # seconds until it answers
ANSWER_LIMIT = 10.0  # seconds for an answer
DATA_LIMIT = 30.0  # seconds for data to come
PERIOD = 0.1  # seconds between two questions
INTERVAL = 1  # seconds between two scrapes


class Prometheus(Process):
    """One with a database and a port of its own; leaving the context ends it."""

    def __init__(self, folder: Path, target: str, rules: Sequence[Path] = ()) -> None:
        """Start it, to scrape `target`, HOST:PORT, and to look after these files of rules."""
        self._address = f"127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        scraped = {"job_name": "blkd", "static_configs": [{"targets": [target]}]}
        every = f"{INTERVAL}s"
        config.write_text(
            json.dumps(  # YAML has JSON in it
                {
                    "global": {"scrape_interval": every, "evaluation_interval": every},
                    "rule_files": [str(path) for path in rules],
                    "scrape_configs": [scraped],
                }
            )
        )
        command: list[object] = [
            shutil.which("prometheus") or "/usr/bin/prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]
        super().__init__(command, folder / "prometheus.log")

    def ready(self) -> None:
        """Wait until it answers."""
        self._wait(lambda: self._get("/-/ready"), READY_LIMIT, "it is not ready")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that a query finds now."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        found: list[dict[str, Any]] = self._data(path)["result"]
        return found

    def value(self, expression: str) -> float:
        """The value of the only series that a query finds, once it does."""
        (found,) = self.wait_for(expression)
        return float(found["value"][1])

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The series that a query finds, once there are any."""
        found: list[dict[str, Any]] = self._wait(
            lambda: self.query(expression), DATA_LIMIT, f"no data: {expression}"
        )
        return found

    def rules(self) -> list[dict[str, Any]]:
        """The rules that it looks after: each with its `health` and its `alerts`."""
        groups = self._data("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _wait(self, ask: Any, limit: float, otherwise: str) -> Any:
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                if answer := ask():
                    return answer
            assert time.monotonic() < deadline, f"{otherwise}: {self.errors()}"
            time.sleep(PERIOD)

    def _data(self, path: str) -> Any:
        return json.loads(self._get(path))["data"]

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(
            f"http://{self._address}{path}", timeout=ANSWER_LIMIT
        ) as response:
            text: bytes = response.read()
            return text


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has at present."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
