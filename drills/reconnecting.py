# SPDX-License-Identifier: Apache-2.0
"""A verified load on one disk, by a scripted front end that connects again whenever it has to.

Each block tells which write it is of: what is read back shows a write that was lost, done twice
with another between, or done elsewhere.
"""

import contextlib
import errno
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from drills.ledger import BLOCK, content
from harness.disk import Done
from harness.frontend import IN, OUT, Disk, FrontEnd

QUEUES = 2
BLOCKS = 256  # of each queue's own part of the disk
BYTES = QUEUES * BLOCKS * BLOCK  # of a disk that a load uses
RING_SIZE = 64  # descriptors
DEPTH = 8  # requests in flight of each queue
SECTORS = BLOCK // 512  # of a block
ANSWER_LIMIT = 30.0  # seconds until a request is answered, whatever was killed meanwhile
BREATH = 0.005  # seconds from turn to turn: what is killed needs processors to start again
CONNECT_PAUSE = 0.01  # seconds until a refused connect is tried again
STOP_LIMIT = 2 * ANSWER_LIMIT


class NeverAnsweredError(Exception):
    """A request was not answered in time, or there was nobody to connect to."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request on a block, and what a read of it is to show."""

    kind: int
    block: int
    data: bytes

    def submit(self, disk: Disk) -> int:
        """Send it: what to wait for."""
        if self.kind == OUT:
            return disk.submit(OUT, self.block * SECTORS, self.data)
        return disk.submit(IN, self.block * SECTORS, size=BLOCK)


class ReconnectingLoad:
    """A front end's thread: each queue has requests in flight, again and again.

    `must_connect` tells whether a refused connect is an error just now.
    """

    def __init__(self, path: Path, seed: int, must_connect: Callable[[], bool]) -> None:
        self.path = path
        self._must_connect = must_connect
        self._versions = [0] * (QUEUES * BLOCKS)
        self._chance = random.Random(seed)  # noqa: S311 - what is drawn is the same each time
        self._stopping = threading.Event()
        self._turns = threading.Condition()
        self._turn = 0
        self._thread = threading.Thread(target=self._run, name=f"load-{path.stem}")
        self._front_end: FrontEnd
        self._disks: list[Disk] = []
        self.failure: BaseException | None = None
        """What has ended the thread before its time."""
        self.requests = self.blocks_read = self.reconnections = 0
        self.wrong = self.failed = self.refusals = 0

    def start(self, *, packed: bool) -> Self:
        """Connect, and begin."""
        self._front_end = FrontEnd(self._connected(), ANSWER_LIMIT)
        self._front_end.prepare(packed=packed)
        self._front_end.track_inflight(QUEUES, RING_SIZE)
        self._disks = [self._front_end.make_disk(index, RING_SIZE) for index in range(QUEUES)]
        self._thread.start()
        return self

    def stop(self) -> None:
        """Read all blocks once more, and disconnect.  Raises what has ended the thread."""
        self._stopping.set()
        self._thread.join(STOP_LIMIT)
        try:
            if self.failure is None:
                self._read_all()
        finally:
            self._front_end.close()

    @property
    def capacity(self) -> int:
        """The disk's size, in bytes, as its configuration says; only once the load was stopped."""
        return self._capacity

    def await_turns(self, limit: float, turns: int = 2) -> bool:
        """Whether requests that are sent from now on are answered, within `limit` seconds."""
        deadline = time.monotonic() + limit
        with self._turns:
            turn = self._turn + turns
            while self._turn < turn and self.failure is None:
                if not self._turns.wait(deadline - time.monotonic()):
                    return False
        return self.failure is None

    def expected(self, block: int) -> bytes:
        """What a block holds, once no request is in flight."""
        return content(block, self._versions[block])

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._do_turn([list(self._plan(queue)) for queue in range(QUEUES)])
                with self._turns:
                    self._turn += 1
                    self._turns.notify_all()
                self._stopping.wait(BREATH)
        except BaseException as error:  # noqa: BLE001 - looked at by who waits
            with self._turns:
                self.failure = error
                self._turns.notify_all()

    def _read_all(self) -> None:
        for first in range(0, BLOCKS, DEPTH):
            self._do_turn(
                [
                    [Planned(IN, queue * BLOCKS + first + at, b"") for at in range(DEPTH)]
                    for queue in range(QUEUES)
                ]
            )
        self._capacity = self._front_end.capacity() * 512

    def _do_turn(self, plans: Sequence[Sequence[Planned]]) -> None:
        """Have these requests answered, those of each queue, and check the answers."""
        sent = [
            (disk, {planned.submit(disk): planned for planned in plan})
            for disk, plan in zip(self._disks, plans, strict=True)
        ]
        deadline = time.monotonic() + ANSWER_LIMIT
        while any(waiting for _, waiting in sent):
            for disk, waiting in sent:
                self._take(disk, waiting)
            if any(waiting for _, waiting in sent):
                self._await_news(deadline)

    def _take(self, disk: Disk, waiting: dict[int, Planned]) -> None:
        """Check what has been answered; the next answer then makes for a call."""
        with contextlib.suppress(TimeoutError):
            while waiting:
                for head, done in disk.ended(0).items():
                    self._check(waiting.pop(head), done)

    def _check(self, planned: Planned, done: Done) -> None:
        self.requests += 1
        self.failed += done.status != 0
        if planned.kind == IN:
            self.blocks_read += 1
            self.wrong += done.data != self.expected(planned.block)

    def _plan(self, queue: int) -> Iterator[Planned]:
        """Requests on different blocks of one queue's part."""
        for at in self._chance.sample(range(BLOCKS), DEPTH):
            block = queue * BLOCKS + at
            if self._chance.random() < 0.5:  # noqa: PLR2004 - half of them
                self._versions[block] += 1
                yield Planned(OUT, block, self.expected(block))
            else:
                yield Planned(IN, block, b"")

    # ---- its connection ----

    def _await_news(self, deadline: float) -> None:
        """Wait until a queue was called, and do what the connection needs meanwhile."""
        front_end = self._front_end
        poll = select.poll()
        for disk in self._disks:
            poll.register(disk.ring.call_fd, select.POLLIN)
        poll.register(front_end.sock, select.POLLIN)
        if front_end.backend_requests:
            poll.register(front_end.backend_requests, select.POLLIN)
        left = deadline - time.monotonic()
        ready = {fd for fd, _ in poll.poll(max(0.0, left) * 1000)}
        if not ready:
            raise NeverAnsweredError(f"{self.path.name}: no answer in {ANSWER_LIMIT:g} s")
        if front_end.sock.fileno() in ready:
            self._reconnect(deadline)
        elif front_end.backend_requests and front_end.backend_requests.fileno() in ready:
            try:
                front_end.answer_backend()
            except OSError:
                self._reconnect(deadline)

    def _reconnect(self, deadline: float) -> None:
        """Go on with whoever serves now; one that dies meanwhile is left for the next."""
        while True:
            sock = self._connected(deadline)
            try:
                self._front_end.resume_on(sock)
            except TimeoutError as error:
                raise NeverAnsweredError(f"{self.path.name}: connected in vain") from error
            except OSError:
                if time.monotonic() > deadline:
                    raise
                continue
            self.reconnections += 1
            return

    def _connected(self, deadline: float | None = None) -> socket.socket:
        """A connection; refusals are counted where there is to be none."""
        deadline = time.monotonic() + ANSWER_LIMIT if deadline is None else deadline
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(ANSWER_LIMIT)
            is_sure = self._must_connect()
            refused = sock.connect_ex(os.fspath(self.path))
            if not refused:
                return sock
            sock.close()
            if refused not in {errno.ECONNREFUSED, errno.ENOENT}:
                raise NeverAnsweredError(f"{self.path.name}: {os.strerror(refused)}")
            self.refusals += is_sure and self._must_connect()
            if time.monotonic() > deadline:
                raise NeverAnsweredError(f"{self.path.name}: nobody listens")
            select.poll().poll(CONNECT_PAUSE * 1000)
