# SPDX-License-Identifier: Apache-2.0
"""The data path's generated C, read for calls into Python."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "build" / "cython" / "src" / "ring.c"
FUNCTION = re.compile(
    r"^static (?!PyObject)[^\n;]*?\b(__pyx_f_\w+)\([^;{]*\) \{\n(.*?)^\}\n",
    re.MULTILINE | re.DOTALL,
)
PYTHON = re.compile(r"\b(?:Py_?[A-Z]\w*|__Pyx_\w*(?:GIL|Gil|Raise|Err|Refnanny|AddTraceback)\w*)\b")


@pytest.fixture(scope="module")
def functions():
    """The body of each C function that the compiler made of one in src/, by its name there."""
    text = GENERATED.read_text()
    return {name.rpartition("_f_")[2]: body for name, body in FUNCTION.findall(text)}


def written():
    """The names of the data path's functions, as they stand in src/."""
    above, _, _ = (ROOT / "src" / "ring.pyx").read_text().partition("# ---- Python face ----")
    sources = [above, *(path.read_text() for path in (ROOT / "src").glob("*.pxd"))]
    return {
        name
        for source in sources
        for name in re.findall(r"^cdef (?:inline )?[^\n(]*?\b\*?(\w+)\($", source, re.MULTILINE)
        + re.findall(r"^cdef (?:inline )?[^\n(]*?[\s*](\w+)\([^\n]*$", source, re.MULTILINE)
    }


def test_every_function_of_the_data_path_is_found_in_the_generated_code(functions):
    missing = {name for name in written() if not any(f.endswith(f"_{name}") for f in functions)}
    assert not missing
    assert len(written()) > 60


def test_no_function_of_the_data_path_calls_python(functions):
    names = written()
    guilty = {
        name: found
        for name, body in functions.items()
        if any(name.endswith(f"_{known}") for known in names)
        if (found := sorted(set(PYTHON.findall(re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)))))
    }
    assert not guilty


def test_the_search_would_find_python(functions):
    with_python = [n for n, body in functions.items() if PYTHON.search(body)]
    assert any("reserve" in name for name in with_python)
