# SPDX-License-Identifier: Apache-2.0
"""blkd as a process of its own, for tests and drills whose steps block.

Beside a guest, where nothing may block, it is `harness.server`.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

PROGRAMS = Path(sys.executable).parent
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def run(*arguments: object, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run one command of `blkd` to its end."""
    return subprocess.run(
        [PROGRAMS / "blkd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Process:
    """A running program; leaving the context ends it, by force if need be."""

    def __init__(
        self, command: list[object], log: Path, *, block: bool = False, **options: Any
    ) -> None:
        """Start `command`; with `block`, signals that come early wait until it fetches them."""
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [PROGRAMS / str(command[0]), *map(str, command[1:])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                preexec_fn=_block_signals if block else None,  # noqa: PLW1509 - no threads here
                **options,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self, timeout: float = 10) -> str:
        """The next line of its standard output."""
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        assert ready, f"nothing said within {timeout} s: {self.errors()}"
        return str(self.process.stdout.readline(), "utf-8")

    def end(self, number: int | None = signal.SIGTERM, timeout: float = 6) -> int:
        """Send a signal, if any, and wait: the exit status."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    def errors(self) -> str:
        return self.log.read_text()


OWN_MEMORY = "memfd:blkd-statistics"


class Serving(Process):
    """A program that serves a disk."""

    image: Path
    socket: Path
    control: Path

    @property
    def sockets(self) -> tuple[Path, Path]:
        return self.socket, self.control

    def ready(self) -> Any:
        """Wait until it serves: the state that it announces."""
        line = self.line()
        assert line, self.errors()
        return json.loads(line)

    def call(self, verb: str, *arguments: object) -> Any:
        """What the command `verb` answers."""
        done = run(verb, *arguments, "--control", self.control, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def mapped_memory(self) -> int:
        """How many memory files the process has mapped, without the one that has its counts."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return maps.count("memfd:") - maps.count(OWN_MEMORY)

    def pause(self, deadline: float) -> int:
        """Pause it: the requests that are still in flight when `deadline` seconds are over."""
        done = run("pause", "--control", self.control, "--json", "--deadline", deadline)
        result = json.loads(done.stdout)
        in_flight: int = result["in_flight"]
        assert result == {"paused": True, "drained": in_flight == 0, "in_flight": in_flight}
        assert done.returncode == (in_flight > 0), done.stderr
        return in_flight

    def wait_for(self, field: str, value: object, timeout: float = 10) -> None:
        """Wait until `blkd show` has `value` for `field`."""
        deadline = time.monotonic() + timeout
        while (state := self.call("show"))[field] != value:
            assert time.monotonic() < deadline, f"{field} is {state[field]}, not {value}"

    def wait_for_front_end(self, timeout: float = 10) -> None:
        """Wait until somebody is connected."""
        deadline = time.monotonic() + timeout
        while self.call("show")["front_end"] is None:
            assert time.monotonic() < deadline, "nobody is connected"

    def wait_for_log(self, event: str, timeout: float = 10, **fields: object) -> Any:
        """Wait until an event was logged, with these fields: all of them."""
        deadline = time.monotonic() + timeout
        while True:
            for line in self.errors().splitlines():
                logged = json.loads(line)
                if {"event": event, **fields}.items() <= logged.items():
                    return logged
            assert time.monotonic() < deadline, self.errors()
            time.sleep(0.01)


class Daemon(Serving):
    """`blkd serve`, ready for front ends."""

    def __init__(self, image: Path, directory: Path, *options: object, **popen: Any) -> None:
        self.image = image
        self.socket = directory / "disk.sock"
        self.control = directory / "control.sock"
        command = ["blkd", "serve", image, "--socket", self.socket, "--control", self.control]
        super().__init__([*command, "--json", *options], directory / "log", **popen)


class Taker(Serving):
    """`blkd upgrade`, which takes over what another process serves."""

    def __init__(self, served: Serving, control: Path | None = None, **popen: Any) -> None:
        """Begin; `control` is where it asks, if that is not the other's own socket."""
        self.image, self.socket, self.control = served.image, served.socket, served.control
        command = ["blkd", "upgrade", "--control", control or served.control, "--json"]
        name, _, number = served.log.name.partition(".")
        log = served.log.with_name(f"{name}.{int(number or 0) + 1}")
        super().__init__(command, log, **popen)


def image(path: Path, size: int = 1 << 20) -> Path:
    """A sparse image at `path`."""
    with path.open("wb") as file:
        os.ftruncate(file.fileno(), size)
    return path


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
