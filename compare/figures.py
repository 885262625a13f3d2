# SPDX-License-Identifier: Apache-2.0
"""Figures as people read them.  Pure."""

from typing import Final

from compare.stats import Spread

MILLION: Final = 1_000_000
THOUSAND: Final = 1000
WHOLE_FROM: Final = 100
"""From here on digits after the point say nothing."""
NONE: Final = "–"


def figure(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= WHOLE_FROM:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def count(value: float) -> str:
    """With k or M: 292 k."""
    if value >= MILLION:
        return f"{figure(value / MILLION)} M"
    return f"{figure(value / THOUSAND)} k" if value >= THOUSAND else f"{value:.0f}"


def median(seen: Spread | None, unit: str = "") -> str:
    """The middle of the rounds."""
    return f"{figure(seen.median)} {unit}".strip() if seen else NONE


def reach(seen: Spread | None) -> str:
    """From the lowest to the highest round."""
    if seen is None or seen.rounds == 1:
        return NONE
    return f"{figure(seen.low)}–{figure(seen.high)}"


def counted(seen: Spread | None) -> str:
    """A median with its reach, of large numbers."""
    if seen is None:
        return NONE
    if seen.rounds == 1:
        return count(seen.median)
    return f"{count(seen.median)} ({count(seen.low)}–{count(seen.high)})"
