# SPDX-License-Identifier: Apache-2.0
"""Numbers that change each second, in few characters, for tables that people watch."""

from typing import Final

NOTHING: Final = "-"
THOUSAND: Final = 1000
PLAIN: Final = 100_000  # below that a count is shown with all its digits
KIB: Final = 1024
UNITS: Final = ("", "K", "M", "G", "T", "P")
TIMES: Final = ((1e9, "ns"), (1e6, "µs"), (1e3, "ms"))
"""Parts of a second, and how many it has."""
MINUTE: Final = 60
FOUR_DIGITS: Final = 999.5  # from there on a number has four
THREE_DIGITS: Final = 99.5
LEAST: Final = 0.005  # what is less is shown as 0
TENTH: Final = 0.095
TWO_DIGITS: Final = 9.95  # from there on a number has two digits before its point


def count(value: float | None) -> str:
    """How many, of requests a second say: `0.3`, `1234`, `182k`, `1.2M`."""
    if value is None:
        return NOTHING
    if value < PLAIN:
        return _number(value)
    thousands = value / THOUSAND
    return f"{thousands:.0f}k" if thousands < FOUR_DIGITS else f"{_number(thousands / THOUSAND)}M"


def amount(value: float | None) -> str:
    """Bytes, in the unit that leaves up to three digits; units are powers of 1024."""
    if value is None:
        return NOTHING
    exponent = 0
    while value >= FOUR_DIGITS and exponent < len(UNITS) - 1:
        value /= KIB
        exponent += 1
    return f"{_number(value)}{UNITS[exponent]}"


def duration(seconds: float | None) -> str:
    """A time, in the unit that leaves up to three digits: `850ns`, `1.2ms`, `4m10s`."""
    if seconds is None:
        return NOTHING
    if seconds == 0:
        return "0"
    for parts, unit in TIMES:
        if seconds * parts < FOUR_DIGITS:
            return f"{_number(seconds * parts)}{unit}"
    if seconds < THREE_DIGITS:
        return f"{_number(seconds)}s"
    minutes, rest = divmod(round(seconds), MINUTE)
    if minutes < MINUTE:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // MINUTE}h{minutes % MINUTE:02}m"


def share(value: float | None) -> str:
    """A part of a whole, in per cent."""
    return NOTHING if value is None else f"{100 * value:.0f}%"


def decimal(value: float | None) -> str:
    """A number of any kind, with one digit behind the point where there is room for it."""
    return NOTHING if value is None else _number(value)


def _number(value: float) -> str:
    """With one digit behind the point below ten, two below a tenth, none where it would be 0."""
    if LEAST <= value < TENTH:
        return f"{value:.2f}"
    return f"{value:.1f}" if TENTH <= value < TWO_DIGITS else f"{value:.0f}"
