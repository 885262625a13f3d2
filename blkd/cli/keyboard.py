# SPDX-License-Identifier: Apache-2.0
"""Keys of a terminal, one at a time, without their being shown."""

import contextlib
import os
import re
import select
import signal
import termios
import time
import tty
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

MOST_READ: Final = 4096  # bytes
RESIZED: Final = "resized"
"""The key that no keyboard has: the terminal has another size."""

SEQUENCES: Final = MappingProxyType(
    {
        "\x1b[A": "up",
        "\x1bOA": "up",
        "\x1b[B": "down",
        "\x1bOB": "down",
        "\x1b[C": ">",
        "\x1bOC": ">",
        "\x1b[D": "<",
        "\x1bOD": "<",
        "\x1b[5~": "pageup",
        "\x1b[6~": "pagedown",
        "\x1b[H": "home",
        "\x1b[1~": "home",
        "\x1b": "escape",
        "\r": "enter",
        "\n": "enter",
        "\x7f": "backspace",
        "\b": "backspace",
        "\x03": "interrupt",
        "\x04": "interrupt",
    }
)
"""What terminals send for keys that are no characters (ECMA-48, and xterm's two modes)."""
KEY: Final = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|O.)|.", re.DOTALL)


def keys_in(text: str) -> list[str]:
    """The keys that a terminal has sent: characters, and names of those that are none."""
    found = (SEQUENCES.get(each, each) for each in KEY.findall(text))
    return [key for key in found if not key.startswith("\x1b")]


class Keyboard:
    """The keys of a terminal, and a note that its size has changed."""

    def __init__(self, terminal: int, wakeups: int) -> None:
        """Read both descriptors, which are borrowed."""
        self._terminal = terminal
        self._wakeups = wakeups

    def wait(self, limit: float) -> list[str]:
        """The keys that were pressed, once there are any or `limit` seconds are over."""
        deadline = time.monotonic() + limit
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            ready, _, _ = select.select([self._terminal, self._wakeups], [], [], left)
            if self._wakeups in ready:
                os.read(self._wakeups, MOST_READ)
                return [RESIZED]
            if not ready:
                return []
            read = os.read(self._terminal, MOST_READ)
            if not read:  # nobody is there any more
                return ["interrupt"]
            if keys := keys_in(read.decode(errors="ignore")):
                return keys


def _forbid_suspending(terminal: int) -> None:
    """Have Ctrl-Z do nothing."""
    *modes, characters = termios.tcgetattr(terminal)
    characters[termios.VSUSP] = b"\0"
    termios.tcsetattr(terminal, termios.TCSADRAIN, [*modes, characters])


@contextlib.contextmanager
def keyboard(terminal: int) -> Iterator[Keyboard]:
    """Read the keys of the terminal behind a descriptor, while the context lasts.

    It is as it was afterwards, also after an exception.
    """
    with contextlib.ExitStack() as undo:
        before = termios.tcgetattr(terminal)
        undo.callback(termios.tcsetattr, terminal, termios.TCSADRAIN, before)
        tty.setcbreak(terminal)
        _forbid_suspending(terminal)  # the shell would be left in the state of this screen
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        undo.callback(os.close, read)
        undo.callback(os.close, write)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write, warn_on_full_buffer=False))
        undo.callback(
            signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, lambda *_: None)
        )
        yield Keyboard(terminal, read)
