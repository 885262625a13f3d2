# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import click
import pytest

from blkd.cli.group import COMMANDS, blkd
from blkd.cli.manual import pages, write

KEPT = Path(__file__).parents[2] / "packaging" / "man"


def test_the_pages_are_those_of_the_commands():
    kept = {path.name: path.read_text() for path in KEPT.glob("blkd*.1")}
    assert kept == pages(), "run: python -m blkd.cli.manual packaging/man"


def test_every_command_has_a_page_and_is_listed_on_the_first():
    made = pages()
    for name in COMMANDS:
        assert f"blkd-{name}.1" in made
        assert f".B blkd\\-{name.replace('-', chr(92) + '-')}(1)\n" in made["blkd.1"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option(name):
    command = blkd.get_command(click.Context(blkd), name)
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.opts[0].replace("-", "\\-") in pages()[f"blkd-{name}.1"]


def test_no_line_of_a_text_is_taken_for_a_request():
    known = (".TH ", ".SH ", ".TP", ".PP", ".B ", ".I ", ".RI ", ".BR ", '.\\"')
    for page in pages().values():
        for line in page.splitlines():
            assert line.startswith(known) or line[:1] not in {".", "'"}


def test_pages_of_commands_that_are_no_more_are_taken_away(tmp_path):
    (tmp_path / "blkd-gone.1").write_text("")
    (tmp_path / "vhost-user-blkd.1").write_text("")
    write(tmp_path)
    assert not (tmp_path / "blkd-gone.1").exists()
    assert (tmp_path / "vhost-user-blkd.1").exists()
