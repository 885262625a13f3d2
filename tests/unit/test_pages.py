# SPDX-License-Identifier: Apache-2.0
"""What the pages print can be typed, and where they point there is something."""

import re
import shlex
from pathlib import Path

import click
import pytest

from blkd.cli.group import blkd

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
MOST_LINES = 200  # of a page that one reads first


def commands():
    """Every line of the pages that calls blkd, without what a shell does with it."""
    for page in PAGES:
        for block in FENCED.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                typed = re.split(r" [|#&] | && |  #", line.removeprefix("$ "))[0]
                if re.match(r"blkd [a-z]", typed):
                    yield pytest.param(typed, id=f"{page.name}: {typed}"[:80])


def test_pages_print_commands():
    assert len(list(commands())) > 20


@pytest.mark.parametrize("typed", list(commands()))
def test_a_printed_command_has_a_verb_and_options_that_exist(typed):
    words = shlex.split(typed)[1:]
    command = blkd
    with click.Context(blkd) as context:
        while isinstance(command, click.Group):
            name = next(word for word in words if not word.startswith("-"))
            words.remove(name)
            command = command.get_command(context, name)
            assert command is not None, name
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= known | {option for parameter in blkd.params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_where_a_page_points_there_is_something(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_a_page_to_begin_with_is_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= MOST_LINES
