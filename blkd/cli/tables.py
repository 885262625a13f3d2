# SPDX-License-Identifier: Apache-2.0
"""Every table that `blkd` prints: the fields of one result, drawn for a person.

A small renderer of our own: `blkd serve` prints a table too, and a table of rich would keep
4.5 MiB in memory for as long as its disk is served.
"""

import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from blkd.host import sizes

BETWEEN: Final = "  "  # columns
RULE: Final = "─"
NOTHING: Final = "-"
NARROWEST: Final = 24  # characters of a column that is wrapped

Record = Mapping[str, Any]

BYTES: Final = frozenset(
    {
        "size",
        "images.size",
        "images.allocated",
        "previous",
        "allocated",
        "sandbox.limits.private_memory",
        "total.bytes_read",
        "total.bytes_written",
        "rings.bytes_read",
        "rings.bytes_written",
        "front_end.memory_regions.size",
    }
)
"""Fields that are shown with a unit; `--json` has the number of bytes."""

HEXADECIMAL: Final = frozenset(
    {
        "features",
        "devices.features",
        "front_end.features",
        "front_end.protocol_features",
        "front_end.status",
        "front_end.memory_regions.guest_address",
        "front_end.memory_regions.user_address",
        "front_end.memory_regions.mmap_offset",
    }
)
"""Fields that are bits or addresses."""

TIMES: Final = frozenset({"since"})
"""Fields that are points in time; `--json` has the seconds since 1970."""

WITHIN: Final = ("export.", "served.")
"""Records in the answers of a daemon that have the fields of an export's own answers."""

NAMES: Final = frozenset({"name", "index", "ring"})
"""Fields that tell one record from another: the first column of a table."""


def draw(fields: Record, title: str, width: int | None = None) -> str:
    """The tables of a result: one of its single values, and one of each list of records in it.

    Args:
        fields: A result as JSON has it; records in it are spread out as `outer: inner`.
        title: What the single values are called.
        width: Columns of the terminal that the last column is wrapped to; None wraps nothing.
    """
    single, lists = _split(fields)
    tables = [_values(title, single, width)] if single else []
    tables += [_records(name, records, width) for name, records in lists.items()]
    return "\n\n".join(tables)


def _split(fields: Record, prefix: str = "") -> tuple[dict[str, Any], dict[str, Sequence[Record]]]:
    """The single values of `fields`, and the lists of records in it, by their full names."""
    single: dict[str, Any] = {}
    lists: dict[str, Sequence[Record]] = {}
    for name, value in fields.items():
        match value:
            case Mapping():
                inner_single, inner_lists = _split(value, f"{prefix}{name}.")
                single |= inner_single
                lists |= inner_lists
            case [Mapping(), *_]:
                lists[prefix + name] = value
            case _:
                single[prefix + name] = value
    return single, lists


def _values(title: str, fields: Record, width: int | None) -> str:
    """A table with a line for each field: its name and its value."""
    rows = [(_words(name), text(value, name)) for name, value in fields.items()]
    return "\n".join([title, *_lines(rows, _widths(rows, width))])


def _records(name: str, records: Sequence[Record], width: int | None) -> str:
    """A table with a line for each record, under a head and a rule."""
    columns = sorted(records[0], key=lambda column: column not in NAMES)
    heads = _heads(columns)
    rows = [
        [text(record.get(column), f"{name}.{column}") for column in columns] for record in records
    ]
    widths = _widths([*heads, *rows], width)
    numbers = frozenset(n for n, column in enumerate(columns) if _is_number(records[0][column]))
    return "\n".join(
        [
            _words(name),
            *_lines(heads, widths, numbers),
            BETWEEN.join(RULE * size for size in widths),
            *_lines(rows, widths, numbers),
        ]
    )


def _heads(columns: Sequence[str]) -> list[Sequence[str]]:
    """The names of columns as rows, a word in each: a column is then no wider than its values."""
    names = [_words(column).split() for column in columns]
    tallest = max(map(len, names))
    return list(zip(*([""] * (tallest - len(words)) + words for words in names), strict=True))


def _lines(
    rows: Sequence[Sequence[str]], widths: Sequence[int], numbers: frozenset[int] = frozenset()
) -> list[str]:
    """Rows as lines of text, with the columns in `numbers` to the right.

    The last column goes on in further lines where it is too long.
    """
    lines: list[str] = []
    for *cells, last in rows:
        first, *further = _wrap(last, widths[-1])
        for line in ([*cells, first], *([*[""] * len(cells), piece] for piece in further)):
            aligned = [
                cell.rjust(size) if column in numbers else cell.ljust(size)
                for column, (cell, size) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append(BETWEEN.join(aligned).rstrip())
    return lines


def _widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """What each column takes; the last one takes what the terminal's width leaves it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        left = width - sum(widths[:-1]) - len(BETWEEN) * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(left, NARROWEST))
    return widths


def _wrap(text: str, width: int) -> list[str]:
    """The lines of `text`: cut between words only, so that a path stays whole."""
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def text(value: object, name: str = "") -> str:
    """A value as a person reads it, in one line; `name` is the full name of its field."""
    for prefix in WITHIN:
        name = name.removeprefix(prefix)
    match value:
        case None | "":
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return _number(value, name)
        case list() | tuple():
            return _visible(", ".join(str(item) for item in value)) or NOTHING
        case Mapping():
            pairs = (f"{field}={text(inner, f'{name}.{field}')}" for field, inner in value.items())
            return " ".join(pairs) or NOTHING
        case _:
            return _visible(str(value))


def _number(value: float, name: str) -> str:
    if name in TIMES:
        return moment(value)
    if isinstance(value, int) and name in BYTES:
        return sizes.show(value)
    return hex(value) if isinstance(value, int) and name in HEXADECIMAL else str(value)


def moment(seconds: float) -> str:
    """A point in time, in seconds since 1970, as the user's own clock shows it."""
    local = datetime.fromtimestamp(seconds, UTC).astimezone()
    return local.isoformat(" ", "milliseconds")


def _visible(text: str) -> str:
    """`text` with escapes for what would move a terminal's cursor or is no Unicode."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode-escape").decode() for c in text)
