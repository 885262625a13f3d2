# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from blkd.cli.options_document import MODELS, commands, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
END = "<!-- end of the options -->"


@pytest.mark.parametrize("command", MODELS)
def test_the_document_has_the_options_as_the_settings_are_declared(command):
    block = re.compile(f"<!-- options of blkd {command} -->\n(.*?){END}\n", re.DOTALL)
    (printed,) = block.findall(DOCUMENT.read_text())
    assert printed == table(command), f"run: python -m blkd.cli.options_document {command}"


def test_the_document_has_all_commands():
    block = re.compile("<!-- all commands -->\n(.*?)<!-- end of the commands -->\n", re.DOTALL)
    (printed,) = block.findall(DOCUMENT.read_text())
    assert printed == commands(), "run: python -m blkd.cli.options_document"
