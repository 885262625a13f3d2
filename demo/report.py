# SPDX-License-Identifier: Apache-2.0
"""What the demo has seen, step by step, and how it says so."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blkd.errors import BlkdError
from harness.fio import Transfer

MIB: Final = 1 << 20
LIMIT: Final = 300.0
"""Seconds for all of it, so that a demo which hangs fails and cleans up."""


class DemoError(BlkdError):
    """Something was seen that should have been otherwise."""


class Report:
    """What was seen, step by step."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.failed = False
        self._table = Table("step", "what was seen", "took", box=SIMPLE_HEAD)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what it puts in the list is reported.  An error is noted and goes on up."""
        seen: list[str] = []
        began = time.monotonic()
        with self.console.status(name):
            try:
                yield seen
            except BaseException as error:
                self.failed = True
                seen.append(f"[bold red]FAILED[/]: {describe(error)}")
                raise
            finally:
                took = time.monotonic() - began
                self._table.add_row(name, "\n".join(seen), f"{took:.1f} s")

    def show(self) -> None:
        """Print it."""
        self.console.print(self._table)


def describe(error: BaseException) -> str:
    """An error as a person wants to read it, safe to print."""
    if isinstance(error, asyncio.CancelledError):
        return f"interrupted, or not done in {LIMIT:g} s"
    hint = f"\nhint: {error.hint}" if isinstance(error, BlkdError) and error.hint else ""
    return escape(f"{error or type(error).__name__}{hint}")


def expect(what: str, seen: object, wanted: object) -> None:
    """Raise DemoError unless `seen` is what was wanted."""
    if seen != wanted:
        raise DemoError(f"{what}: {seen!r}, expected {wanted!r}")


def mib(size: int) -> str:
    """Bytes in MiB."""
    return f"{size / MIB:g} MiB"


def rate(seen: Transfer) -> str:
    """How much was moved, and how fast."""
    return f"{mib(seen.bytes)} in {seen.requests} requests, {seen.iops:.0f}/s"
