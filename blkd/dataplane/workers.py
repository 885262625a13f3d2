# SPDX-License-Identifier: Apache-2.0
"""The worker threads of a device, as the event loop sees them: started, sent commands, ended.

A command is posted to a worker, which answers it later.  Whatever a worker is given is complete,
and is kept until the worker has answered that it no longer needs it.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog

from blkd import ring
from blkd.dataplane.placement import Place
from blkd.dataplane.served import ServedDevice
from blkd.errors import DataPlaneError
from blkd.statistics.area import Area
from blkd.vhost_user.iotlb import Access
from blkd.vhost_user.vring_setup import VringSetup
from blkd.virtio.device import MAX_QUEUE_SIZE

log = structlog.get_logger()

NANOSECONDS = 1000  # of a microsecond

PATIENCE = 0.2
"""Seconds for a translation to come, before other chains go on without the one that lacks it."""

PlaceFinder = Callable[[ring.MemoryMap | None], Place | None]
Answer = asyncio.Future[int]
"""What a worker will answer to one command: a number, or DataPlaneError."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How many worker threads serve a device, where they run, and how long they poll."""

    workers: int
    """Group I of vrings belongs to worker I modulo this."""
    cpus: tuple[int, ...] = ()
    """Worker I is pinned to the I-th of these, starting over behind the last; none: to none."""
    poll_us: int = 0
    """Microseconds to poll before a sleep, at the most; 0 for never."""
    register_memory: bool = False
    """Whether each worker registers guest memory with its io_uring."""
    group: int = 1
    """Vrings in a row that have one worker."""

    def cpu(self, worker: int) -> int | None:
        """The CPU that a worker is pinned to."""
        return self.cpus[worker % len(self.cpus)] if self.cpus else None

    def worker_of(self, index: int) -> tuple[int, int]:
        """Which worker serves vring `index` of the device, and the vring's number there."""
        group, within = divmod(index, self.group)
        number, worker = divmod(group, self.workers)
        return worker, number * self.group + within

    def vrings_of(self, worker: int, queues: int) -> list[int]:
        """Which of a device's `queues` vrings a worker serves, in the order of their numbers."""
        return [index for index in range(queues) if self.worker_of(index)[0] == worker]


class Workers:
    """The worker threads of one device; each is started when it is first needed.

    Those parts of the data path that all workers must know of add to `at_start`: what a worker that
    starts is sent first, in this order.
    """

    def __init__(
        self,
        served: ServedDevice,
        plan: WorkerPlan,
        area: Area | None = None,
        *,
        on_failure: Callable[[OSError], None],
        on_miss: Callable[[int, Access], None],
    ) -> None:
        """`on_failure` is called where a worker cannot go on, once each.

        `on_miss` is called with what a worker lacks a translation of: a page, and what for.  Each
        counts in a slot of `area`, which is borrowed, or for nobody.
        """
        self.at_start: list[Callable[[WorkerThread], Iterable[Answer]]] = []
        self.have_quit = False
        self._is_cut_off = False
        self._served = served
        self._plan = plan
        self._area = area
        self._on_failure = on_failure
        self._on_miss = on_miss
        self._threads: dict[int, WorkerThread] = {}

    def __iter__(self) -> Iterator["WorkerThread"]:
        """Those that have been started."""
        return iter(tuple(self._threads.values()))

    def worker_for(self, index: int) -> tuple["WorkerThread", int, list[Answer]]:
        """The worker that serves vring `index`, the vring's number there, and what to wait for.

        A worker that has to be started for it knows all that the others know once it has answered.

        Raises:
            DataPlaneError: The host has no room for one more worker, or all have ended.
        """
        if self.have_quit:
            raise DataPlaneError("the data path has ended")
        worker, number = self._plan.worker_of(index)
        answers: list[Answer] = []
        if worker not in self._threads:
            thread = self._threads[worker] = self._start_worker(worker, index)
            for post in self.at_start:
                answers += post(thread)
        return self._threads[worker], number, answers

    async def start_all(self) -> None:
        """Start those that serve any vring, with all that they will need; returns when all have.

        No worker makes an io_uring afterwards.  Raises DataPlaneError.
        """
        answers: list[Answer] = []
        for index in range(self._served.device.queues):
            answers += self.worker_for(index)[2]
        answers += [thread.answer_to(thread.worker.prepare()) for thread in self]
        await wait_all(answers)

    @property
    def are_restricted(self) -> bool:
        """Whether the io_uring of each does only what it was made for."""
        return all(thread.worker.is_restricted for thread in self)

    def _start_worker(self, worker: int, index: int) -> "WorkerThread":
        try:
            return WorkerThread(
                worker,
                len(self._plan.vrings_of(worker, self._served.device.queues)),
                self._served,
                self._plan,
                None if self._area is None else self._area.slot(worker),
                on_failure=self._on_failure,
                on_miss=self._on_miss,
            )
        except (OSError, RuntimeError) as error:
            raise DataPlaneError(f"no worker can be started for ring {index}: {error}") from error

    async def post(self, command: Callable[["WorkerThread"], Answer]) -> None:
        """Post a command to each worker and wait until all have answered."""
        await wait_all([command(thread) for thread in self])

    @property
    def in_flight(self) -> int:
        """Requests fetched and not answered yet."""
        return sum(thread.worker.in_flight for thread in self)

    @property
    def have_vrings(self) -> bool:
        """Whether a vring is started."""
        return any(thread.setups for thread in self)

    def quit(self) -> None:
        """End all threads at once; requests in flight are abandoned."""
        self.have_quit = True
        for thread in self:
            thread.quit()

    def join(self, limit: float) -> bool:
        """Wait up to `limit` seconds for all threads to have ended: whether they have."""
        deadline = time.monotonic() + limit
        return all(thread.join(deadline - time.monotonic()) for thread in self)

    @property
    def have_abandoned(self) -> bool:
        """Whether a thread has ended with I/O that a library may still be at."""
        return any(thread.worker.has_abandoned for thread in self)

    def cut_off(self) -> None:
        """Keep libraries that cannot be stopped from the guest's memory; all threads have ended."""
        if self._is_cut_off or not self.have_abandoned:
            return
        self._is_cut_off = True
        log.warning("requests abandoned", device=self._served.name, requests=self.in_flight)
        ring.cut_off([thread.worker for thread in self])


class WorkerThread:
    """One worker with its thread, and the futures that wait for its answers."""

    def __init__(
        self,
        number: int,
        vrings: int,
        served: ServedDevice,
        plan: WorkerPlan,
        slot: memoryview | None,
        *,
        on_failure: Callable[[OSError], None],
        on_miss: Callable[[int, Access], None],
    ) -> None:
        """Start a worker with room for `vrings` vrings; for the rest see `Workers`.

        Raises OSError or RuntimeError where the host has no room for another.
        """
        self.number = number
        self._part = served.make_part(number, vrings)
        self.worker = ring.Worker(
            self._part,
            rings=vrings,
            largest=MAX_QUEUE_SIZE,
            longest_chain=served.longest_chain,
            longest_poll=plan.poll_us * NANOSECONDS,
            slot=slot,
        )
        self.setups = dict[int, VringSetup]()
        """How each of its vrings was started, by its number; one that is stopped is not there."""
        self.places: dict[int, PlaceFinder] = {}
        """Who finds the place of a vring in a memory map, by the vring's number."""
        self.reports: dict[int, Callable[[int], None]] = {}
        """Who logs what the worker reports of a vring, by the vring's number."""

        self._room = vrings
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Answer] = {}
        self._patience: asyncio.TimerHandle | None = None
        self._has_quit = False
        self._on_failure = on_failure
        self._on_miss = on_miss
        self._served = served
        self._loop.add_reader(self.worker.answers_fd, self._take_answers)
        name = f"blkd-io-{number}"
        self._thread = threading.Thread(
            target=self._run, args=(name, plan.cpu(number)), name=name, daemon=True
        )
        self._thread.start()

    def answer_to(self, ticket: int) -> Answer:
        """The answer to the command that was posted under `ticket`; cancelled after `quit`."""
        answer: Answer = self._loop.create_future()
        if self._has_quit:
            answer.cancel()
        else:
            self._waiting[ticket] = answer
        return answer

    def configure(self) -> Answer:
        """Serve the device as it is now."""
        return self.answer_to(self.worker.configure(self._served.configuration))

    def set_memory(self, memory: ring.MemoryMap | None) -> Answer:
        """Serve from another memory map; answered when the old one is unused."""
        places: list[Place | None] = [None] * self._room
        for number in self.setups:
            places[number] = self.places[number](memory)
        return self.answer_to(self.worker.set_memory(memory, places))

    def invalidate(self, iova: int, size: int, vrings: Iterable[int]) -> Answer:
        """Know a range of IOVAs no more, nor where these vrings lie, by their numbers.

        Answered when nothing that has begun touches what was there.
        """
        return self.answer_to(self.worker.invalidate_iotlb(iova, iova + size - 1, vrings))

    def quit(self) -> None:
        """End the thread at once; every answer that is still awaited is cancelled."""
        self._has_quit = True
        self._part.close()
        self._loop.remove_reader(self.worker.answers_fd)
        self.worker.quit()
        for answer in self._waiting.values():
            answer.cancel()

    def join(self, limit: float) -> bool:
        """Wait up to `limit` seconds for the thread to have ended: whether it has."""
        self._thread.join(max(0.0, limit))
        return not self._thread.is_alive()

    def _run(self, name: str, cpu: int | None) -> None:
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})  # 0: this thread
            self.worker.run(name)
        except OSError as error:
            self._loop.call_soon_threadsafe(self._on_failure, error)

    def _take_answers(self) -> None:
        for ticket, vring, result in self.worker.answers():
            if ticket:
                self._settle(self._waiting.pop(ticket), result)
            elif 0 < result < ring.RECOVERED:
                self._part.report(result)
            else:
                self.reports[vring](result)
        if misses := self.worker.misses():
            self._be_patient()
        for iova, access in misses:
            self._on_miss(iova, Access(access))

    def _be_patient(self) -> None:
        """Have the worker hold no chains up, after a while, for one that lacks a translation."""
        if self._patience is None:
            self._patience = self._loop.call_later(PATIENCE, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if not self._has_quit:
            self.answer_to(self.worker.lose_patience()).add_done_callback(self._note_waiting)

    def _note_waiting(self, answer: Answer) -> None:
        if not answer.cancelled() and answer.exception() is None and answer.result():
            self._be_patient()

    def _settle(self, answer: Answer, result: int) -> None:
        if answer.done():
            return  # nobody waits any more
        if result < 0:
            answer.set_exception(DataPlaneError(os.strerror(-result)))
        else:
            answer.set_result(result)


async def wait_all(answers: Iterable[Awaitable[object]]) -> None:
    """Wait for all of `answers`, also where one fails; the first failure is raised then."""
    results = await asyncio.gather(*answers, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
