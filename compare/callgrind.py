# SPDX-License-Identifier: Apache-2.0
"""Reads what valgrind's callgrind writes.  Pure.

The form is that of valgrind's manual, "Callgrind Format Specification": positions are
`fl=` or, within inlined code, `fi=` and `fe=`; `fn=` names the function; a line of costs is
a line number, absolute or relative to the last, and numbers; `calls=` is followed by the
costs of the called function, which are not the caller's own.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

POSITION: Final = re.compile(r"^(ob|fl|fi|fe|fn|cob|cfi|cfl|cfn)=(?:\((\d+)\))?(?:\s*(.*))?$")
COST: Final = re.compile(r"^(\+\d+|-\d+|\*|\d+)\s+(\d+)")
FILE: Final = frozenset({"fl", "fi", "fe"})
CALLED: Final = frozenset({"cob", "cfi", "cfl", "cfn"})
NAME_SPACE: Final = {"fi": "fl", "fe": "fl", "cfi": "fl", "cfl": "fl", "cfn": "fn", "cob": "ob"}
"""Whose numbers a name's abbreviation shares."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code, and the function that callgrind counts it for."""

    file: str
    function: str
    line: int


@dataclass
class _Reader:
    """What the file has said so far."""

    names: dict[tuple[str, str], str] = field(default_factory=dict)
    file: str = ""
    function: str = ""
    line: int = 0
    called: bool = False

    def name(self, kind: str, number: str | None, text: str) -> str:
        """A name, whole or as the number that it was given before."""
        if number is None:
            return text
        key = NAME_SPACE.get(kind, kind), number
        if text:
            self.names[key] = text
        return self.names.get(key, "")

    def position(self, kind: str, number: str | None, text: str) -> None:
        """A line that says where the costs below it arise."""
        name = self.name(kind, number, text)
        if kind in FILE:
            self.file = name
        elif kind == "fn":
            self.function = name

    def move(self, where: str) -> None:
        """To another line."""
        if where == "*":
            return
        self.line = int(where) + (self.line if where[0] in "+-" else 0)


def own_costs(text: Iterable[str]) -> Counter[Place]:
    """Instructions of each line, without those of functions that it calls."""
    costs: Counter[Place] = Counter()
    reader = _Reader()
    for line in text:
        if line.startswith("calls="):
            reader.called = True
        elif found := POSITION.match(line):
            reader.position(found[1], found[2], (found[3] or "").strip())
        elif found := COST.match(line):
            reader.move(found[1])
            if not reader.called:
                costs[Place(reader.file, reader.function, reader.line)] += int(found[2])
            reader.called = False
    return costs
