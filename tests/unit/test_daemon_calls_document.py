# SPDX-License-Identifier: Apache-2.0
"""docs/control-api.md has the calls of the daemon as the code has them."""

from pathlib import Path

from blkd.control import models, problems
from blkd.daemon.api.calls_document import BEGIN, END, tables
from blkd.daemon.api.routes import ROUTES
from blkd.errors import BlkdError

DOCUMENT = (Path(__file__).parents[2] / "docs" / "control-api.md").read_text()


def test_the_document_has_the_calls_of_the_daemon_s_api():
    printed = DOCUMENT.partition(BEGIN)[2].partition(END)[0]
    assert printed.strip() == tables().strip(), "run: python -m blkd.daemon.api.calls_document"


def test_the_document_has_every_problem_with_its_status():
    for kind, status in problems.STATUS.items():
        if kind is not BlkdError:
            name = problems.problem_of(kind("")).type.removeprefix(models.PROBLEM_TYPES)
            assert f"| `{name}` | {int(status)} |" in DOCUMENT


def test_no_call_stands_twice_in_the_table():
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    assert len({route.call for route in ROUTES}) == len(ROUTES)
