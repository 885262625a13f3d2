# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write and read them; all units are powers of 1024."""

import re
from fractions import Fraction

UNITS = "KMGTPE"
MOST = 2**63 - 1  # off_t
WRITTEN = re.compile(
    rf"(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<unit>[{UNITS}])(?:iB)?|B)?", re.IGNORECASE | re.ASCII
)


AMBIGUOUS = re.compile(
    rf"\s*(?P<number>[\d.]+)\s*(?P<unit>[{UNITS}])B\s*", re.IGNORECASE | re.ASCII
)


def parse(text: str) -> int:
    """The bytes of `text`: `4096`, `512M`, `1.5G` or `10GiB`.

    Raises:
        ValueError: it is no size, or no whole number of bytes.
    """
    written = WRITTEN.fullmatch(text.strip())
    if ambiguous := AMBIGUOUS.fullmatch(text):
        number, unit = ambiguous["number"], ambiguous["unit"].upper()
        raise ValueError(
            f"{text!r} is no size that all read alike: write {number}{unit} or {number}{unit}iB,"
            f" with units of 1024, or the number of bytes"
        )
    if written is None:
        raise ValueError(f"{text!r} is no size; write 10G or 512M")
    exponent = UNITS.index(written["unit"].upper()) + 1 if written["unit"] else 0
    size = Fraction(written["number"]) * 1024**exponent
    if size.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    if size > MOST:
        raise ValueError(f"{text!r} is more than a file can have")
    return int(size)


def show(size: int) -> str:
    """`size` bytes in the largest unit that leaves a number before the point."""
    exponent = min(max(size.bit_length() - 1, 0) // 10, len(UNITS))
    if exponent == 0:
        return f"{size} B"
    number = f"{size / 1024**exponent:.2f}".rstrip("0").rstrip(".")
    return f"{number} {UNITS[exponent - 1]}iB"
