# SPDX-License-Identifier: Apache-2.0
"""The polling thread and its commands: the only importer of `blkd.loadgen.native`."""

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blkd.errors import BenchError
from blkd.loadgen import native
from blkd.loadgen.guest_memory import FRAME_STRIDE, GUEST_ADDRESS, Memory, QueueLayout
from blkd.loadgen.latency import Counted

KINDS: Final = native.KIND_NAMES
DRAIN_LIMIT: Final = 2.0  # seconds for what is in flight, once a person wants to end
CPUINFO: Final = Path("/proc/cpuinfo")
HELD: Final = {signal.SIGINT, signal.SIGTERM}

WRONG: Final = {
    "wild-index": "has used more requests than it was given",
    "wild-id": "has used a request that it was not given",
    "no-kick": "cannot be kicked: the eventfd refuses",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One piece of work for the polling thread; 0 means no limit."""

    kind: str
    block_bytes: int
    segment_bytes: int
    blocks: int
    stall: float
    """Seconds without an answer after which it gives up."""
    seed: int
    mixed: bool = False
    read_share: float = 0.0
    random: bool = False
    once: bool = False
    """Each block once a pass, none twice in flight."""
    fill: bool = False
    """Writes carry blocks that describe themselves."""
    check: bool = False
    """Reads are judged by them."""
    any_generation: bool = False
    most_passes: int = 0
    """Of those that `once` makes."""
    limit: int = 0
    """Requests."""
    seconds: float = 0.0
    rate: float = 0.0
    """Requests a second."""
    generation: int = 1
    turn: int = 2**64 - 1
    """The place in a pass from which on blocks are one generation older."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A request that went wrong."""

    what: str
    kind: str
    offset: int
    """Bytes, where the request began."""
    at: int
    """Bytes from there, where it shows."""
    found: int
    expected: int


@dataclass(frozen=True, slots=True)
class Passing:
    """What was read of the blocks that one pass over the disk has left."""

    generation: int
    first: int
    """The lowest place in the pass."""
    last: int
    """The highest one."""
    first_offset: int
    """Where the block of the lowest place lies, in bytes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one stretch came to."""

    seconds: float
    kicks: int
    errors: int
    intact: int
    """Blocks that were judged good."""
    wrong_blocks: int
    passings: tuple[Passing, ...]
    """Of up to two generations, as blocks of any generation were read."""
    passes: int
    place: int
    """How many blocks the last pass has got to."""
    latencies: dict[str, Counted]
    findings: tuple[Finding, ...]
    interrupted: bool


Watch = Callable[[int], None]
"""Called now and then with the number of requests that came back so far."""

Reconnect = Callable[[], socket.socket]
"""Finds another back end for one that went away: the socket to it."""


class Loader:
    """The queues of one run in shared memory, and the thread that polls them."""

    def __init__(self, memory: Memory, *, queues: int, seed: int, cpu: int | None) -> None:
        self._generator = native.Generator(
            memory.mapping,
            guest_address=GUEST_ADDRESS,
            queues=queues,
            seed=seed,
            counter=has_steady_counter(),
        )
        self._cpu = cpu

    def add_queue(
        self,
        layout: QueueLayout,
        *,
        size: int,
        depth: int,
        kick: int,
        packed: bool,
        event_idx: bool,
        indirect: bool,
    ) -> None:
        """Add a queue, whose rings are then ready to be shown to the back end."""
        self._generator.add_queue(
            desc=layout.desc,
            avail=layout.avail,
            used=layout.used,
            frames=layout.frames,
            tables=layout.tables,
            data=layout.data,
            size=size,
            depth=depth,
            frame_stride=FRAME_STRIDE,
            table_stride=layout.table_stride,
            data_stride=layout.data_stride,
            kick=kick,
            packed=packed,
            event_idx=event_idx,
            indirect=indirect,
        )

    def run(
        self,
        stretch: Stretch,
        *,
        sock: socket.socket,
        errors: Sequence[int],
        watch: Watch,
        interval: float,
        reconnect: Reconnect | None = None,
    ) -> Outcome:
        """Do a stretch of work while the back end's socket and error eventfds are watched.

        Where it goes away `reconnect` may find another, whose socket is watched from then on.

        Raises:
            BenchError: The back end went away, hangs, or is not to be trusted.
        """
        generator = self._generator
        generator.prepare(**{name: getattr(stretch, name) for name in stretch.__slots__})
        wrong: list[str] = []
        interrupted = False
        with contextlib.ExitStack() as stack:
            done = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, done)
            thread = threading.Thread(target=self._poll, args=(done, wrong), name="blkd-bench")
            stack.callback(thread.join)
            stack.callback(generator.stop, abandon=True)
            thread.start()
            watcher = _Watcher(done, sock, errors, reconnect)
            try:
                watcher.wait(generator, watch, interval)
            except KeyboardInterrupt:
                interrupted = True
                generator.stop()
                watcher.wait(generator, watch, interval, limit=DRAIN_LIMIT)
        if wrong and wrong[0]:
            raise self._broken(wrong[0], stretch)
        return self._outcome(interrupted=interrupted)

    def _poll(self, done: int, wrong: list[str]) -> None:
        """The thread's body."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            if self._cpu is not None:
                os.sched_setaffinity(0, {self._cpu})
            wrong.append(self._generator.run())
        finally:
            os.eventfd_write(done, 1)

    def _broken(self, wrong: str, stretch: Stretch) -> BenchError:
        done, left = self._generator.done, self._generator.in_flight
        if wrong == "stalled":
            return BenchError(
                f"the back end has answered nothing for {stretch.stall:g} s: "
                f"{left} requests in flight, {done} done before",
                hint="--timeout is how long to wait",
            )
        return BenchError(
            f"the back end {WRONG[wrong]}, after {done} requests", hint="that is its fault"
        )

    def _outcome(self, *, interrupted: bool) -> Outcome:
        figures = self._generator.figures()
        latencies = {}
        for kind in KINDS:
            count, total, least, most, buckets = self._generator.latencies(kind)
            latencies[kind] = Counted(count, total, least, most, dict(buckets))
        return Outcome(
            **figures,
            passings=tuple(Passing(*passing) for passing in self._generator.passings()),
            latencies=latencies,
            findings=tuple(Finding(*finding) for finding in self._generator.findings()),
            interrupted=interrupted,
        )


class _Watcher:
    """What the main thread waits for while another polls."""

    def __init__(
        self, done: int, sock: socket.socket, errors: Sequence[int], reconnect: Reconnect | None
    ) -> None:
        self._done, self._sock, self._errors = done, sock, list(errors)
        self._reconnect = reconnect
        self._poll = select.poll()
        for fd in (done, sock.fileno(), *errors):
            self._poll.register(fd, select.POLLIN)

    def wait(
        self,
        generator: native.Generator,
        watch: Watch,
        interval: float,
        limit: float | None = None,
    ) -> None:
        """Until the thread is done, or for `limit` seconds; raises when the back end fails."""
        ready: dict[int, int] = {}
        while self._done not in ready:
            ready = dict(self._poll.poll((limit or interval) * 1000))
            if limit is not None:
                return
            if self._done in ready:
                return
            watch(generator.done)
            if self._sock.fileno() in ready:
                self._lose(generator)
            for index, fd in enumerate(self._errors):
                if fd in ready:
                    raise BenchError(
                        f"the back end reports that ring {index} is broken, "
                        f"after {generator.done} requests",
                        hint="its own log should say why",
                    )

    def _lose(self, generator: native.Generator) -> None:
        """Watch the next back end instead of one that went away, if there may be one."""
        if self._reconnect is None:
            raise self._closed(generator)
        self._poll.unregister(self._sock)
        self._sock = self._reconnect()
        self._poll.register(self._sock, select.POLLIN)

    def _closed(self, generator: native.Generator) -> BenchError:
        after = f"after {generator.done} requests, {generator.in_flight} in flight"
        with contextlib.suppress(OSError):
            if self._sock.recv(1, socket.MSG_PEEK):
                return BenchError(
                    f"the back end said something that nobody asked, {after}",
                    hint="that is its fault",
                )
        return BenchError(
            f"the back end closed the connection {after}",
            hint="has it ended? its own log should say why",
        )


def has_steady_counter() -> bool:
    """Whether this processor's time stamp counter runs evenly and never stops."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("flags"):
                return {"constant_tsc", "nonstop_tsc"} <= set(line.split())
    return False
