# SPDX-License-Identifier: Apache-2.0
"""The table of docs/reliability.md, from what the drills have seen: `python -m drills.report`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from drills.outcome import Outcome
from drills.run import kept
from harness.markdown import table

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN: Final = "<!-- from here on by `python -m drills.report` -->\n"
HEADS: Final = ("Drill", "Errors", "Seen")
END: Final = "<!-- to here -->\n"


def rows(outcomes: list[Outcome]) -> Iterator[tuple[str, str, str]]:
    """A row for each outcome."""
    for outcome in outcomes:
        seen = ", ".join(f"{what} {number:,}" for what, number in outcome.figures.items())
        yield outcome.drill, str(outcome.errors), seen


def page(old: str, outcomes: list[Outcome]) -> str:
    """The page, with its table as the outcomes have it."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(HEADS, rows(outcomes))}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), kept()))
