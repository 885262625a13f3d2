# SPDX-License-Identifier: Apache-2.0
"""The commands that a daemon alone answers: which exports there are, and what is wanted of them."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from blkd.cli import tables
from blkd.cli.completion import complete_names
from blkd.cli.output import encode, json_option, print_result
from blkd.cli.target import ByName, daemon_option
from blkd.cli.waiting import watch
from blkd.control.daemon_client import Daemon, export_path
from blkd.control.daemon_models import DEFAULT_LINES, EXPORTS, MAX_LINES, Event
from blkd.errors import ControlError, SocketError

RETURN_LIMIT: Final = 30.0
"""Seconds for a daemon that has ended to be there again, for who follows its events."""
RETURN_POLL: Final = 0.2

given_name = click.argument("name", shell_complete=complete_names)
"""The argument NAME, which must be given."""


@click.command()
@daemon_option
@json_option
def ls(daemon: Daemon, *, as_json: bool) -> None:
    """List the exports of the daemon."""
    print_result(daemon.get(EXPORTS), title="exports", as_json=as_json)


@click.command()
@given_name
@click.option(
    "--delete-image", is_flag=True, help="Delete the image, too: all that the disk holds is lost."
)
@daemon_option
@json_option
def rm(daemon: Daemon, name: str, *, delete_image: bool, as_json: bool) -> None:
    """Stop an export and forget it.

    It is no error if there is none of this name.
    """
    delete = "true" if delete_image else None
    with watch(as_json=as_json) as observe:
        result = daemon.call("DELETE", export_path(name), observe=observe, delete_image=delete)
    print_result(result, title="removal", as_json=as_json)


@click.command()
@given_name
@daemon_option
@json_option
def start(daemon: Daemon, name: str, *, as_json: bool) -> None:
    """Serve an export that was stopped or has failed; returns when VMMs can connect."""
    with watch(as_json=as_json) as observe:
        result = ByName(daemon, name, observe).act("start")
    print_result(result, title="export", as_json=as_json)


@click.command()
@given_name
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(1, MAX_LINES),
    default=DEFAULT_LINES,
    show_default=True,
    help="How many of the last ones.",
)
@daemon_option
@json_option
def logs(daemon: Daemon, name: str, lines: int, *, as_json: bool) -> None:
    """Print the last events that an export has logged; they outlive its process.

    With --json one result with all of them, as the API has it.
    """
    result = daemon.get(export_path(name, verb="logs"), lines=lines)
    if as_json:
        print_result(result, title=name, as_json=True)
        return
    for event in result["events"]:
        print_line(log_line(event))


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with the events to come.")
@click.option(
    "--since",
    type=click.IntRange(0),
    default=0,
    metavar="ID",
    help="Only what came after the event with this number; if not given, all that are remembered.",
)
@daemon_option
@json_option
def events(daemon: Daemon, since: int, *, follow: bool, as_json: bool) -> None:
    """Print what has happened to the exports of the daemon, an event a line.

    With --json each line is an object.  A daemon that is started again while its events are
    followed is asked for those since.
    """
    for event in _follow(daemon, since) if follow else daemon.events(since, follow=False):
        print_line(encode(msgspec.to_builtins(event)) if as_json else event_line(event))


def _follow(daemon: Daemon, since: int) -> Iterator[Event]:
    """The events after `since`, for as long as there is a daemon."""
    deadline = None  # of a daemon that was there: at first there must be one
    while True:
        try:
            for event in daemon.events(since, follow=True):
                since, deadline = event.id, None
                yield event
            deadline = time.monotonic() + RETURN_LIMIT
        except SocketError:
            if deadline is None or time.monotonic() > deadline:
                raise
        except ControlError as error:
            if error.status is not None or (deadline is None and since == 0):
                raise
            deadline = deadline or time.monotonic() + RETURN_LIMIT
        time.sleep(RETURN_POLL)


def event_line(event: Event) -> str:
    """An event for a person."""
    words = [tables.moment(event.time), event.export or "-", event.event, *_pairs(event.fields)]
    return "  ".join(words)


def log_line(event: dict[str, Any]) -> str:
    """An event of an export's log for a person."""
    if event.keys() == {"text"}:
        return str(event["text"])
    first = [str(event[name]) for name in LEADING if name in event]
    return "  ".join([*first, *_pairs({k: v for k, v in event.items() if k not in KNOWN})])


LEADING: Final = ("timestamp", "level", "event")
"""What stands first in the line of an event."""
KNOWN: Final = frozenset({*LEADING, "export"})
"""What is not said again: nor the export, which was asked for."""


def _pairs(fields: dict[str, Any]) -> list[str]:
    return [f"{name}={tables.text(value)}" for name, value in fields.items()]


def print_line(line: str) -> None:
    """Print a line at once; ends the command where nobody reads it any more."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        raise click.exceptions.Exit(0) from None
