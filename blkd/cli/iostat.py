# SPDX-License-Identifier: Apache-2.0
"""`blkd iostat`: what exports do, in the columns of iostat."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import click

from blkd.cli import tables
from blkd.cli.completion import complete_names
from blkd.cli.daemon_verbs import print_line
from blkd.cli.figures_source import OfDaemon, OfProcess
from blkd.cli.looks import LEAST_INTERVAL, MOST_INTERVAL, Look, Looks
from blkd.cli.output import encode, json_option
from blkd.cli.target import control_path, daemon_option
from blkd.control.daemon_client import Daemon
from blkd.statistics.iostat_columns import iostat_columns
from blkd.statistics.rates import Rates, rates

NAME: Final = "Device"
LEAST_NAME: Final = 16  # characters
WIDTH: Final = 9  # characters of a column of numbers
NARROW: Final = {"f/s": 7, "aqu-sz": 7, "%util": 6}
DIGITS: Final = 2  # behind the point
WAIT_DIGITS: Final = 3  # of times in ms: a request may take some microseconds
JSON_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Asked:
    """What stands behind `blkd iostat`: names, then an interval, then how many reports."""

    names: tuple[str, ...] = ()
    interval: float | None = None
    count: int | None = None

    @property
    def reports(self) -> int | None:
        """How many; None for ever.  Without an interval there is one, since the beginning."""
        return 1 if self.interval is None else self.count


def read_words(words: Sequence[str]) -> Asked:
    """Tell names from numbers, as iostat does: the last words are numbers.  Raises UsageError."""
    names = list(words)
    numbers: list[float] = []
    while names and len(numbers) < len(("interval", "count")) and _is_number(names[-1]):
        numbers.insert(0, float(names.pop()))
    if not numbers:
        return Asked(tuple(names))
    interval, *counts = numbers
    if not LEAST_INTERVAL <= interval <= MOST_INTERVAL:
        limits = f"between {LEAST_INTERVAL:g} and {MOST_INTERVAL:g} s"
        raise click.UsageError(f"an interval is {limits}, not {interval:g}")
    if counts and (counts[0] < 1 or counts[0] != int(counts[0])):
        raise click.UsageError(f"{counts[0]:g} is no number of reports")
    return Asked(tuple(names), interval, int(counts[0]) if counts else None)


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


@click.command()
@click.argument(
    "words", nargs=-1, metavar="[NAME]... [INTERVAL [COUNT]]", shell_complete=complete_names
)
@click.option("--skip-first", "-y", is_flag=True, help="Leave out the report since the beginning.")
@control_path
@daemon_option
@json_option
def iostat(
    daemon: Daemon,
    *,
    words: tuple[str, ...],
    skip_first: bool,
    control: str | None,
    as_json: bool,
) -> None:
    """Print what exports do in the columns of iostat -x, a report each INTERVAL seconds.

    The first report is of all the time since an export was first served; without INTERVAL it is the
    only one.  COUNT reports are printed.  With --json a line each, which is an object.
    """
    asked = read_words(words)
    if control is not None and asked.names:
        raise click.UsageError("--control names a process: it has no exports with names")
    if skip_first and asked.interval is None:
        raise click.UsageError("-y leaves nothing without an INTERVAL")
    source = OfDaemon(daemon, asked.names) if control is None else OfProcess(control, daemon.limit)
    for look in _looks(Looks(source), asked, skip_first=skip_first):
        for line in (_json_lines if as_json else _plain_lines)(look):
            print_line(line)


def _looks(looks: Looks, asked: Asked, *, skip_first: bool) -> Iterator[Look]:
    """The first one is of all the time before it."""
    left = asked.reports
    if not skip_first:
        yield looks.since_the_beginning()
        left = None if left is None else left - 1
    if asked.interval is not None:
        yield from looks.each(asked.interval, left)


def report(look: Look) -> dict[str, Rates]:
    """What each export did that has figures, by its name."""
    found = {
        each.name: rates(each.figures, before)
        for each in look.observed
        if each.figures is not None and (before := look.before.get(each.name)) is not None
    }
    return {name: measured for name, measured in found.items() if measured is not None}


def _json_lines(look: Look) -> Iterator[str]:
    disks = [
        {"disk_device": name, **_rounded(iostat_columns(found))}
        for name, found in report(look).items()
    ]
    yield encode({"time": look.time, "disk": disks})


def _plain_lines(look: Look) -> Iterator[str]:
    found = {name: iostat_columns(each) for name, each in report(look).items()}
    heads = list(iostat_columns(Rates(seconds=1, iops=0)))
    width = max([LEAST_NAME, *(len(tables.text(name)) for name in found)])
    yield _line(NAME, width, {head: head for head in heads})
    for name, columns in found.items():
        yield _line(
            tables.text(name), width, {head: _shown(head, value) for head, value in columns.items()}
        )
    yield ""


def _line(name: str, width: int, cells: Mapping[str, str]) -> str:
    numbers = (cell.rjust(NARROW.get(head, WIDTH)) for head, cell in cells.items())
    return " ".join([name.ljust(width), *numbers])


def _shown(head: str, value: float) -> str:
    return f"{value:.{WAIT_DIGITS if head.endswith('_await') else DIGITS}f}"


def _rounded(columns: Mapping[str, float]) -> dict[str, float]:
    return {head: round(value, JSON_DIGITS) for head, value in columns.items()}
