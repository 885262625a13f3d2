# SPDX-License-Identifier: Apache-2.0
import ast
from pathlib import Path

from blkd.daemon.events_document import _calls, described, page

DOCUMENT = Path(__file__).parents[2] / "docs" / "events.md"


def test_the_document_has_the_events_as_they_are_logged():
    run = "run: python -m blkd.daemon.events_document > docs/events.md"
    assert DOCUMENT.read_text() == page(), run


def test_every_call_that_logs_is_found():
    code = """
log.info("one", ring=1)
structlog.get_logger().warning("two", **more)
self._events.tell("three", export=name, level="error", reason=why)
log.exception("one")
other.info("none", x=1)
"""
    found = [(level, call.args[0].value) for level, call in _calls(ast.parse(code))]
    assert found == [("info", "one"), ("warning", "two"), ("error", "three"), ("error", "one")]


def test_no_event_is_without_a_name():
    root = Path(described.__globals__["PACKAGE"])
    calls = [call for path in root.rglob("*.py") for _, call in _calls(ast.parse(path.read_text()))]
    assert len(calls) > 80
    assert all(name == name.strip() and name for name in described(root.rglob("*.py")))
