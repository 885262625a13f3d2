# SPDX-License-Identifier: Apache-2.0
"""The table of docs/reliability.md, from what the drills have seen: `python -m drills.report`."""

from pathlib import Path
from typing import Final

from drills.outcome import Outcome
from drills.run import kept

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN: Final = "<!-- from here on by `python -m drills.report` -->\n"
END: Final = "<!-- to here -->\n"


def table(outcomes: list[Outcome]) -> str:
    """A row for each outcome."""
    rows = ["| Drill | Errors | Seen |", "| --- | ---: | --- |"]
    for outcome in outcomes:
        seen = ", ".join(f"{what} {number:,}" for what, number in outcome.figures.items())
        rows.append(f"| {outcome.drill} | {outcome.errors} | {seen} |")
    return "\n".join(rows) + "\n"


def page(old: str, outcomes: list[Outcome]) -> str:
    """The page, with its table as the outcomes have it."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + table(outcomes) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), kept()))
