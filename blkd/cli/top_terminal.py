# SPDX-License-Identifier: Apache-2.0
"""`blkd top` on a terminal: draw, wait for a key or for the next look, draw again."""

import contextlib
import sys
import time

from rich.console import Console
from rich.live import Live

from blkd.cli.keyboard import RESIZED, Keyboard, keyboard
from blkd.cli.looks import Looks
from blkd.cli.top_screen import columns, page, screen
from blkd.cli.top_view import View, press
from blkd.errors import BlkdError
from blkd.statistics.live_table import rows


def watch(looks: Looks, view: View, count: int | None) -> None:
    """Show what is found until a key ends it, or so many looks are over."""
    console = Console(highlight=False)
    with (
        keyboard(sys.stdin.fileno()) as keys,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
        contextlib.suppress(KeyboardInterrupt),  # Ctrl-C and SIGTERM end it as q does
    ):
        _Screen(looks, view, console, live).run(keys, count)


class _Screen:
    """What is shown, and where it comes from."""

    def __init__(self, looks: Looks, view: View, console: Console, live: Live) -> None:
        self._looks = looks
        self._view = view
        self._console = console
        self._live = live
        self._table = rows({}, looks.first)
        self._time = time.time()
        self._problem: str | None = None

    def run(self, keys: Keyboard, count: int | None) -> None:
        """Show it until it is over."""
        due = time.monotonic() + self._view.interval
        while not self._view.ended and count != 0:
            self._draw()
            pressed = keys.wait(max(due - time.monotonic(), 0.0))
            for key in pressed:
                self._press(key)
            if self._view.wants_look or time.monotonic() >= due:
                self._look()
                due = time.monotonic() + self._view.interval
                count = None if count is None else count - 1

    def _press(self, key: str) -> None:
        if key == RESIZED:
            return
        before, size = self._view, self._console.size
        names = [row.name for row in self._table]
        shown = [column.order for column in columns(names, size.width)]
        fitting = page(size.height)
        pressed = press(before, key, shown, fitting)
        self._view = pressed.scrolled(len(pressed.rows(self._table)), fitting)

    def _look(self) -> None:
        """Look again; where nobody answers, what was found last is shown on, and that."""
        try:
            look = self._looks.next()
        except BlkdError as error:
            self._problem = str(error)
        else:
            self._table = rows(look.before, look.observed)
            self._time, self._problem = look.time, None

    def _draw(self) -> None:
        size = self._console.size
        shown = screen(
            self._table, self._view, self._time, (size.width, size.height), self._problem
        )
        self._live.update(shown, refresh=True)
