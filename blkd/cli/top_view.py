# SPDX-License-Identifier: Apache-2.0
"""What `blkd top` shows, and how keys change that: pure, a new value for each key."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from blkd.cli.looks import LEAST_INTERVAL, MOST_INTERVAL
from blkd.statistics import live_table
from blkd.statistics.live_table import Order, Row

Mode = Literal["table", "help", "filter", "delay"]
"""`filter` and `delay`: what is typed goes into a line."""

ASCENDING: Final = frozenset({"name", "state"})
"""Orders whose first row is the least one; elsewhere one looks for the most."""

ORDER_KEYS: Final = MappingProxyType[str, Order](
    {
        "N": "name",
        "S": "state",
        "I": "iops",
        "B": "read_bytes",
        "W": "write_bytes",
        "M": "p50",
        "L": "p99",
        "X": "longest",
        "Q": "queue_depth",
        "O": "oldest",
        "T": "throttled",
        "P": "cpu_us",
        "E": "errors",
    }
)
STEPS: Final = MappingProxyType({"up": -1, "down": 1, "k": -1, "j": 1})
PAGES: Final = MappingProxyType({"pageup": -1, "pagedown": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown of the table, and how."""

    order: Order = "iops"
    descending: bool = True
    words: str = ""
    """Only exports with these in name or state."""
    with_idle: bool = True
    interval: float = 1.0
    """Seconds between two looks."""
    top: int = 0
    """Which row is the first on the screen."""
    mode: Mode = "table"
    typed: str = ""
    problem: str | None = None
    """What was wrong with what was typed."""
    ended: bool = False
    wants_look: bool = False
    """Whether to look at once, before the interval is over."""

    def rows(self, table: Sequence[Row]) -> list[Row]:
        """What there is to see of `table`, from its first row on."""
        kept = live_table.chosen(table, self.words, with_idle=self.with_idle)
        return live_table.ordered(kept, self.order, descending=self.descending)

    def scrolled(self, rows: int, lines: int) -> "View":
        """As it is where there are `rows` to see, of which `lines` fit on the screen."""
        return replace(self, top=max(0, min(self.top, rows - lines)))


def press(view: View, key: str, columns: Sequence[Order], page: int) -> View:
    """What is shown after a key.

    Args:
        view: What is shown.
        key: A character, or the name of a key: `enter`, `escape`, `backspace`, `up`, ...
        columns: The orders that are on the screen as columns, from left to right.
        page: How many rows the screen has.
    """
    view = replace(view, wants_look=False, problem=None)
    if key == "interrupt":
        return replace(view, ended=True)
    if view.mode != "table":
        return _type(view, key)
    return _press_in_table(view, key, columns, page)


def _press_in_table(view: View, key: str, columns: Sequence[Order], page: int) -> View:
    if key in ORDER_KEYS:
        return _by(view, ORDER_KEYS[key])
    if key in STEPS or key in PAGES:
        step = STEPS.get(key) or PAGES[key] * max(page - 1, 1)
        return replace(view, top=max(view.top + step, 0))
    if key in {"<", ">"}:
        return _by_neighbour(view, -1 if key == "<" else 1, columns)
    return LETTERS[key](view) if key in LETTERS else view


def _by(view: View, order: Order) -> View:
    """Ordered by that; once more is the other way round."""
    if view.order == order:
        return replace(view, descending=not view.descending)
    return ordered_by(view, order)


def ordered_by(view: View, order: Order) -> View:
    """Ordered by that, from the end where one looks first."""
    return replace(view, order=order, descending=order not in ASCENDING, top=0)


def _by_neighbour(view: View, step: int, columns: Sequence[Order]) -> View:
    """Ordered by the column beside, if there is one."""
    if view.order not in columns:
        return _by(view, columns[0])
    at = columns.index(view.order) + step
    return _by(view, columns[at]) if 0 <= at < len(columns) else view


def _type(view: View, key: str) -> View:
    """What a key does to the line that is typed, of which a filter is seen; it ends the help."""
    if view.mode == "help":
        return replace(view, mode="table", ended=key == "q")
    if key == "escape":
        return replace(view, mode="table", typed="")
    if key == "enter":
        return _take(view)
    if key == "backspace":
        typed = view.typed[:-1]
    elif len(key) == 1 and key.isprintable():
        typed = view.typed + key
    else:
        return view
    words = typed if view.mode == "filter" else view.words
    return replace(view, typed=typed, words=words)


def _take(view: View) -> View:
    """What is shown once a line is typed."""
    done = replace(view, mode="table", typed="", top=0)
    if view.mode == "filter":
        return done
    try:
        interval = float(view.typed)
    except ValueError:
        return replace(done, problem=f"{view.typed!r} is no number of seconds")
    if not LEAST_INTERVAL <= interval <= MOST_INTERVAL:
        limits = f"between {LEAST_INTERVAL:g} and {MOST_INTERVAL:g} s"
        return replace(done, problem=f"a delay is {limits}, not {interval:g}")
    return replace(done, interval=interval, wants_look=True)


def _end(view: View) -> View:
    return replace(view, ended=True)


def _help(view: View) -> View:
    return replace(view, mode="help")


def _look(view: View) -> View:
    return replace(view, wants_look=True)


def _ask_words(view: View) -> View:
    return replace(view, mode="filter", typed=view.words)


def _ask_interval(view: View) -> View:
    return replace(view, mode="delay", typed="")


def _show_all(view: View) -> View:
    return replace(view, words="", with_idle=True)


def _toggle_idle(view: View) -> View:
    return replace(view, with_idle=not view.with_idle)


def _reverse(view: View) -> View:
    return replace(view, descending=not view.descending)


def _to_begin(view: View) -> View:
    return replace(view, top=0)


LETTERS: Final = MappingProxyType(
    {
        "q": _end,
        "h": _help,
        "?": _help,
        " ": _look,
        "enter": _look,
        "/": _ask_words,
        "o": _ask_words,
        "d": _ask_interval,
        "s": _ask_interval,
        "=": _show_all,
        "escape": _show_all,
        "i": _toggle_idle,
        "R": _reverse,
        "home": _to_begin,
    }
)
"""What keys of the table do, beside those that order and scroll it."""
