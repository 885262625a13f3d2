# SPDX-License-Identifier: Apache-2.0
"""Each module of blkd has a name of its own, so that a name says which file is meant."""

from collections import Counter
from pathlib import Path

import blkd


def test_each_module_has_a_name_of_its_own():
    package = Path(blkd.__file__).parent
    modules = {
        path.relative_to(package).with_suffix("")
        for path in package.rglob("*.py*")
        if is_source(path)
    }
    named = Counter(module.name for module in modules)
    assert {str(module) for module in modules if named[module.name] > 1} == set()


def is_source(path: Path) -> bool:
    return path.suffix in {".py", ".pyi"} and path.stem != "__init__"
