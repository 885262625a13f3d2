# SPDX-License-Identifier: Apache-2.0
"""Writes docs/benchmarks.md from raw data: `python -m compare.report compare/results/full.json`."""

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Final

import click

from compare import reference
from compare.cases import CASES, PLANS, SUBJECTS, Backing, Case
from compare.figures import NONE, count, counted, figure, median, reach
from compare.goals import GOALS, Goal, Limit
from compare.groups import shared_table
from compare.images import CHECKOUT, MIB
from compare.limits import limited_table
from compare.measurements import (
    DISTURBED_FROM,
    Measurements,
    bandwidth,
    cpu,
    iops,
    p50,
    p99,
    undisturbed,
)
from compare.results import Footprint, Run, load
from harness.markdown import table

DOCUMENT: Final = CHECKOUT / "docs" / "benchmarks.md"
HERE: Final = Path(__file__).parent
REMARKS: Final = HERE / "remarks.toml"
TEMPLATE: Final = HERE / "document.md"
GIB: Final = 1 << 30
LARGE: Final = 65536
"""Blocks of so many bytes are a matter of bandwidth."""
ENOUGH_ROUNDS: Final = 5
NOTHING: Final = "Not measured in this run."
PRELIMINARY: Final = """
**Preliminary**: fewer than five rounds are a look, not a result.
"""
SHOWN_FUNCTIONS: Final = 16


def document(run: Run, data: str, remarks: dict[str, str]) -> str:
    """The whole page; `data` is the raw data's name."""
    seen = Measurements(run)
    known = PLANS.get(run.plan)
    command = "make bench" if known is None or run.plan == "full" else f"make bench-{run.plan}"
    parts = {
        "data": data,
        "command": command,
        "rounds": f"{run.rounds}",
        "runtime": f"{run.runtime:g}",
        "date": run.began,
        "minutes": f"{run.minutes:.0f}",
        "preliminary": PRELIMINARY if run.rounds < ENOUGH_ROUNDS else "",
        "goals": goals(seen),
        "remarks": explained(remarks),
        "foreign": foreign(seen),
        "null": cases(seen, Backing.NULL),
        "tmpfs": cases(seen, Backing.TMPFS),
        "ext4": cases(seen, Backing.EXT4),
        "guest": cases(seen, Backing.TMPFS, guest=True),
        "guest_kind": run.environment.get("guest", "not measured"),
        "idle": footprints(run.footprints),
        "profile": profiles(run),
        "limited": limited_table(run.limited) if run.limited else NOTHING,
        "shared": shared_table(run.shared) if run.shared else NOTHING,
        "environment": table(["", ""], [(k, v) for k, v in run.environment.items()]),
        "reference": figures(),
        "failures": failures(run),
    }
    return Template(TEMPLATE.read_text()).substitute(parts)


def goals(seen: Measurements) -> str:
    """What was to be reached, and whether it was."""
    heads = ["Goal", "Figure", "Wanted", "Measured", "Range", "Against", "Verdict"]
    return table(heads, (row for goal in GOALS for row in _goal_rows(goal, seen)))


def _goal_rows(goal: Goal, seen: Measurements) -> Iterator[list[str]]:
    title = goal.title
    for check in goal.checks:
        found = check.measure(seen)
        spread = found.spread if found else None
        against = found.against if found else ""
        verdict = check.limit.verdict(spread, check.noise)
        measured = median(spread, check.limit.unit)
        yield [title, check.what, wanted(check.limit), measured, reach(spread), against, verdict]
        title = ""


def wanted(limit: Limit) -> str:
    """A limit, as "≥ 1.5 ×"."""
    if not limit.value:
        return f"0 {limit.unit}"
    return f"{'≥' if limit.at_least else '≤'} {limit.value:.3g} {limit.unit}"


def explained(remarks: dict[str, str]) -> str:
    """What there is to say of goals, in their order."""
    lines = [
        f"- **{goal.title}** — {' '.join(remarks[goal.key].split())}"
        for goal in GOALS
        if remarks.get(goal.key)
    ]
    return "\n".join(["Of single goals:", "", *lines, ""]) if lines else ""


def foreign(seen: Measurements) -> str:
    """How far the machine was ours."""
    spread = seen.foreign()
    if spread is None:
        return ""
    disturbed = sum(not undisturbed(sample) for sample in seen.run.samples)
    return (
        "While a measurement ran, other processes and the hypervisor kept "
        f"{figure(spread.median)} processors busy (median; at most {figure(spread.high)}). "
        f"Of {len(seen.run.samples)} measurements {disturbed} were disturbed, by more than "
        f"{DISTURBED_FROM} processors, in spite of being repeated; they are left out where the "
        "subject has other rounds."
    )


def cases(seen: Measurements, backing: Backing, *, guest: bool = False) -> str:
    """A table for each case on one kind of image."""
    found = [
        f"**{case.title}**\n\n{subjects(seen, case)}"
        for case in CASES.values()
        if case.backing is backing and case.guest is guest and seen.subjects(case.key)
    ]
    return "\n\n".join(found) or NOTHING


def subjects(seen: Measurements, case: Case) -> str:
    """What each did under one load."""
    large = case.block_bytes >= LARGE
    heads = ["Subject", "IOPS (range)", "p50 µs", "p99 µs", "CPU µs"]
    rows = []
    for key in seen.subjects(case.key):
        rate = seen.spread(case.key, key, bandwidth if large else iops)
        carried = counted(rate)
        if large and rate:
            rate = rate.times(1 / GIB)
            carried = f"{figure(rate.median)} ({reach(rate)})"
        others = (median(seen.spread(case.key, key, metric)) for metric in (p50, p99, cpu))
        rows.append([SUBJECTS[key].title, carried, *others])
    heads[1] = "GiB/s (range)" if large else heads[1]
    return table(heads, rows, numbers=4)


def footprints(seen: list[Footprint]) -> str:
    """What idle exports cost."""
    heads = ["Subject", "Image", "Guest", "Wake-ups/s", "CPU µs/s", "Threads", "Resident MiB"]
    heads += ["anonymous", "files", "shared"]
    rows = [
        [
            *(SUBJECTS[f.subject].title, size(f.image_bytes), size(f.guest_bytes)),
            *(figure(f.wakeups), figure(f.cpu_us), f"{f.threads}"),
            *(f"{kib / 1024:.1f}" for kib in (f.rss_kib, f.anon_kib, f.file_kib, f.shmem_kib)),
        ]
        for f in sorted(seen, key=lambda f: list(SUBJECTS).index(f.subject))
    ]
    return table(heads, rows, numbers=9) if rows else NOTHING


def size(of: int) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    for power, unit in (4, "TiB"), (3, "GiB"), (2, "MiB"):
        if of % (1 << 10 * power) == 0:
            return f"{of >> 10 * power} {unit}"
    return f"{of / MIB:.1f} MiB"


def profiles(run: Run) -> str:
    """Instructions of a request, by function; both layouts beside each other."""
    if not run.profiles:
        return NOTHING
    heads = ["Function", *(f"{profile.layout} ring" for profile in run.profiles)]
    by_name = [{f.name: f.instructions for f in profile.functions} for profile in run.profiles]
    most = Counter({name: share for shares in by_name for name, share in shares.items()})
    rows = [
        [f"`{name}`", *(figure(shares[name]) if name in shares else NONE for shares in by_name)]
        for name, _ in most.most_common(SHOWN_FUNCTIONS)
    ]
    rows.append(["all of it", *(figure(profile.instructions) for profile in run.profiles)])
    if any(profile.cycles for profile in run.profiles):
        cycles = (figure(profile.cycles) if profile.cycles else NONE for profile in run.profiles)
        rows.append(["processor cycles, with the driver's", *cycles])
    return table(heads, rows, numbers=len(run.profiles))


def figures() -> str:
    """The other machine's."""
    rows = [
        [
            CASES[f.case].title if f.case in CASES else f.case,
            f.subject,
            count(f.iops) if f.iops else NONE,
            f.cpu_us or NONE,
            f"{f.bytes_per_second / GIB:.1f}" if f.bytes_per_second else NONE,
        ]
        for f in reference.FIGURES
    ]
    return table(["Case", "Subject", "IOPS", "CPU µs", "GiB/s"], rows, numbers=3)


def failures(run: Run) -> str:
    """What is missing, each reason once."""
    seen = Counter((f.case, f.subject, f.reason) for f in run.failures)
    rows = [
        [case, SUBJECTS[key].title if key in SUBJECTS else key, f"{times}", _cell(reason)]
        for (case, key, reason), times in seen.items()
    ]
    return table(["Case", "Subject", "Times", "Reason"], rows) if rows else "Nothing."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def remarks_of(path: Path = REMARKS) -> dict[str, str]:
    """The remarks written by hand, by the goals' keys."""
    return {key: str(text) for key, text in tomllib.loads(path.read_text()).items()}


def name_of(path: Path) -> str:
    """A file's name from the checkout on: the page must not tell where that is."""
    absolute = path.resolve()
    inside = absolute.is_relative_to(CHECKOUT)
    return f"{absolute.relative_to(CHECKOUT)}" if inside else path.name


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=DOCUMENT, help="The page.")
@click.option("--plots/--no-plots", default=True, help="Draw, too; needs matplotlib.")
def main(*, data: Path, output: Path, plots: bool) -> None:
    """Write the page of benchmarks, and its pictures, from the raw DATA of a run."""
    run = load(data)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(document(run, name_of(data), remarks_of()))
    if plots:
        from compare.plots import draw  # noqa: PLC0415 - matplotlib is no need of the page's text

        draw(Measurements(run), output.with_suffix(""))
    click.echo(goals(Measurements(run)))
    click.echo(f"\nwritten: {output}")


if __name__ == "__main__":
    main()
