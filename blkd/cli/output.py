# SPDX-License-Identifier: Apache-2.0
"""What a command prints: a table for people, JSON for programs, with the same fields."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from blkd.cli import size_arguments

PIPE_WIDTH = 160  # columns, where there is no terminal to ask
BYTES = frozenset(
    {
        "size",
        "previous",
        "allocated",
        "total.bytes_read",
        "total.bytes_written",
        "rings.bytes_read",
        "rings.bytes_written",
        "front_end.memory_regions.size",
    }
)
HEXADECIMAL = frozenset(
    {
        "features",
        "front_end.features",
        "front_end.protocol_features",
        "front_end.status",
        "front_end.memory_regions.guest_address",
        "front_end.memory_regions.user_address",
        "front_end.memory_regions.mmap_offset",
    }
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_result(result: object, *, title: str, as_json: bool) -> None:
    """Print `result`, anything that msgspec can encode, on standard output."""
    if as_json:
        line = msgspec.json.encode(printable(msgspec.to_builtins(result))).decode()
    else:
        line = as_tables(printable(msgspec.to_builtins(result)), title)
    with contextlib.suppress(OSError, AttributeError):  # nobody reads: as good as said
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def printable(value: Any) -> Any:
    """`value` with what is no Unicode in it, as in some file names, made visible."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {name: printable(inner) for name, inner in value.items()}
        case list() | tuple():
            return [printable(inner) for inner in value]
        case _:
            return value


def as_tables(fields: Mapping[str, Any], title: str) -> str:
    """`fields` as a table of names and values, lists of records as tables of their own."""
    plain, lists = _split(fields)
    tables = [_summary(plain, title)] if plain else []
    tables += [_table(name, records) for name, records in lists.items()]
    return "\n".join(tables).strip("\n")


def _summary(fields: Mapping[str, Any], title: str) -> str:
    # Without rich: `blkd serve` announces itself with this, and would keep 4.5 MiB for it.
    rows = [(_words(name), _text(name, value)) for name, value in fields.items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"{name:{width}}  {text}" for name, text in rows)])


def _table(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - slow, and not needed by all
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=_words(name), title_justify="left", box=SIMPLE_HEAD)
    for column in records[0]:
        table.add_column(_words(column), justify=_justify(records[0][column]))
    for record in records:
        table.add_row(*(_text(f"{name}.{column}", value) for column, value in record.items()))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _split(
    fields: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Sequence[Mapping[str, Any]]]]:
    """The fields of a table and those that are tables; a record within is spread out."""
    plain: dict[str, Any] = {}
    lists: dict[str, Sequence[Mapping[str, Any]]] = {}
    for name, value in fields.items():
        match value:
            case Mapping():
                inner = _split(value, f"{prefix}{name}.")
                plain |= inner[0]
                lists |= inner[1]
            case [Mapping(), *_]:
                lists[prefix + name] = value
            case _:
                plain[prefix + name] = value
    return plain, lists


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def _justify(value: object) -> Any:
    return "right" if isinstance(value, int) and not isinstance(value, bool) else "left"


def _text(name: str, value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if name in BYTES:
            return size_arguments.show(value)
        case int() if name in HEXADECIMAL:
            return hex(value)
        case list() | tuple():
            return ", ".join(str(item) for item in value) or "-"
        case _:
            return str(value)
