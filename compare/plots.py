# SPDX-License-Identifier: Apache-2.0
"""The pictures of the report: the only module that needs matplotlib.

The same data and the same matplotlib give the same bytes: an id comes from a fixed salt, and no
date is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from compare.cases import BLKD, CASES, SUBJECTS, Backing, Case, Family
from compare.measurements import Measurements, Metric, cpu, iops
from compare.results import Sample

WIDTH, HEIGHT = 9.0, 3.4  # inches
COLOURS: Final = {Family.BLKD: "#0b6e4f", Family.QSD: "#c8553d", Family.FIO: "#3d5a80"}
MARKERS: Final = {Family.BLKD: "o", Family.QSD: "s", Family.FIO: "^"}
NAMES: Final = {Family.BLKD: "blkd", Family.QSD: "QSD, its best", Family.FIO: "fio alone, its best"}
PERCENTILES: Final = ("p50", "p90", "p95", "p99", "p99_9", "p99_99")
THOUSAND: Final = 1000
STYLE: Final[Any] = {
    "svg.hashsalt": "blkd",
    "svg.fonttype": "none",  # text stays text: small, and to be searched
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "xtick.minor.visible": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Line:
    """A subject and how it is drawn."""

    subject: str
    family: Family


def draw(seen: Measurements, directory: Path) -> None:
    """All pictures.  One without data is drawn empty, so that the page's links hold."""
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, picture in (
            ("iops", requests_by_depth),
            ("latency", latency_percentiles),
            ("cpu", processor_time),
        ):
            figure = picture(seen)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)


def requests_by_depth(seen: Measurements) -> Any:
    """Requests a second over the queue depth, with the rounds' reach."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), layout="constrained")
    for panel, backing in zip(panels, (Backing.NULL, Backing.TMPFS), strict=True):
        cases = _reads(seen, backing)
        for family in Family:
            places, medians, below, above = [], [], [], []
            for n, case in enumerate(cases):
                spread = _best_spread(seen, case, family)
                if spread is not None:
                    places.append(n)
                    medians.append(spread.median / THOUSAND)
                    below.append((spread.median - spread.low) / THOUSAND)
                    above.append((spread.high - spread.median) / THOUSAND)
            if places:
                panel.errorbar(
                    *(places, medians),
                    yerr=(below, above),
                    capsize=3,
                    marker=MARKERS[family],
                    color=COLOURS[family],
                    label=NAMES[family],
                )
        panel.set_xticks(range(len(cases)), [f"QD{case.depth}" for case in cases])
        panel.set_ylim(bottom=0)
        panel.set_title(f"{backing}, 4 KiB randread")
        panel.set_ylabel("thousand requests a second")
        _legend(panel)
    return figure


def latency_percentiles(seen: Measurements) -> Any:
    """Latency at QD1 from the median to one request in 10000."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, HEIGHT), layout="constrained")
    for panel, backing in zip(panels, Backing, strict=True):
        for case in (case for case in _reads(seen, backing) if case.depth == 1):
            for line in _lines(seen, case):
                values = [_percentile(seen, case, line.subject, name) for name in PERCENTILES]
                panel.plot(
                    *(range(len(PERCENTILES)), values),
                    marker=MARKERS[line.family],
                    color=COLOURS[line.family],
                    label=SUBJECTS[line.subject].title,
                )
        panel.set_yscale("log")
        ticks = [name.removeprefix("p").replace("_", ".") for name in PERCENTILES]
        panel.set_xticks(range(len(PERCENTILES)), ticks)
        panel.set_title(f"{backing}, QD1")
        panel.set_xlabel("percentile")
        panel.set_ylabel("latency, µs")
        _legend(panel)
    return figure


def processor_time(seen: Measurements) -> Any:
    """Processor time of a request, each family's least."""
    cases = [case for backing in Backing for case in _reads(seen, backing)]
    figure, panel = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    width = 0.8 / len(Family)
    for n, family in enumerate(Family):
        places, values = [], []
        for place, case in enumerate(cases):
            best = _chosen(seen, case, family, cpu)
            spread = seen.spread(case.key, best, cpu) if best else None
            if spread is not None:
                places.append(place + (n - 1) * width)
                values.append(spread.median)
        if places:
            bars = panel.bar(
                *(places, values), width=width, color=COLOURS[family], label=NAMES[family]
            )
            panel.bar_label(bars, fmt="%.2g", fontsize=7, padding=1)
    panel.set_yscale("log")
    panel.set_xticks(range(len(cases)), [f"{case.backing}\nQD{case.depth}" for case in cases])
    panel.set_ylabel("CPU µs a request, 4 KiB randread")
    _legend(panel)
    return figure


def _reads(seen: Measurements, backing: Backing) -> list[Case]:
    """The cases of 4 KiB reads with one pinned queue that were measured, by depth."""
    found = [
        case
        for case in CASES.values()
        if case.backing is backing
        and (case.rw, case.spread, case.guest) == ("randread", False, False)
        and seen.subjects(case.key)
    ]
    return sorted(found, key=lambda case: case.depth)


def _chosen(seen: Measurements, case: Case, family: Family, metric: Metric) -> str | None:
    """Ours as it comes, where it was measured so; of others the best setting."""
    plain = family is Family.BLKD and BLKD.key in seen.subjects(case.key)
    return BLKD.key if plain else seen.best(case.key, family, metric)


def _best_spread(seen: Measurements, case: Case, family: Family) -> Any:
    best = _chosen(seen, case, family, iops)
    return seen.spread(case.key, best, iops) if best else None


def _lines(seen: Measurements, case: Case) -> Iterable[Line]:
    for family in Family:
        best = _chosen(seen, case, family, lambda sample: sample.p50_ns)
        if best is not None:
            yield Line(best, family)


def _percentile(seen: Measurements, case: Case, subject: str, name: str) -> float:
    def metric(sample: Sample) -> float:
        value: float = getattr(sample, f"{name}_ns")
        return value / THOUSAND

    spread = seen.spread(case.key, subject, metric)
    assert spread is not None
    return spread.median


def _legend(panel: Any) -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend()
