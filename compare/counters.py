# SPDX-License-Identifier: Apache-2.0
"""Hardware counters by `perf stat`, where the machine has them: virtual ones often have not."""

import shutil
import subprocess
from typing import Final

from compare.images import CHECKOUT

PERF: Final = "perf"
EVENT: Final = "cycles:u"
LIMIT: Final = 60.0  # seconds


def cycles(command: list[str]) -> int | None:
    """Processor cycles that a program spends in user space, or None where none are counted."""
    if not shutil.which(PERF):
        return None
    words = [PERF, "stat", "--field-separator", ",", "--event", EVENT, "--", *command]
    done = subprocess.run(  # noqa: S603 - the command is our caller's, nothing from outside
        words, check=False, capture_output=True, text=True, timeout=LIMIT, cwd=CHECKOUT
    )
    return counted(done.stderr) if done.returncode == 0 else None


def counted(said: str) -> int | None:
    """The one count in what `perf stat` writes, or None: "<not supported>,,cycles:u,0,...".  Pure.

    The first field is the count, the third the event, perf-stat(1), "CSV FORMAT".
    """
    for line in said.splitlines():
        fields = line.split(",")
        if fields[2:3] == [EVENT] and fields[0].isdecimal():
            return int(fields[0])
    return None
