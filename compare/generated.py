# SPDX-License-Identifier: Apache-2.0
"""Whose inlined code a line of the C is that Cython has written.  Pure.

The compiler makes few functions of the data path's many, and a profiler counts by those.
"""

import bisect
import re
from dataclasses import dataclass
from typing import Final, Self

DEFINITION: Final = re.compile(r"^static\b[^;=]*?\b(\w+)\([^;]*\{\s*$")
OURS: Final = "__pyx_f_"
"""Before the name of what stands in `src/`; all other functions are Cython's own."""
PART: Final = re.compile(r"(\d+)")


def plain_name(function: str) -> str:
    """The name "virtq.walk_chain" for "__pyx_f_5virtq_walk_chain"; others stay as they are.

    In C the length of each module's name stands before it.
    """
    if not function.startswith(OURS):
        return function
    modules, rest = [], function.removeprefix(OURS)
    while found := PART.match(rest):
        start, length = found.end(), int(found[1])
        modules.append(rest[start : start + length])
        rest = rest[start + length :].removeprefix("_")
    return ".".join([*modules[-1:], rest])


@dataclass(frozen=True, slots=True)
class Definitions:
    """Where each function of the file begins, and what is none of them."""

    lines: tuple[int, ...]
    names: tuple[str, ...]
    """Empty for what is not from `src/`."""

    @classmethod
    def of(cls, source: str) -> Self:
        """Of a whole file of C."""
        found = []
        for number, line in enumerate(source.splitlines(), 1):
            if match := DEFINITION.match(line):
                found.append((number, match[1]))
            elif line == "}":
                found.append((number + 1, ""))
        names = (plain_name(c) if c.startswith(OURS) else "" for _, c in found)
        return cls(tuple(line for line, _ in found), tuple(names))

    def owner(self, line: int) -> str | None:
        """The function of `src/` that the line is part of, or None."""
        n = bisect.bisect_right(self.lines, line)
        return self.names[n - 1] or None if n else None
