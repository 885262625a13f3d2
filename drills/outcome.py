# SPDX-License-Identifier: Apache-2.0
"""What a drill reports."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a drill has seen."""

    drill: str
    rounds: int
    errors: int
    figures: dict[str, int | float]
    """Name with unit ("requests", "bytes verified", "pause p99, ms") to number, in the order to
    be shown."""
