# SPDX-License-Identifier: Apache-2.0
"""The standard descriptors, which a parent may have left closed."""

import os
import sys

STANDARD = 3  # 0, 1 and 2


def keep_standard() -> None:
    """Have /dev/null in the place of each standard descriptor that is closed.

    To be called before anything is opened: what takes the number 2 otherwise, a socket or an
    image, is what log lines would be written to.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) < STANDARD:
        pass
    os.close(fd)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
