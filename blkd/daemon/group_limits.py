# SPDX-License-Identifier: Apache-2.0
"""The limits of a group: plain values, as the API and the records have them, and what is shared."""

from collections.abc import Iterable, Mapping
from typing import Any

from blkd.control.daemon_models import Limits as PlainLimits
from blkd.daemon.sharing import Rate
from blkd.errors import ConfigError
from blkd.export import limits
from blkd.statistics.limits_page import Dimension


def read_limits(words: Iterable[str]) -> PlainLimits:
    """The limits that words such as `iops=2000` give or, without a value, take away.

    Raises ConfigError on what is no word, or no limit by its name or value.
    """
    given = limits.words(words)
    limits.require_known(given)
    return dict(given)


def kept_limits(before: PlainLimits, given: PlainLimits) -> PlainLimits:
    """Limits with other values of some, in the one way of writing them.

    Raises ConfigError on what a group cannot have.
    """
    kept = limits.changed(limits.changed(limits.Limits(), before), given)
    if kept.iops_size:
        raise ConfigError(
            "a group has no iops-size", hint="what counts as a request is a limit of each export"
        )
    if not kept:
        raise ConfigError("a group without limits is none", hint="give it iops=... or bps=...")
    return limits.plain(kept)


def rates_of(kept: PlainLimits) -> Mapping[Dimension, Rate]:
    """What the members share, in units a second.  Raises ConfigError on what is no limit."""
    found = limits.by_dimension(limits.changed(limits.Limits(), kept))
    return {
        dimension: Rate(limit.rate * dimension.units, limit.burst * dimension.units, limit.length)
        for dimension, limit in found.items()
    }


def shown_grants(granted: Mapping[Dimension, int]) -> dict[str, Any]:
    """What a member may use, in requests or bytes a second, by the names of the limits."""
    return {
        limits.name_of(dimension): round(rate / dimension.units, 2)
        for dimension, rate in sorted(granted.items())
    }
