# SPDX-License-Identifier: Apache-2.0
"""One run from connecting to the result."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self

from blkd.bench.agreement import Agreement
from blkd.bench.backend import BackEnd, Ring
from blkd.bench.latency import Counted, Latency
from blkd.bench.loader import Loader, Outcome, Stretch
from blkd.bench.memory import GUEST_ADDRESS, Memory, QueueLayout
from blkd.bench.processor import Processor
from blkd.bench.result import Result, WrongRequest
from blkd.bench.workload import PERCENT, Rw, Workload
from blkd.errors import BenchError

PACKED_BASE: Final = 0x8000_8000  # both indices 0, both wrap counters 1
QUIET_INTERVAL: Final = 60.0  # seconds between looks at the count that nobody watches


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    phase: str
    done: int
    """Requests."""
    total: int
    """Likewise, or 0 where time decides."""
    seconds: float
    of_seconds: float


Watch = Callable[[Progress], None]


def bench(path: str, work: Workload, watch: Watch | None = None, interval: float = 0.5) -> Result:
    """Load the back end at `path`; `watch` is told every `interval` seconds how far it is.

    Raises:
        BenchError: It cannot do what is asked, or broke its word.
    """
    target = Processor(work.pid)
    with BackEnd.connect(path, work.timeout) as backend, Bench.start(backend, work) as running:
        running.watch, running.interval = watch, interval
        return running.measure(target)


class Bench:
    """Rings that a back end serves, and the phases of a run on them."""

    def __init__(self, backend: BackEnd, work: Workload, agreed: Agreement) -> None:
        self.backend, self.work, self.agreed = backend, work, agreed
        self.watch: Watch | None = None
        self.interval = QUIET_INTERVAL
        self._errors: list[int] = []
        self._stack = contextlib.ExitStack()

    @classmethod
    def start(cls, backend: BackEnd, work: Workload) -> Self:
        """Negotiate, share memory and start every ring."""
        backend.negotiate()
        agreed = Agreement.of(work, backend.offered, backend.config())
        if work.queues > backend.queues:
            raise BenchError(
                f"the back end has {backend.queues} queues, not {work.queues}",
                hint="lower --queues",
            )
        running = cls(backend, work, agreed)
        with contextlib.ExitStack() as undo:
            undo.callback(running.close)
            running._make_queues()
            undo.pop_all()
        return running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory and descriptors."""
        self._stack.close()

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, fd)
        return fd

    def _make_queues(self) -> None:
        work, agreed = self.work, self.agreed
        layouts: list[QueueLayout] = []
        end = 0
        for _ in range(work.queues):
            layout = QueueLayout.at(
                end,
                size=agreed.ring_size,
                depth=work.iodepth,
                parts=agreed.parts,
                block_bytes=work.bs,
            )
            layouts.append(layout)
            end = layout.end
        memory = self._stack.enter_context(Memory(end))
        self._loader = Loader(memory, queues=work.queues, seed=work.seed, cpu=work.cpu)
        self.backend.accept(agreed.features)
        self.backend.share(memory.region, memory.fd)
        for index, layout in enumerate(layouts):
            self._make_queue(index, layout)

    def _make_queue(self, index: int, layout: QueueLayout) -> None:
        agreed = self.agreed
        kick, call, error = self._eventfd(), self._eventfd(), self._eventfd()
        self._errors.append(error)
        self._loader.add_queue(
            layout,
            size=agreed.ring_size,
            depth=self.work.iodepth,
            kick=kick,
            packed=agreed.packed,
            event_idx=agreed.event_idx,
            indirect=agreed.indirect,
        )
        ring = Ring(
            size=agreed.ring_size,
            desc=GUEST_ADDRESS + layout.desc,
            avail=GUEST_ADDRESS + layout.avail,
            used=GUEST_ADDRESS + layout.used,
            base=PACKED_BASE if agreed.packed else 0,
            kick=kick,
            call=call,
            error=error,
        )
        self.backend.start_ring(index, ring)

    # Phases

    def _stretch(self) -> Stretch:
        """The load that is asked for, without a limit."""
        work = self.work
        return Stretch(
            kind=work.rw.kind,
            block_bytes=work.bs,
            segment_bytes=self.agreed.segment_bytes,
            blocks=1 if work.rw is Rw.FLUSH else self.agreed.blocks,
            stall=work.timeout,
            seed=work.seed,
            mixed=work.rw.mixed,
            read_share=work.rwmix / PERCENT,
            random=work.rw.random,
            rate=work.rate,
        )

    def _run(self, stretch: Stretch, phase: str) -> Outcome:
        began = time.monotonic()

        def watch(done: int) -> None:
            if self.watch:
                seconds = time.monotonic() - began
                self.watch(Progress(phase, done, stretch.limit, seconds, stretch.seconds))

        return self._loader.run(
            stretch,
            sock=self.backend.sock,
            errors=self._errors,
            watch=watch,
            interval=self.interval if self.watch else QUIET_INTERVAL,
        )

    def measure(self, target: Processor) -> Result:
        """Do the whole run."""
        load = self._stretch()
        if self.work.ramp:
            self._run(replace(load, seconds=self.work.ramp), "ramp")
        own = time.process_time()
        theirs = target.seconds()
        outcome = self._run(replace(load, seconds=self.work.run_seconds), str(self.work.rw))
        own = time.process_time() - own
        theirs = target.seconds() - theirs
        return self._result(outcome, own, theirs)

    def _result(self, outcome: Outcome, own: float, theirs: float) -> Result:
        work, agreed = self.work, self.agreed
        whole = Counted.merged(outcome.latencies.values())
        seconds = outcome.seconds
        iops = whole.count / seconds if seconds else 0.0
        measured = work.pid is not None
        by_op = {
            kind: Latency.of(counted)
            for kind, counted in outcome.latencies.items()
            if counted.count
        }
        return Result(
            rw=str(work.rw),
            bs=work.bs,
            iodepth=work.iodepth,
            queues=work.queues,
            queue_size=agreed.ring_size,
            size=agreed.blocks * work.bs,
            packed=agreed.packed,
            event_idx=agreed.event_idx,
            indirect=agreed.indirect,
            seconds=round(seconds, 6),
            ios=whole.count,
            iops=round(iops, 1),
            bytes_per_second=0.0 if work.rw is Rw.FLUSH else round(iops * work.bs, 1),
            errors=outcome.errors,
            latency_ns=Latency.of(whole),
            latency_ns_by_op=by_op if work.rw.mixed else None,
            client_cpu_seconds=round(own, 6),
            target_cpu_seconds=round(theirs, 6) if measured else None,
            target_cpu_us_per_io=(
                round(theirs * 1e6 / whole.count, 4) if measured and whole.count else None
            ),
            kicks=outcome.kicks,
            verified_blocks=outcome.intact,
            wrong_blocks=outcome.wrong_blocks,
            interrupted=outcome.interrupted,
            wrong=tuple(
                WrongRequest(
                    f.what, f.kind, f.offset, f.offset + f.at, hex(f.found), hex(f.expected)
                )
                for f in outcome.findings
            ),
        )
