# SPDX-License-Identifier: Apache-2.0
"""Tables of the pages that drills and the comparison write."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table whose last `numbers` columns are to the right."""
    left = len(heads) - numbers
    rules = ["---"] * left + ["---:"] * numbers
    lines = [heads, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
