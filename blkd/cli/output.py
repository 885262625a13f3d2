# SPDX-License-Identifier: Apache-2.0
"""What a command prints: tables for people, JSON for programs, with the same fields."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from blkd.cli import tables

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_result(result: object, *, title: str, as_json: bool) -> None:
    """Print `result`, anything that msgspec can encode, on standard output."""
    fields = msgspec.to_builtins(result)
    if as_json:
        text = msgspec.json.encode(printable(fields)).decode()
    else:
        text = tables.draw(fields, title, _terminal_width())
    with contextlib.suppress(OSError, AttributeError):  # nobody reads it: nothing to be done
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def printable(value: Any) -> Any:
    """`value` with escapes for what is no Unicode in it, as in some file names."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {name: printable(inner) for name, inner in value.items()}
        case list() | tuple():
            return [printable(inner) for inner in value]
        case _:
            return value


def _terminal_width() -> int | None:
    """The columns of the terminal that standard output is; None if it is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, AttributeError, ValueError):
        return None
