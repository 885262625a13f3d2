# SPDX-License-Identifier: Apache-2.0
"""How `blkd top` looks: on a terminal with rich, and as plain lines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from blkd.cli import tables
from blkd.cli.quantities import amount, count, decimal, duration, share
from blkd.cli.top_view import View
from blkd.statistics.live_table import Order, Row, summary

BETWEEN: Final = 2  # characters
LEAST_NAME: Final = 12  # characters
MOST_NAME: Final = 32
HEAD_LINES: Final = 4
"""Of the screen, above the rows: two of the sum, an empty one, the heads of the columns."""
FOOT_LINES: Final = 1

BAD: Final = frozenset({"failed", "stopped", "restarting", "held"})
WAITING: Final = frozenset({"paused", "starting", "stopping"})
MUCH_THROTTLED: Final = 0.01
LONG_AGO: Final = 1.0  # seconds: a request that old is one to look at
FIRST_NUMBER: Final = 2  # columns of words stand before those of numbers
KEYS: Final = (
    "q quit   h help   / filter   < > order   R reverse   i idle   d delay   space look now"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    order: Order
    head: str
    width: int
    """Characters; of names as many as they take."""
    text: Callable[[Row], str]
    drop: int
    """Where the terminal is narrow, the columns with the highest numbers are left out first."""


COLUMNS: Final = (
    Column("name", "NAME", 0, lambda row: tables.text(row.name), 0),
    Column("state", "STATE", 10, lambda row: row.state, 2),
    Column("iops", "IOPS", 6, lambda row: count(row.iops), 0),
    Column("read_bytes", "READ/s", 6, lambda row: amount(row.read_bytes), 1),
    Column("write_bytes", "WRITE/s", 7, lambda row: amount(row.write_bytes), 1),
    Column("p50", "P50", 6, lambda row: duration(row.p50), 5),
    Column("p99", "P99", 6, lambda row: duration(row.p99), 1),
    Column("longest", "MAX", 6, lambda row: duration(row.longest), 7),
    Column("queue_depth", "QD", 5, lambda row: decimal(row.queue_depth), 3),
    Column("oldest", "OLDEST", 6, lambda row: duration(row.oldest), 4),
    Column("throttled", "THROT", 5, lambda row: share(row.throttled), 6),
    Column("cpu_us", "CPUµs", 5, lambda row: decimal(row.cpu_us), 6),
    Column("errors", "ERR/s", 5, lambda row: count(row.errors), 8),
)

WORDS: Final = COLUMNS[:FIRST_NUMBER]

HELP: Final = (
    ("q", "quit"),
    ("h ?", "this help"),
    ("space", "look now"),
    ("d s", "seconds between two looks"),
    ("/ o", "show only names and states with these letters"),
    ("=", "show all again"),
    ("i", "hide idle exports, or show them"),
    ("< >", "order by the column beside"),
    ("R", "the other way round"),
    ("N S I", "order by name, state, IOPS"),
    ("B W", "... by bytes read, written"),
    ("M L X", "... by latency: median, p99, longest"),
    ("Q O", "... by queue depth, oldest request"),
    ("T P E", "... by share throttled, CPU of a request, errors"),
    ("up down", "scroll; also page up, page down, home"),
)
WHAT: Final = (
    "P50, P99, MAX: from when a worker saw a request until it was answered, limits included.",
    "QD: requests in flight on average.  OLDEST: how long the oldest has been in flight by now.",
    "THROT: the part of that time that requests waited for limits.  CPUµs: CPU time of a request.",
)


def columns(names: Sequence[str], width: int | None) -> list[Column]:
    """The columns that fit into `width` characters, beside names like these; all if it is None."""
    name = name_width(names)
    kept = list(COLUMNS)
    while width is not None and name + sum(BETWEEN + each.width for each in kept[1:]) > width:
        last = max(kept, key=lambda column: column.drop)
        if not last.drop:
            break
        kept.remove(last)
    return kept


def name_width(names: Sequence[str]) -> int:
    """Characters of the column of names."""
    longest = max((cell_len(tables.text(name)) for name in names), default=0)
    return min(max(longest, LEAST_NAME), MOST_NAME)


def plain(table: Sequence[Row], view: View) -> Iterator[str]:
    """The table as lines without colours, all its columns and rows."""
    width = name_width([row.name for row in table])
    yield _joined([column.head for column in COLUMNS], COLUMNS, width)
    for row in view.rows(table):
        yield _joined([column.text(row) for column in COLUMNS], COLUMNS, width)


def _joined(cells: Sequence[str], kept: Sequence[Column], name: int) -> str:
    return (" " * BETWEEN).join(_aligned(cells, kept, name)).rstrip()


def _aligned(cells: Sequence[str], kept: Sequence[Column], name: int) -> list[str]:
    """Cells as wide as their columns: words to the left, numbers to the right."""
    return [
        _fitted(cell, column.width or name) if column in WORDS else cell.rjust(column.width)
        for cell, column in zip(cells, kept, strict=True)
    ]


def _fitted(text: str, width: int) -> str:
    """`text` in so many characters of a terminal, with a sign where some of it is left out."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def screen(
    table: Sequence[Row],
    view: View,
    seen_at: float,
    size: tuple[int, int],
    problem: str | None = None,
) -> RenderableType:
    """The whole screen.

    Args:
        table: All exports.
        view: What of them is shown, and how.
        seen_at: When the figures were had, in seconds since 1970.
        size: Columns and lines of the terminal.
        problem: What keeps new figures from coming.
    """
    if view.mode == "help":
        return Group(*_help())
    width, height = size
    rows = view.rows(table)
    fitting = page(height)
    first = view.scrolled(len(rows), fitting).top
    seen = rows[first : first + fitting]
    names = [row.name for row in table]
    kept = columns(names, width)
    return Group(
        *_head(table, view, seen_at),
        Text(),
        _heads(kept, view, name_width(names), width),
        *(_row(row, kept, name_width(names), width) for row in seen),
        *[Text()] * (fitting - len(seen)),
        _foot(view, problem, f"{len(seen)} of {len(table)}"),
    )


def clock(seconds: float) -> str:
    """The time of day, of seconds since 1970."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%H:%M:%S}"


def page(height: int) -> int:
    """How many rows a screen of so many lines has."""
    return max(height - HEAD_LINES - FOOT_LINES, 1)


def _head(table: Sequence[Row], view: View, seen_at: float) -> Iterator[Text]:
    """What all exports do together, in two lines."""
    found = summary(table)
    states = Text(no_wrap=True, overflow="ellipsis")
    states.append(f"blkd top  {clock(seen_at)}", "bold")
    states.append(f"   every {view.interval:g} s   exports: {len(table)}")
    for state, number in found.states.items():
        states.append("   ").append(f"{number} {state}", _style_of(state))
    yield states
    sums = Text(no_wrap=True, overflow="ellipsis")
    for name, value in (
        ("IOPS", count(found.iops)),
        ("read", f"{amount(found.read_bytes)}B/s"),
        ("write", f"{amount(found.write_bytes)}B/s"),
        ("in flight", str(found.in_flight)),
        ("worst p99", duration(found.p99)),
        ("oldest", duration(found.oldest)),
        ("errors", f"{count(found.errors)}/s"),
    ):
        sums.append(f"{name} ", "dim").append(value, "bold").append("   ")
    yield sums


def _heads(kept: Sequence[Column], view: View, name: int, width: int) -> Text:
    """The heads of the columns; the one by which rows are ordered stands out."""
    line = Text(no_wrap=True, style="reverse")
    for at, (column, cell) in enumerate(
        zip(kept, _aligned([each.head for each in kept], kept, name), strict=True)
    ):
        style = "bold cyan" if column.order == view.order else ""
        line.append(" " * BETWEEN if at else "").append(cell, style)
    line.pad_right(max(width - line.cell_len, 0))
    return line


def _row(row: Row, kept: Sequence[Column], name: int, width: int) -> Text:
    """An export; where it does nothing since something is wrong, what that is."""
    if row.reason is not None and not row.iops:
        line = Text(no_wrap=True)
        line.append(_fitted(tables.text(row.name), name) + " " * BETWEEN, "bold")
        told = f"{row.state}  {tables.text(row.reason)}"
        return line.append(_fitted(told, max(width - line.cell_len, 1)), _style_of(row.state))
    line = Text(no_wrap=True, style="dim" if row.is_idle and row.state == "serving" else "")
    cells = _aligned([column.text(row) for column in kept], kept, name)
    for at, (column, cell) in enumerate(zip(kept, cells, strict=True)):
        line.append(" " * BETWEEN if at else "").append(cell, _style(row, column.order))
    return line


def _style(row: Row, order: Order) -> str:
    """How a cell looks: what one should look at stands out."""
    match order:
        case "state":
            return _style_of(row.state)
        case "errors" if row.errors:
            return "bold red"
        case "oldest" if (row.oldest or 0) >= LONG_AGO:
            return "bold red"
        case "throttled" if (row.throttled or 0) >= MUCH_THROTTLED:
            return "yellow"
        case "name":
            return "bold"
    return ""


def _style_of(state: str) -> str:
    if state in BAD:
        return "bold red"
    return "yellow" if state in WAITING else "green"


def _foot(view: View, problem: str | None, shown: str) -> Text:
    """The last line: what is typed, what is wrong, or what keys there are."""
    if view.mode == "filter":
        return Text(f"show names and states with: {view.typed}▏", "bold", no_wrap=True)
    if view.mode == "delay":
        now = f"(now {view.interval:g})"
        return Text(f"seconds between two looks {now}: {view.typed}▏", "bold", no_wrap=True)
    if (wrong := view.problem or problem) is not None:
        return Text(wrong, "bold red", no_wrap=True, overflow="ellipsis")
    line = Text(no_wrap=True, overflow="ellipsis")
    if view.words or not view.with_idle:
        words = f" with {view.words!r}" if view.words else ""
        idle = "" if view.with_idle else ", no idle ones"
        line.append(f"shown: {shown}{words}{idle}   = all   ", "bold yellow")
    return line.append(KEYS, "dim")


def _help() -> Iterator[Text]:
    yield Text("Keys of blkd top", "bold")
    yield Text()
    for keys, text in HELP:
        yield Text("  ").append(f"{keys:<10}", "bold cyan").append(text)
    yield Text()
    yield from map(Text, WHAT)
    yield Text()
    yield Text("any key returns to the table", "dim")
