# SPDX-License-Identifier: Apache-2.0
"""What a serving process does not load: it lives as long as its disk."""

import importlib
import sys
from typing import Any


def import_structlog() -> None:
    """Import structlog before anybody else does, without rich: 4.5 MiB of memory less.

    structlog draws tracebacks with rich where that is installed; ours are plain.
    """
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None  # to the import system: not installed
    importlib.import_module("structlog")
    del modules["rich"]  # whoever asks for it after all shall have it
