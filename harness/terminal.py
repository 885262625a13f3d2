# SPDX-License-Identifier: Apache-2.0
"""A program in a terminal of its own, whose screen can be read and whose keys can be pressed."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import pyte

LIMIT = 20.0  # seconds until something is to be seen
PERIOD = 0.05
MOST_READ = 65536
SIZE = frozenset({"COLUMNS", "LINES"})
"""What readline puts into the environment where it is imported: a size that stays the same."""
AS_A_SHELL_DOES = ("setsid", "--ctty", "env", "--default-signal=INT")
"""It is the program's own terminal, so that Ctrl-C in it is SIGINT; which may be ignored here."""


class Terminal:
    """A terminal with a program in it; leaving the context ends the program."""

    def __init__(self, command: Sequence[object], columns: int = 120, lines: int = 24) -> None:
        """Start the program on a screen of that size."""
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self._resize(columns, lines)
        self.modes_before = self.modes
        self.process = subprocess.Popen(
            [*AS_A_SHELL_DOES, *map(str, command)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={name: value for name, value in os.environ.items() if name not in SIZE}
            | {"TERM": "xterm-256color"},
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(self.screen.display)

    @property
    def modes(self) -> Any:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self._ours)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the screen another size, as a window gets it."""
        self.screen.resize(lines, columns)
        self._resize(columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("=HHHH", lines, columns, 0, 0))

    def wait_for(self, is_so: Callable[[str], object], limit: float = LIMIT) -> None:
        """Wait until the screen is as it should be."""
        deadline = time.monotonic() + limit
        while not is_so(self.text):
            assert time.monotonic() < deadline, f"this is on the screen:\n{self.text}"
            self._read()

    def wait_for_end(self, limit: float = LIMIT) -> int:
        """The exit status, once the program has ended; reads on meanwhile."""
        deadline = time.monotonic() + limit
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.text}"
            self._read()
        self._read()
        return self.process.returncode

    def _read(self) -> None:
        ready, _, _ = select.select([self._ours], [], [], PERIOD)
        if ready:
            with contextlib.suppress(OSError):  # nobody has the other end any more
                self._stream.feed(os.read(self._ours, MOST_READ))
