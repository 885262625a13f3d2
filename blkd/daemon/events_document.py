# SPDX-License-Identifier: Apache-2.0
"""Prints the list of events with their fields, from the calls in the code: docs/events.md.

python -m blkd.daemon.events_document
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import blkd

PACKAGE: Final = Path(blkd.__file__).parent
LEVELS: Final = ("debug", "info", "warning", "error", "exception")
OMITTED: Final = frozenset({"export", "level", "exc_info"})
"""What every event of an export says, and what is a traceback."""
OTHERS: Final = "..."
"""Among the fields: further ones, that the call does not name."""
INTRODUCTION: Final = """\
# Events in the logs

This page is printed by `python -m blkd.daemon.events_document` from the code; a test compares.

blkd logs to standard error, as one JSON object a line unless that is a terminal. Each has `event`,
`level`, `timestamp` (UTC) and, where it is about one export, `export`. Of the same event of one
export or ring at most ten come in ten seconds, then one more with `suppressed`, the number of those
that were left out. An error that is a mistake in blkd has `exception`, its traceback.

The process of an export of `blkd daemon` logs into `STATE/log/NAME.jsonl`; `blkd logs` prints that.
The daemon copies each line to its own standard error, and so into the journal, and keeps the last
10,000 events for `blkd events`.

`...` among the fields stands for further ones.
"""


@dataclass(slots=True)
class Described:
    """An event, wherever it is logged."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)


def described(files: Iterable[Path]) -> dict[str, Described]:
    """The events that these files log, by name."""
    found: dict[str, Described] = {}
    for path in files:
        tree = ast.parse(path.read_text("utf-8"))
        for level, call in _calls(tree):
            for name in _names(call, tree):
                event = found.setdefault(name, Described())
                event.levels.add(level)
                event.modules.add(str(path.relative_to(PACKAGE)))
                event.fields |= {word.arg or OTHERS for word in call.keywords} - OMITTED
    return found


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls that log an event, with its level."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        match node.func:
            case ast.Attribute(attr=level) if level in LEVELS and _is_log(node.func.value):
                yield ("error" if level == "exception" else level), node
            case ast.Attribute(attr="tell") | ast.Name(id="tell"):
                yield _told_level(node), node


def _is_log(value: ast.expr) -> bool:
    """Whether a method of this is one that logs."""
    match value:
        case ast.Name(id="log") | ast.Call(func=ast.Attribute(attr="get_logger")):
            return True
    return False


def _told_level(call: ast.Call) -> str:
    for word in call.keywords:
        if word.arg == "level" and isinstance(word.value, ast.Constant):
            return str(word.value.value)
    return "info"


def _names(call: ast.Call, tree: ast.Module) -> list[str]:
    """What the event may be called: what the call says, or one of a table of event and hint."""
    match call.args[0]:
        case ast.Constant(value=str(name)):
            return [name]
    constants = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    return [
        name
        for constant in constants
        for node in ast.walk(constant)
        if isinstance(node, ast.Tuple)
        for name in _event_of(node)
    ]


def _event_of(pair: ast.Tuple) -> list[str]:
    match pair.elts:
        case [ast.Constant(value=str(event)), ast.Constant(value=str()) | ast.Name()]:
            return [event]
    return []


def page() -> str:
    """The whole page."""
    files = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "events_document.py")
    lines = [INTRODUCTION, "| Event | Level | Fields | Where |", "| --- | --- | --- | --- |"]
    for name, event in sorted(described(files).items()):
        fields = ", ".join(f"`{one}`" for one in sorted(event.fields))
        modules = ", ".join(f"`{one}`" for one in sorted(event.modules))
        levels = ", ".join(level for level in LEVELS if level in event.levels)
        lines.append(f"| {name} | {levels} | {fields} | {modules} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
