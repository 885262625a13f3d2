# SPDX-License-Identifier: Apache-2.0
"""The generated C of what runs without the GIL, read for calls into Python."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
FUNCTION = re.compile(
    r"^static (?!PyObject)[^\n;]*?\b(__pyx_f_\w+)\([^;{]*\) \{\n(.*?)^\}\n",
    re.MULTILINE | re.DOTALL,
)
EXTENSIONS = ["ring", "block", "network", "vsock", "loadgen"]
PYTHON = re.compile(r"\b(?:Py_?[A-Z]\w*|__Pyx_\w*(?:GIL|Gil|Raise|Err|Refnanny|AddTraceback)\w*)\b")


@dataclass(frozen=True)
class Extension:
    """One extension: its functions that may not call Python, and the C made of all of them."""

    names: frozenset[str]
    bodies: dict[str, str]
    """The C of each function, by its name there."""

    @classmethod
    def load(cls, name):
        above, _, _ = (SOURCES / f"{name}.pyx").read_text().partition("# ---- Python face ----")
        generated = (ROOT / "build" / "cython" / "src" / f"{name}.c").read_text()
        return cls(
            frozenset(
                function for text in [above, *cimported(above)] for function in defined(text)
            ),
            {c.rpartition("_f_")[2]: body for c, body in FUNCTION.findall(generated)},
        )


def cimported(text, seen=None):
    """The texts of the pxd files that a source cimports, and of those that they do."""
    seen = set() if seen is None else seen
    for name in re.findall(r"^from ([\w.]+) cimport", text, re.MULTILINE):
        path = SOURCES / f"{name.replace('.', '/')}.pxd"
        if path.exists() and path not in seen:
            seen.add(path)
            yield path.read_text()
            yield from cimported(path.read_text(), seen)


def defined(source):
    """The names of the functions that a source defines."""
    yield from re.findall(r"^cdef (?:inline )?[^\n(]*?\b\*?(\w+)\($", source, re.MULTILINE)
    yield from re.findall(r"^cdef (?:inline )?[^\n(]*?[\s*](\w+)\([^\n]*$", source, re.MULTILINE)


@pytest.fixture(scope="module", params=EXTENSIONS)
def extension(request):
    return Extension.load(request.param)


def test_every_function_is_found_in_the_generated_code(extension):
    missing = {n for n in extension.names if not any(c.endswith(f"_{n}") for c in extension.bodies)}
    assert not missing
    assert len(extension.names) > 50


def test_no_function_calls_python(extension):
    guilty = {
        name: found
        for name, body in extension.bodies.items()
        if any(name.endswith(f"_{known}") for known in extension.names)
        if (found := sorted(set(PYTHON.findall(re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)))))
    }
    assert not guilty


def test_the_search_would_find_python(extension):
    assert any(PYTHON.search(body) for body in extension.bodies.values())


def test_every_part_of_the_sources_is_read_with_one_extension():
    read = set()
    for name in EXTENSIONS:
        list(cimported((SOURCES / f"{name}.pyx").read_text(), read))
    assert read == {path for path in SOURCES.rglob("*.pxd") if path.name != "__init__.pxd"}
