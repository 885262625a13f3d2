# SPDX-License-Identifier: Apache-2.0
"""What a command prints: tables for people, JSON for programs, with the same fields."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from blkd.cli import tables

FOR_PROGRAMS = "blkd.for_programs"
"""Where click keeps whether --json was given, anywhere on the command line."""


def is_for_programs(ctx: click.Context) -> bool:
    """Whether a program is to read what the command prints."""
    return bool(ctx.meta.get(FOR_PROGRAMS, False))


def note_for_programs(ctx: click.Context, arguments: Sequence[str]) -> None:
    """Note whether --json is among `arguments`, before any of them can be found wrong."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    ctx.meta[FOR_PROGRAMS] = is_for_programs(ctx) or "--json" in options


def _json_flag(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:  # noqa: FBT001
    return value or is_for_programs(ctx)


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_json_flag, help="Print JSON instead of tables."
)
"""For a command, which is given `as_json`."""

group_json_option = click.option(
    "--json", is_flag=True, expose_value=False, help="Print JSON instead of tables."
)
"""For a group of commands: as if the command had it."""


def print_result(result: object, *, title: str, as_json: bool) -> None:
    """Print `result`, anything that msgspec can encode, on standard output."""
    fields = msgspec.to_builtins(result)
    text = encode(fields) if as_json else tables.draw(fields, title, _terminal_width())
    with contextlib.suppress(OSError, AttributeError):  # nobody reads it: nothing to be done
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def encode(fields: object) -> str:
    """`fields` as a line of JSON."""
    return msgspec.json.encode(_as_unicode(fields)).decode()


def _as_unicode(value: Any) -> Any:
    """`value` with escapes for what is no Unicode in it, as in some file names."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {name: _as_unicode(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_as_unicode(inner) for inner in value]
        case _:
            return value


def _terminal_width() -> int | None:
    """The columns of the terminal that standard output is; None if it is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, AttributeError, ValueError):
        return None
