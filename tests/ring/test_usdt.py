# SPDX-License-Identifier: Apache-2.0
"""The notes by which a tracer finds USDT probes, as binutils reads them out of the extensions."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from blkd.dataplane import traced_files

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
NOTE = re.compile(r"Provider: blkd\n\s+Name: (\w+)\n\s+Location: .*\n\s+Arguments: (.*)")
ROW = re.compile(r"^\| `(\w+)` \| ([a-z, ]+) \|[^|]*\|((?: [a-z]* ?\|)+)$", re.MULTILINE)
ARGUMENT = re.compile(r"-?[1248]@\S+")
FILES = dict(zip(["block", "ring"], traced_files(), strict=True))


def notes(path):
    """The probes of a file, and how many arguments each place of one has."""
    text = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True)
    found = defaultdict(set)
    for name, arguments in NOTE.findall(text.stdout):
        found[name].add(len(ARGUMENT.findall(arguments)))
        assert ARGUMENT.sub("", arguments).strip() == ""
    return dict(found)


def documented(extension):
    """What the page says of one extension's probes, in the same form."""
    return {
        name: {len(arguments.replace("|", " ").split())}
        for name, files, arguments in ROW.findall(PAGE.read_text().partition("## Probes")[2])
        if extension in files.split(", ")
    }


@pytest.mark.parametrize("extension", FILES)
def test_each_probe_has_the_arguments_that_the_page_says(extension):
    found = notes(FILES[extension])
    assert found
    assert found == documented(extension)
