# SPDX-License-Identifier: Apache-2.0
"""What the pages print can be typed, and where they point there is something."""

import re
import shlex
from itertools import groupby
from pathlib import Path

import click
import pytest

from blkd.cli.group import blkd

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
IN_PROSE = re.compile(r"`(blkd [a-z][^`]*)`")
PROMPT = re.compile(r"^ *\$ ")
CALL = re.compile(r"(^|[;&|] *)blkd [a-z-]")
SUBSTITUTION = re.compile(r"\$\([^)]*\)")
OPERATORS = frozenset("();<>|&")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
MOST_LINES = 200  # of a page that one reads first


def calls(line):
    """The words behind each `blkd` that a shell would start by this line."""
    lexer = shlex.shlex(SUBSTITUTION.sub("1", line), posix=True, punctuation_chars=True)
    for is_operator, words in groupby(lexer, OPERATORS.issuperset):
        program, *arguments = words
        if not is_operator and program == "blkd":
            yield arguments


def printed():
    """Each call of blkd in the blocks of the pages, where one copies it from."""
    for page in PAGES:
        for block in FENCED.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                typed = PROMPT.sub("", line)
                for words in calls(typed) if CALL.search(typed) else ():
                    yield pytest.param(words, id=f"{page.name}: {shlex.join(words)}"[:80])


def mentioned():
    """Each call of blkd in the sentences of the pages, where some of it may be left out."""
    for page in PAGES:
        for typed in IN_PROSE.findall(FENCED.sub("", page.read_text())):
            for words in calls(typed):
                yield pytest.param(words, id=f"{page.name}: {shlex.join(words)}"[:80])


def parse(words):
    """Have click take `words` as it would if they were typed, but for what they do."""
    command, context = blkd, None
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        if not isinstance(command, click.Group):
            return
        _, command, words = command.resolve_command(context, words)


def require_known(words):
    """Raise UsageError if a verb or an option of these words does not exist."""
    command, context, left = blkd, click.Context(blkd), list(words)
    options = set()
    while True:
        options |= {name for each in command.get_params(context) for name in each.opts}
        verb = next((word for word in left if not word.startswith("-")), None)
        if not isinstance(command, click.Group) or verb is None:
            break
        left.remove(verb)
        _, command, _ = command.resolve_command(context, [verb])
    for word in left:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in options:
            raise click.NoSuchOption(name)


def for_each_call(line, check):
    for words in calls(line):
        check(words)


def test_pages_print_commands():
    assert len(list(printed())) > 20
    assert len(list(mentioned())) > 40


@pytest.mark.parametrize("words", list(printed()))
def test_a_printed_command_can_be_typed(words):
    parse(words)


@pytest.mark.parametrize("words", list(mentioned()))
def test_a_mentioned_command_has_a_verb_and_options_that_exist(words):
    require_known(words)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("blkd sirve a.img --socket s", id="verb"),
        pytest.param("blkd image make a.img 1G", id="verb-of-a-verb"),
        pytest.param("blkd show --contrl c", id="option"),
        pytest.param("blkd serve a.img -x --socket s", id="short-option"),
        pytest.param("blkd connect --socket s --vmm bochs", id="choice"),
        pytest.param("blkd image create a.img 1Q", id="size"),
        pytest.param("blkd serve a.img --socket s --queues many", id="number"),
        pytest.param("blkd resize --control c", id="argument-missing"),
        pytest.param("blkd resize 1G 2G --control c", id="argument-too-many"),
        pytest.param("blkd show", id="option-missing"),
        pytest.param("blkd show --control", id="value-missing"),
        pytest.param("mkdir -p d; blkd show --contrl c", id="behind-another"),
        pytest.param("blkd show --control c && blkd stats --contrl c", id="second"),
        pytest.param("blkd bench s --pid $(pgrep -o blkd) --rv read | tail", id="substitution"),
    ],
)
def test_what_cannot_be_typed_is_found(line):
    assert CALL.search(line)
    with pytest.raises(click.UsageError):
        for_each_call(line, parse)


@pytest.mark.parametrize(
    "line", ["blkd sirve", "blkd image make", "blkd bench --rv read", "blkd -x"]
)
def test_what_does_not_exist_is_found(line):
    with pytest.raises(click.UsageError):
        for_each_call(line, require_known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_where_a_page_points_there_is_something(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_a_page_to_begin_with_is_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= MOST_LINES
