# SPDX-License-Identifier: Apache-2.0
"""Looks at figures, one after the other: what was done between two of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blkd.cli.figures_source import Source
from blkd.statistics.figures import Figures
from blkd.statistics.live_table import Sample, known_figures

LEAST_INTERVAL: Final = 0.1  # seconds between two looks
MOST_INTERVAL: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was found, and what was known before."""

    time: float
    """Seconds since 1970."""
    before: Mapping[str, Figures]
    """By the names of exports: those that had figures."""
    observed: Sequence[Sample]


class Looks:
    """A source as it is looked at."""

    def __init__(self, source: Source) -> None:
        """Take the first figures, from which on things are measured.

        Raises as `look` of a source does.
        """
        self._source = source
        self.first: Final = source.look()
        self._before = known_figures(self.first)

    def since_the_beginning(self) -> Look:
        """The first look, with all that was done before it."""
        before = {
            name: Figures(time_ns=figures.began_ns)
            for name, figures in known_figures(self.first).items()
        }
        return Look(time.time(), before, self.first)

    def next(self) -> Look:
        """Look again.

        Raises as `look` of a source does; what is measured next is from the look before on.
        """
        observed = self._source.look()
        look = Look(time.time(), self._before, observed)
        self._before = known_figures(observed)
        return look

    def each(self, interval: float, count: int | None) -> Iterator[Look]:
        """A look after each interval of so many seconds, `count` or for ever.

        They do not drift: a look that takes its time does not make the next one late.
        """
        due = time.monotonic()
        while count is None or count > 0:
            due = max(due + interval, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0.0))
            yield self.next()
            count = None if count is None else count - 1
