# SPDX-License-Identifier: Apache-2.0
"""Which folder of `src/` cimports which: as `ARCHITECTURE.md` shows it, and no other way."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
CIMPORT = re.compile(r"^(?:from|cimport) ([\w.]+)", re.MULTILINE)
SHOWN = re.compile(r"^```cimports\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def folder_of(path):
    """A file's folder, or its own name where it stands in none."""
    return path.relative_to(SOURCES).parts[0]


def graph_of_the_sources():
    """The folders that each folder, and each file beside them, cimports."""
    folders = {path.parent.name for path in SOURCES.glob("*/__init__.pxd")}
    graph = {}
    for path in [*SOURCES.rglob("*.pxd"), *SOURCES.rglob("*.pyx")]:
        found = {module.partition(".")[0] for module in CIMPORT.findall(path.read_text())}
        graph.setdefault(folder_of(path), set()).update(found & folders - {folder_of(path)})
    return graph


def graph_of_the_document():
    """The same, as the document has it: a line "A -> B, C" where A cimports B and C."""
    [shown] = SHOWN.findall((ROOT / "ARCHITECTURE.md").read_text())
    graph = {}
    for line in shown.splitlines():
        names, _, cimported = line.partition("->")
        for name in re.split(r"[\s,]+", names.strip()):
            graph[name] = set(re.split(r"[\s,]+", cimported.strip())) - {""}
    return graph


def lines(graph):
    """A graph as the document shows it, one line a name."""
    return [f"{name} -> {', '.join(sorted(graph[name]))}".rstrip() for name in sorted(graph)]


def test_folders_cimport_each_other_as_the_document_shows():
    found = lines(graph_of_the_sources())
    print("\n".join(found))  # noqa: T201 - to be copied, where that is as it should be
    assert found == lines(graph_of_the_document())
