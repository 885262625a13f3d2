# SPDX-License-Identifier: Apache-2.0
"""How much a disk, or a group of them, may do: the limits as people write them, and as numbers.

`iops=5000,bps-write=200M,burst-iops=20000,burst-length=10s`: 5000 requests a second, 20000 for ten
seconds after a rest, and 200 MiB a second of writes.  The names that QEMU has for the same
(`iops-total`, `iops-total-max`, `iops-total-max-length`) are understood as well.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Final

from msgspec import Meta

from blkd.errors import ConfigError
from blkd.host import sizes
from blkd.statistics.limits_page import Dimension

MOST_IOPS: Final = 10**9
MOST_BPS: Final = 1 << 43
"""8 TiB a second: no disk is faster, and no product of it overflows on the data path."""
MOST_LENGTH: Final = 86_400.0  # seconds
LENGTH: Final = 1.0
"""Seconds of a burst whose length is not given, as in QEMU."""

IOPS_SIZE: Final = "iops-size"
BURST: Final = "burst-"
BURST_LENGTH: Final = "burst-length"
"""That of all bursts that have none of their own."""
THOUSANDS: Final = {"": 1, "k": 1_000, "m": 1_000_000}
COUNT: Final = re.compile(r"(\d{1,12})([km]?)", re.IGNORECASE | re.ASCII)
SECONDS: Final = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}
TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of one kind may be done."""

    rate: Annotated[int, Meta(ge=1, le=MOST_BPS)]
    """Requests or bytes a second."""
    burst: Annotated[int, Meta(ge=0, le=MOST_BPS)] = 0
    """Likewise, while a burst lasts; 0 for none."""
    length: Annotated[float, Meta(ge=0, le=MOST_LENGTH)] = 0.0
    """Seconds that a burst may last after enough rest; 0 without one."""

    def __post_init__(self) -> None:
        """Raise ConfigError on a burst that is none."""
        if self.burst and not self.burst > self.rate:
            raise ConfigError(f"a burst of {self.burst} is no more than the rate of {self.rate}")
        if bool(self.burst) != (self.length > 0):
            raise ConfigError("a burst has both a rate and a length")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be done in all; what is None is not limited."""

    iops: Limit | None = None
    iops_read: Limit | None = None
    iops_write: Limit | None = None
    bps: Limit | None = None
    bps_read: Limit | None = None
    bps_write: Limit | None = None
    iops_size: Annotated[int, Meta(ge=0, le=MOST_BPS)] = 0
    """Bytes from which on a request counts as several, by its size; 0: each counts as one."""

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return bool(by_dimension(self))


NAMES: Final = tuple(
    field.name.replace("_", "-") for field in fields(Limits) if field.name != "iops_size"
)
"""Of the rates, in the order of `Dimension`."""


def _spellings() -> dict[str, str]:
    """The name of each limit by all the names that it has."""
    found = {IOPS_SIZE: IOPS_SIZE, BURST_LENGTH: BURST_LENGTH}
    for name in NAMES:
        of_qemu = name if "-" in name else f"{name}-total"
        for each in (name, of_qemu):
            found |= {
                each: name,
                f"{BURST}{each}": f"{BURST}{name}",
                f"{each}-max": f"{BURST}{name}",
                f"{BURST}{each}-length": f"{BURST}{name}-length",
                f"{each}-max-length": f"{BURST}{name}-length",
            }
    return found


SPELLINGS: Final = _spellings()


def parse(text: str) -> Limits:
    """The limits of a text such as `iops=5000,burst-iops=20000`; none of an empty one.

    Raises ConfigError.
    """
    return changed(Limits(), words(filter(None, text.split(","))))


def words(pairs: Iterable[str]) -> dict[str, str | None]:
    """Names and values of words such as `iops=5000`; of one without a value None.

    Raises ConfigError.
    """
    found: dict[str, str | None] = {}
    for pair in pairs:
        name, equals, value = pair.strip().partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is no limit and value; write iops=5000")
        if name in found:
            raise ConfigError(f"{name} is given twice")
        found[name] = value.strip() or None
    return found


def changed(limits: Limits, given: Mapping[str, Any]) -> Limits:
    """The limits with other values of some.

    Args:
        limits: Those until now.
        given: Texts or numbers by name; None takes a limit away, and a burst with its rate.

    Raises ConfigError on what is no limit, or a value that it cannot have.
    """
    values = plain(limits)
    named = {_name(each): value for each, value in given.items()}
    if len(named) != len(given):
        raise ConfigError("a limit is given twice, by two of its names")
    length = named.pop(BURST_LENGTH, None)
    for name, value in named.items():
        values[name] = None if value is None else _number(name, value)
        if value is None and name in NAMES:
            values |= dict.fromkeys((f"{BURST}{name}", f"{BURST}{name}-length"))
    if BURST_LENGTH in given:
        seconds = None if length is None else _number(BURST_LENGTH, length)
        values |= {
            f"{BURST}{name}-length": seconds
            for name in NAMES
            if values.get(f"{BURST}{name}") and named.get(f"{BURST}{name}-length") is None
        }
        if seconds is not None and not any(values.get(f"{BURST}{name}") for name in NAMES):
            raise ConfigError(f"{BURST_LENGTH} is of no burst; give burst-iops or another")
    rates: dict[str, Any] = {name.replace("-", "_"): _limit(name, values) for name in NAMES}
    return Limits(**rates, iops_size=values.get(IOPS_SIZE) or 0)


def require_known(names: Iterable[str]) -> None:
    """Raise ConfigError on a name that no limit has."""
    for name in names:
        _name(name)


def plain(limits: Limits) -> dict[str, Any]:
    """Names and numbers of the limits that there are: what `changed` makes them of."""
    found: dict[str, Any] = {}
    for name, limit in _named(limits).items():
        found[name] = limit.rate
        if limit.burst:
            found[f"{BURST}{name}"] = limit.burst
            found[f"{BURST}{name}-length"] = limit.length
    if limits.iops_size:
        found[IOPS_SIZE] = limits.iops_size
    return found


def write(limits: Limits) -> str:
    """The text of the limits, of which `parse` makes them; empty for none."""
    return ",".join(f"{name}={_written(value)}" for name, value in plain(limits).items())


def by_dimension(limits: Limits) -> dict[Dimension, Limit]:
    """What is limited, as the data path counts it."""
    return {Dimension(NAMES.index(name)): limit for name, limit in _named(limits).items()}


def name_of(dimension: Dimension) -> str:
    """What the limit of a dimension is called."""
    return NAMES[dimension]


def _named(limits: Limits) -> dict[str, Limit]:
    found = {name: getattr(limits, name.replace("-", "_")) for name in NAMES}
    return {name: limit for name, limit in found.items() if limit is not None}


def _name(spelled: str) -> str:
    if (name := SPELLINGS.get(spelled.strip().replace("_", "-"))) is None:
        raise ConfigError(
            f"there is no limit {spelled!r}",
            hint=f"limits are {', '.join(NAMES)}, burst- before each, burst-length and iops-size",
        )
    return name


def _limit(name: str, values: Mapping[str, Any]) -> Limit | None:
    rate, burst = values.get(name), values.get(f"{BURST}{name}")
    length = values.get(f"{BURST}{name}-length")
    if rate is None:
        if burst is not None or length is not None:
            raise ConfigError(f"a burst of {name} needs a rate: {name}=...")
        return None
    if burst is None:
        if length is not None and f"{BURST}{name}" not in values:
            raise ConfigError(f"{BURST}{name}-length is of no burst: {BURST}{name}=...")
        return Limit(rate)
    if burst <= rate:
        raise ConfigError(f"{BURST}{name} of {burst} is no more than {name} of {rate}")
    return Limit(rate, burst, LENGTH if length is None else length)


def _number(name: str, value: Any) -> int | float:
    """The number that a value means for a limit.  Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{name} is a number or a text, not {value!r}")
    if name.endswith("-length"):
        return _within(name, _seconds(name, value), 0.001, MOST_LENGTH)
    if name == IOPS_SIZE or "bps" in name:
        return _within(name, _bytes(name, value), 1, MOST_BPS)
    return _within(name, _count(name, value), 1, MOST_IOPS)


def _within(name: str, number: float, least: float, most: float) -> int | float:
    if not least <= number <= most:
        raise ConfigError(f"{name} can be {least:g} to {most:g}, not {number:g}")
    return number


def _count(name: str, value: float | str) -> int:
    if isinstance(value, str):
        if (found := COUNT.fullmatch(value.strip())) is None:
            raise ConfigError(f"{name}: {value!r} is no number of requests; write 5000 or 5k")
        return int(found[1]) * THOUSANDS[found[2].lower()]
    return _whole(name, value)


def _bytes(name: str, value: float | str) -> int:
    if isinstance(value, str):
        try:
            return sizes.parse(value)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    return _whole(name, value)


def _whole(name: str, value: float) -> int:
    if not math.isfinite(value) or value != int(value):
        raise ConfigError(f"{name} is a whole number, not {value}")
    return int(value)


def _seconds(name: str, value: float | str) -> float:
    if isinstance(value, str):
        if (found := TIME.fullmatch(value.strip())) is None:
            raise ConfigError(f"{name}: {value!r} is no time; write 10s")
        return float(found[1]) * SECONDS[found[2] or ""]
    return float(value)


def _written(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".") + "s"
