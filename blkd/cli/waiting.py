# SPDX-License-Identifier: Apache-2.0
"""What a person sees while the daemon works: a bar on a terminal, lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from blkd.control.daemon_client import Observe
from blkd.control.daemon_models import Operation

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WAITING = "waiting for the daemon"
STEP = 0.1  # of the whole: a line for each
WHOLE = 1000  # steps of a bar


@contextlib.contextmanager
def watch(*, as_json: bool) -> Iterator[Observe | None]:
    """Yield what shows on standard error how far an operation is; None for a program."""
    if as_json:
        yield None
    elif sys.stderr.isatty():
        with contextlib.closing(Bar()) as bar:
            yield bar
    else:
        yield Lines()


class Lines:
    """A line each time that something else is done, or a tenth more."""

    def __init__(self) -> None:
        self._said: tuple[str | None, int] | None = None

    def __call__(self, operation: Operation) -> None:
        """Say how far it is, if that is known and news."""
        if operation.status != "running" or operation.doing is None:
            return
        tenths = None if operation.progress is None else int(operation.progress / STEP)
        news = (operation.doing, tenths or 0)
        if news != self._said:
            self._said = news
            click.echo(describe(operation), err=True)


class Bar:
    """A bar that is gone when the operation has ended."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID

    def __call__(self, operation: Operation) -> None:
        """Draw how far it is."""
        doing = operation.doing or WAITING
        total = None if operation.progress is None else WHOLE
        completed = round((operation.progress or 0.0) * WHOLE)
        if self._progress is None:
            # Only now: it is slow, and most calls take no time.
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import Progress  # noqa: PLC0415

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(doing, total=total, completed=completed)
            self._progress.start()
        else:
            self._progress.update(
                self._task, description=doing, total=total, completed=completed, refresh=True
            )

    def close(self) -> None:
        """Take it from the terminal."""
        if self._progress is not None:
            self._progress.stop()


def describe(operation: Operation) -> str:
    """A line that says how far an operation is."""
    doing = operation.doing or WAITING
    return doing if operation.progress is None else f"{doing}: {operation.progress:.0%}"
