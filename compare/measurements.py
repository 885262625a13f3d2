# SPDX-License-Identifier: Apache-2.0
"""Questions to the raw data: who was best, by how much, and how sure that is.  Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from compare.cases import SUBJECTS, Family
from compare.results import Footprint, Run, Sample
from compare.stats import Spread, ratios

Metric = Callable[[Sample], float | None]
US_PER_NS: Final = 1e-3


def iops(sample: Sample) -> float:
    """Requests a second."""
    return sample.iops


def bandwidth(sample: Sample) -> float:
    """Bytes a second."""
    return sample.bytes_per_second


def cpu(sample: Sample) -> float | None:
    """Processor time of a request, in us."""
    return sample.cpu_us


def p50(sample: Sample) -> float:
    """Median latency in us."""
    return sample.p50_ns * US_PER_NS


def p99(sample: Sample) -> float:
    """Latency in us that 99 of 100 requests do not exceed."""
    return sample.p99_ns * US_PER_NS


MORE_IS_BETTER: Final = (iops, bandwidth)


DISTURBED_FROM: Final = 0.1
"""Processors that others keep busy.  What is measured beside one lies below a twentieth."""


def undisturbed(sample: Sample) -> bool:
    """Whether the machine was ours meanwhile; says nothing of how fast the subject was."""
    return sample.foreign < DISTURBED_FROM


@dataclass(frozen=True, slots=True)
class Versus:
    """Some rounds' values, and whom they were compared with."""

    spread: Spread
    against: str = ""
    """The other subject's title."""


class Measurements:
    """A run's raw data, by case and subject; without disturbed rounds, where there are others."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        for sample in run.samples:
            self._samples.setdefault((sample.case, sample.subject), []).append(sample)
        for key, samples in self._samples.items():
            self._samples[key] = [s for s in samples if undisturbed(s)] or samples

    def subjects(self, case: str) -> list[str]:
        """Whose figures there are, in the order of the plans."""
        seen = {subject for of_case, subject in self._samples if of_case == case}
        return [key for key in SUBJECTS if key in seen]

    def of(self, case: str, subject: str, metric: Metric) -> dict[int, float]:
        """One value a round."""
        found = {s.round: metric(s) for s in self._samples.get((case, subject), ())}
        return {number: value for number, value in found.items() if value is not None}

    def spread(self, case: str, subject: str, metric: Metric) -> Spread | None:
        """Over the rounds, or None where there is none."""
        values = self.of(case, subject, metric)
        return Spread.of(values.values()) if values else None

    def best(self, case: str, family: Family, metric: Metric) -> str | None:
        """The subject of a family with the best median."""
        medians = {
            key: spread.median
            for key in self.subjects(case)
            if SUBJECTS[key].family is family and (spread := self.spread(case, key, metric))
        }
        if not medians:
            return None
        choose = max if metric in MORE_IS_BETTER else min
        return choose(medians, key=lambda key: medians[key])

    def ratio(self, case: str, ours: str, theirs: str | None, metric: Metric) -> Versus | None:
        """Ours by theirs in each round, or None where they never met."""
        if theirs is None:
            return None
        found = ratios(self.of(case, ours, metric), self.of(case, theirs, metric))
        return Versus(Spread.of(found), SUBJECTS[theirs].title) if found else None

    def footprints(self, subject: str) -> list[Footprint]:
        """Of one subject's idle exports, one for each size."""
        return [seen for seen in self.run.footprints if seen.subject == subject]

    def foreign(self) -> Spread | None:
        """How many processors others kept busy while something was measured."""
        seen = [sample.foreign for sample in self.run.samples]
        return Spread.of(seen) if seen else None


def spread_of(values: Iterable[float]) -> Versus | None:
    """Of values that are compared with nobody."""
    seen = list(values)
    return Versus(Spread.of(seen)) if seen else None
