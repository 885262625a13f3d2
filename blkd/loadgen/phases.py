# SPDX-License-Identifier: Apache-2.0
"""One run from connecting to the result: its phases and what is made of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from blkd.loadgen.conversation import BackEnd
from blkd.loadgen.cpu_time import Processor, require_cpu
from blkd.loadgen.driver_vrings import DriverVrings
from blkd.loadgen.loader import Outcome, Stretch
from blkd.loadgen.result import Result, judge_passings, summary, wrong_requests
from blkd.loadgen.workload import PERCENT, Rw, Workload

LOOK_INTERVAL: Final = 0.25  # seconds between looks at how far it is
QUIET_INTERVAL: Final = 60.0  # where nobody wants to know


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is."""

    phase: str
    done: int
    """Requests."""
    total: int
    """Likewise; 0 where time decides."""
    seconds: float
    of_seconds: float
    """0 where requests decide."""


Watch = Callable[[Progress], None]


def bench(path: str, work: Workload, watch: Watch | None = None) -> Result:
    """Load the back end at `path`; `watch` is called now and then with the progress.

    Raises:
        BenchError: It cannot do what is asked, or broke its word.
    """
    if work.verify_only:
        work = replace(work, rw=Rw.READ)
    target = Processor(work.pid)
    if work.cpu is not None:
        require_cpu(work.cpu)
    with (
        BackEnd.connect(path, work.timeout, reconnect=work.reconnect) as backend,
        DriverVrings.start(backend, work) as rings,
    ):
        result = _Run(rings, work, target, watch).whole()
        return replace(result, reconnections=rings.reconnections)


class _Run:
    """The phases of one run."""

    def __init__(
        self, rings: DriverVrings, work: Workload, target: Processor, watch: Watch | None
    ) -> None:
        self._rings, self._work, self._target, self._watch = rings, work, target, watch
        self._own_seconds = self._target_seconds = 0.0

    def whole(self) -> Result:
        """Do what the workload says."""
        if self._work.verify_only:
            return self._check_all()
        if self._work.verify:
            return self._write_and_check()
        if self._work.ramp:
            ramp = self._measure(replace(self._load(), seconds=self._work.ramp), "ramp")
            if ramp.interrupted:
                return self._result(ramp)
        load = replace(self._load(), seconds=self._work.run_seconds)
        return self._result(self._measure(load, str(self._work.rw)))

    def _load(self) -> Stretch:
        """The load that is asked for, without an end."""
        work, agreed = self._work, self._rings.agreed
        return Stretch(
            kind=work.rw.kind,
            block_bytes=work.bs,
            segment_bytes=agreed.segment_bytes,
            blocks=1 if work.rw is Rw.FLUSH else agreed.blocks,
            stall=work.timeout,
            seed=work.seed,
            mixed=work.rw.mixed,
            read_share=work.rwmix / PERCENT,
            random=work.rw.random,
            rate=work.rate,
        )

    def _write_and_check(self) -> Result:
        """Write each block at least once or for a time, flush, and read back what was written."""
        load = replace(
            self._load(),
            once=True,
            fill=True,
            check=self._work.rw.mixed,
            seconds=self._work.run_seconds,
            most_passes=0 if self._work.run_seconds else 1,
        )
        written = self._measure(load, str(self._work.rw))
        result = self._result(written)
        if written.interrupted:
            return result
        if self._rings.agreed.can_flush:
            flushed = self._run(replace(self._load(), kind="flush", mixed=False, limit=1), "flush")
            result = _with(result, flushed)
        whole_pass = written.passes > 1
        back = replace(
            self._load(),
            kind="read",
            mixed=False,
            once=True,
            check=True,
            limit=load.blocks if whole_pass else written.place,
            generation=written.passes,
            turn=written.place,
            rate=0,
        )
        return _with(result, self._run(back, "verify")) if back.limit else result

    def _check_all(self) -> Result:
        """Read every block, and take whatever generation each has."""
        load = replace(self._load(), once=True, check=True, any_generation=True)
        outcome = self._measure(replace(load, limit=load.blocks), "verify")
        return judge_passings(self._result(outcome), outcome.passings)

    def _measure(self, stretch: Stretch, phase: str) -> Outcome:
        """Run a stretch, and take the processor time of both sides."""
        own, theirs = time.process_time(), self._target.seconds()
        outcome = self._run(stretch, phase)
        self._own_seconds = time.process_time() - own
        self._target_seconds = self._target.seconds() - theirs
        return outcome

    def _run(self, stretch: Stretch, phase: str) -> Outcome:
        began = time.monotonic()

        def watch(done: int) -> None:
            if self._watch:
                seconds = time.monotonic() - began
                self._watch(Progress(phase, done, stretch.limit, seconds, stretch.seconds))

        return self._rings.run(
            stretch, watch=watch, interval=LOOK_INTERVAL if self._watch else QUIET_INTERVAL
        )

    def _result(self, outcome: Outcome) -> Result:
        """What the last measured stretch came to."""
        measured = self._work.pid is not None
        return summary(
            self._work,
            self._rings.agreed,
            outcome,
            own_seconds=self._own_seconds,
            target_seconds=self._target_seconds if measured else None,
        )


def _with(result: Result, outcome: Outcome) -> Result:
    """`result`, and what a later phase found."""
    return replace(
        result,
        errors=result.errors + outcome.errors,
        verified_blocks=result.verified_blocks + outcome.intact,
        wrong_blocks=result.wrong_blocks + outcome.wrong_blocks,
        interrupted=result.interrupted or outcome.interrupted,
        wrong=result.wrong + wrong_requests(outcome),
    )
