# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from blkd.cli.options_document import table

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
BLOCK = re.compile(r"<!-- options of blkd serve -->\n(.*)<!-- end of the options -->\n", re.DOTALL)


def test_the_document_has_the_options_as_the_settings_are_declared():
    (printed,) = BLOCK.findall(DOCUMENT.read_text())
    assert printed == table(), "run: python -m blkd.cli.options_document"
