# SPDX-License-Identifier: Apache-2.0
"""What becomes of requests that an image fails: they are reported to the guest, or held."""

from dataclasses import dataclass
from typing import Final

from blkd.errors import ConfigError

REPORT: Final = "report"
HOLD: Final = "hold"
LONGEST: Final = 86_400
"""Seconds; who wants to hold for more than a day holds for as long as it takes."""


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """Which requests are held, and for how long."""

    holds_no_space: bool = False
    """Whether those are for which the image has no space: ENOSPC, EDQUOT."""
    holds_errors: bool = False
    """Whether all others are."""
    longest: int | None = None
    """Seconds until one of those others is reported after all; None for as long as it takes."""

    @property
    def holds(self) -> bool:
        """Whether any request may be held."""
        return self.holds_no_space or self.holds_errors


def read_policy(on_enospc: str, on_error: str) -> ErrorPolicy:
    """The policy of two settings: `report` or `hold`, and `report`, `hold` or `hold:SECONDS`.

    Raises ConfigError.
    """
    word, separator, seconds = on_error.partition(":")
    if on_enospc not in {REPORT, HOLD}:
        raise ConfigError(f"{on_enospc!r} is no error policy; write report or hold")
    if word not in {REPORT, HOLD} or (separator and word == REPORT):
        raise ConfigError(f"{on_error!r} is no error policy; write report, hold or hold:SECONDS")
    if separator and not (seconds.isascii() and seconds.isdecimal()):
        raise ConfigError(f"{seconds!r} are no whole seconds; write hold:30")
    longest = int(seconds) if separator else None
    if longest is not None and not 0 < longest <= LONGEST:
        raise ConfigError(f"{longest} seconds are not between 1 and {LONGEST}")
    return ErrorPolicy(on_enospc == HOLD, word == HOLD, longest)


def require_error_policy(on_error: str) -> None:
    """Raise ConfigError on what is no policy for errors."""
    read_policy(REPORT, on_error)
