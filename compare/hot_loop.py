# SPDX-License-Identifier: Apache-2.0
"""Drives the data path's loop in this process, for a profiler to look at.

python -m compare.hot_loop REQUESTS [packed]
"""

import sys
from typing import Final

from blkd.hot_loop import HotLoop

FUNCTION: Final = "*HotLoop*serve*"
"""The C function whose instructions count, with all that it calls; callgrind's pattern."""


def drive(requests: int, *, packed: bool) -> None:
    """Have the loop carry out so many 4 KiB reads of a null image, 32 in flight."""
    loop = HotLoop(packed=packed)
    served = 0
    while served < requests:
        loop.offer()
        served = loop.serve()


def main() -> None:
    """Drive it as the command line says."""
    drive(int(sys.argv[1]), packed="packed" in sys.argv[2:])


if __name__ == "__main__":
    main()
