# SPDX-License-Identifier: Apache-2.0
"""How many descriptors this process has: for tests of what closes them."""

import time
from pathlib import Path


def open_fds() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def wait_for_fds(count: int, limit: float = 5) -> bool:
    """Whether this process soon has no more than `count` descriptors: other threads close some."""
    deadline = time.monotonic() + limit
    while open_fds() > count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
