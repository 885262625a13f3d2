# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan, and saves what was seen after every round: `python -m compare.run --help`."""

import asyncio
import datetime as dt
import signal
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec

from blkd.errors import BlkdError
from compare import environment, groups, limits, profile
from compare.cases import PLANS, TARGET_CPUS, Backing, Case, Family, Plan, Subject
from compare.errors import SubjectMissing
from compare.footprint import SIZES, footprint
from compare.guest import in_guest
from compare.images import CHECKOUT, images
from compare.load import Which, fio_alone, through_vhost
from compare.measurements import undisturbed
from compare.processor import Neighbours
from compare.results import Failure, Run, Sample, load, save
from compare.targets import serving
from harness.guest import Machine

PARTS: Final = ("host", "footprint", "guest", "profile", "limits")
RESULTS: Final = CHECKOUT / "compare" / "results"
TERMINATED: Final = "ended by SIGTERM"
SAVED: Final = "what was seen up to the last round is saved"
ATTEMPTS: Final = 3
"""Of a measurement that others disturb."""
PROFILED_REQUESTS: Final = 20_000

T = TypeVar("T")


class Session:
    """A run under way."""

    def __init__(self, plan: Plan, run: Run, path: Path) -> None:
        self.plan, self.run = plan, run
        self._path = path
        self._missing: set[tuple[str, str]] = set()
        self._began = time.monotonic()
        self._minutes_before = run.minutes

    async def attempt(
        self, case: str, subject: Subject, number: int, measure: Awaitable[T]
    ) -> T | None:
        """Carry out a measurement; one that fails is noted, with its reason."""
        try:
            seen = await measure
        except (BlkdError, TimeoutError) as error:
            reason = _reason(error)
            self.run.failures.append(Failure(case, subject.key, number, reason))
            self.say(number, case, subject, f"FAILED: {reason}")
            if isinstance(error, SubjectMissing):
                self._missing.add((case, subject.key))
            return None
        self.say(number, case, subject, _described(seen))
        return seen

    def pending(self, case: str, subjects: Sequence[Subject], number: int) -> list[Subject]:
        """Who is still to be measured in this round: each second one the other way round.

        Those that cannot carry the case were noted once and are not tried again.
        """
        order = subjects if number % 2 else subjects[::-1]
        return [subject for subject in order if (case, subject.key) not in self._missing]

    def say(self, number: int, case: str, subject: Subject, what: str) -> None:
        """One line a measurement, on standard error."""
        minutes = (time.monotonic() - self._began) / 60
        click.echo(f"{minutes:5.1f} min  #{number} {case:<28} {subject.key:<22} {what}", err=True)

    def keep(self) -> None:
        """Save what there is."""
        minutes = (time.monotonic() - self._began) / 60
        self.run.minutes = round(self._minutes_before + minutes, 1)
        save(self.run, self._path)


def _reason(error: Exception) -> str:
    """Why a measurement is missing, in one line."""
    return " ".join((str(error) or "not done in time").split())


def _described(seen: object) -> str:
    samples = seen if isinstance(seen, list) else [seen]
    return "; ".join(
        f"{s.iops:>10,.0f} IOPS {s.p50_ns / 1000:8.1f} us {s.cpu_us or 0:8.3f} us CPU"
        if isinstance(s, Sample)
        else f"{s}"
        for s in samples
    )


async def on_host(session: Session, names: Mapping[Backing, str]) -> None:
    """Every case, round by round."""
    for number in range(1, session.plan.rounds + 1):
        for case in session.plan.cases:
            for subject in session.pending(case.key, case.subjects, number):
                measure = _measured(Which(case, subject, number), session.plan, names[case.backing])
                sample = await session.attempt(case.key, subject, number, measure)
                if sample is not None:
                    session.run.samples.append(sample)
        session.keep()


async def _measured(which: Which, plan: Plan, image: str) -> Sample:
    """The least disturbed of some attempts: the first that had the machine to itself."""
    seen: list[Sample] = []
    while len(seen) < ATTEMPTS and not any(map(undisturbed, seen)):
        seen.append(await _once(which, plan, image))
    return min(seen, key=lambda sample: sample.foreign)


async def _once(which: Which, plan: Plan, image: str) -> Sample:
    neighbours = Neighbours()
    if which.subject.family is Family.FIO:
        sample = await fio_alone(which, plan, image)
    else:
        cpus = f"0,{TARGET_CPUS}" if which.case.spread else TARGET_CPUS
        serve = serving(which.subject, image, cpus=cpus, queues=which.case.queues)
        async with serve as target:
            sample = await through_vhost(which, plan, target)
    return msgspec.structs.replace(sample, foreign=neighbours.processors())


async def idle(session: Session) -> None:
    """What exports without work cost."""
    for number, size in enumerate(SIZES, 1):
        for subject in session.plan.footprints:
            measure = footprint(subject, number, size, session.plan)
            seen = await session.attempt("idle", subject, number, measure)
            if seen is not None:
                session.run.footprints.append(seen)
    session.keep()


async def guests(session: Session, names: Mapping[Backing, str]) -> None:
    """The guest's cases; one guest carries all of them before another back end has its turn."""
    cases = session.plan.guest_cases
    if not cases or not session.plan.guest_rounds:
        return
    machine = await Machine.prepare()
    session.run.environment["guest"] = f"{machine.accelerator}, one processor"
    for number in range(1, session.plan.guest_rounds + 1):
        for subject in session.pending("guest", cases[0].subjects, number):
            image = names[cases[0].backing]
            measure = in_guest(machine, subject, cases, number, image)
            session.run.samples.extend(
                await session.attempt("guest", subject, number, measure) or []
            )
        session.keep()


def profiles(session: Session) -> None:
    """Where a request's instructions go, if that can be seen here."""
    try:
        session.run.profiles = profile.both_layouts(PROFILED_REQUESTS)
    except BlkdError as error:
        session.run.failures.append(Failure("profile", "blkd", 0, _reason(error)))
        click.echo(f"profile: {error}", err=True)
    session.keep()


async def limited(session: Session) -> None:
    """What limited disks carry, alone and in groups."""
    runtime = session.plan.limits_runtime
    try:
        session.run.limited = await limits.measure(runtime)
        session.run.shared = await groups.measure(runtime)
    except (BlkdError, TimeoutError) as error:
        session.run.failures.append(Failure("limits", "blkd", 0, _reason(error)))
        click.echo(f"limits: {_reason(error)}", err=True)
    session.keep()


async def carry_out(session: Session, parts: Sequence[str]) -> None:
    """All parts that are asked for.  Its images are gone afterwards, whatever happens."""
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel, TERMINATED)
    plan = session.plan
    cases: tuple[Case, ...] = plan.cases if "host" in parts else ()
    cases += plan.guest_cases if "guest" in parts else ()
    with images({case.backing for case in cases}) as names:
        if "host" in parts:
            await on_host(session, names)
        if "guest" in parts:
            await guests(session, names)
    if "footprint" in parts:
        await idle(session)
    if "profile" in parts and plan.profile:
        profiles(session)
    if "limits" in parts and plan.limits_runtime:
        await limited(session)


def resumed(old: Run, plan: Plan, parts: Sequence[str]) -> Run:
    """What was measured before, without that which is to be measured anew."""
    again = {case.key for case in plan.cases if "host" in parts}
    again |= {case.key for case in plan.guest_cases if "guest" in parts}
    notes = {"idle": "footprint"} | {part: part for part in ("guest", "profile", "limits")}
    again |= {name for name, part in notes.items() if part in parts}
    old.samples = [sample for sample in old.samples if sample.case not in again]
    old.failures = [failure for failure in old.failures if failure.case not in again]
    if "footprint" in parts:
        old.footprints = []
    if "profile" in parts:
        old.profiles = []
    if "limits" in parts:
        old.limited, old.shared = [], []
    return old


def begun(plan: Plan) -> Run:
    """A run without measurements."""
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return Run(plan.name, today, plan.rounds, plan.runtime, environment=environment.facts())


@click.command()
@click.option("--plan", "name", type=click.Choice(list(PLANS)), default="full", show_default=True)
@click.option("--rounds", type=click.IntRange(1), help="Instead of the plan's.")
@click.option("--runtime", type=float, help="Seconds of a measurement, instead of the plan's.")
@click.option("--cases", default="*", help="Only those whose key matches this pattern.")
@click.option("--subjects", default="*", help="Likewise.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Only this.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="compare/results/PLAN.json if not given."
)
@click.option("--add", is_flag=True, help="Keep what the file has of other parts and cases.")
def main(
    *,
    name: str,
    rounds: int | None,
    runtime: float | None,
    cases: str,
    subjects: str,
    parts: tuple[str, ...],
    output: Path | None,
    add: bool,
) -> None:
    """Measure blkd side by side with others.  The raw data goes to a JSON file."""
    plan = PLANS[name].only(cases, subjects)
    plan = replace(
        plan,
        rounds=rounds or plan.rounds,
        guest_rounds=min(rounds or plan.guest_rounds, plan.guest_rounds),
        runtime=runtime or plan.runtime,
    )
    path = output or RESULTS / f"{name}.json"
    parts = parts or PARTS
    run = resumed(load(path), plan, parts) if add and path.exists() else begun(plan)
    session = Session(plan, run, path)
    try:
        asyncio.run(carry_out(session, parts))
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {SAVED}")
    except asyncio.CancelledError as error:
        if error.args != (TERMINATED,):
            raise
        sys.exit(f"{TERMINATED}; {SAVED}")
    click.echo(f"raw data: {path}", err=True)


if __name__ == "__main__":
    main()
