# SPDX-License-Identifier: Apache-2.0
"""`blkd top`: what all exports do, as it changes."""

import sys
from collections.abc import Iterator

import click
import msgspec

from blkd.cli.daemon_verbs import print_line
from blkd.cli.figures_source import OfDaemon, OfProcess
from blkd.cli.looks import LEAST_INTERVAL, MOST_INTERVAL, Look, Looks
from blkd.cli.output import encode, json_option
from blkd.cli.target import control_path, daemon_option
from blkd.cli.top_view import View, ordered_by
from blkd.control.daemon_client import Daemon
from blkd.statistics.live_table import ORDERS, Order, rows


@click.command()
@click.option(
    "--interval",
    "-d",
    type=click.FloatRange(LEAST_INTERVAL, MOST_INTERVAL),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to measure for each table.",
)
@click.option(
    "--count", "-n", type=click.IntRange(1), metavar="NUMBER", help="End after so many tables."
)
@click.option(
    "--sort",
    type=click.Choice(ORDERS),
    default="iops",
    show_default=True,
    help="By what to order the exports.",
)
@click.option("--no-idle", is_flag=True, help="Leave out exports that do nothing.")
@control_path
@daemon_option
@json_option
def top(
    daemon: Daemon,
    *,
    interval: float,
    count: int | None,
    sort: Order,
    no_idle: bool,
    control: str | None,
    as_json: bool,
) -> None:
    """Show what all exports do at present, as a table that changes; the key h tells the others.

    Where standard output is no terminal, a table is printed after each interval; with --json a
    line, which is an object.  What was before the first interval is not shown.
    """
    source = OfDaemon(daemon) if control is None else OfProcess(control, daemon.limit)
    view = ordered_by(View(interval=interval, with_idle=not no_idle), sort)
    looks = Looks(source)
    if not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        # Only here: what it draws with is slow to import.
        from blkd.cli.top_terminal import watch  # noqa: PLC0415

        watch(looks, view, count)
        return
    lines = json_lines if as_json else plain_lines
    for look in looks.each(interval, count):
        for line in lines(look, view):
            print_line(line)


def json_lines(look: Look, view: View) -> Iterator[str]:
    """A look for a program, as one line."""
    table = view.rows(rows(look.before, look.observed))
    yield encode({"time": look.time, "exports": msgspec.to_builtins(table)})


def plain_lines(look: Look, view: View) -> Iterator[str]:
    """A look for a file or another command, as a table and an empty line."""
    from blkd.cli.top_screen import clock, plain  # noqa: PLC0415 - it imports rich

    yield clock(look.time)
    yield from plain(rows(look.before, look.observed), view)
    yield ""
