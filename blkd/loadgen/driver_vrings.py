# SPDX-License-Identifier: Apache-2.0
"""The driver's vrings, which a back end serves: from what is agreed on to a load that can run."""

import contextlib
import os
import socket
import sys
import time
from dataclasses import replace
from typing import Final, Self

from blkd.errors import BenchError
from blkd.loadgen.agreement import Agreement
from blkd.loadgen.conversation import BackEnd, DriverVring
from blkd.loadgen.guest_memory import GUEST_ADDRESS, Memory, QueueLayout
from blkd.loadgen.loader import Loader, Outcome, Stretch, Watch
from blkd.loadgen.workload import Workload

PACKED_BASE: Final = 0x8000_8000  # both indices 0, both wrap counters 1
USED_INDEX: Final = 2  # bytes from the beginning of a used ring
RETRY_INTERVAL: Final = 0.01  # seconds between two tries to find the next back end


class DriverVrings:
    """Vrings in shared memory that a back end serves; a context that releases all."""

    def __init__(self, backend: BackEnd, work: Workload, agreed: Agreement) -> None:
        self.backend, self.work, self.agreed = backend, work, agreed
        self._shown: list[DriverVring] = []
        self.reconnections = 0
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
        """Release memory and descriptors."""
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
        if work.writes and not work.verify:
            for layout in layouts:
                memory.fill(layout.data, layout.end, work.seed)
        self._loader = Loader(memory, queues=work.queues, seed=work.seed, cpu=work.cpu)
        self._memory = memory
        for layout in layouts:
            self._make_queue(layout)
        self._set_up()

    def _make_queue(self, layout: QueueLayout) -> None:
        agreed = self.agreed
        kick, call, error = self._eventfd(), self._eventfd(), self._eventfd()
        self._loader.add_queue(
            layout,
            size=agreed.ring_size,
            depth=self.work.iodepth,
            kick=kick,
            packed=agreed.packed,
            event_idx=agreed.event_idx,
            indirect=agreed.indirect,
        )
        ring = DriverVring(
            size=agreed.ring_size,
            desc=GUEST_ADDRESS + layout.desc,
            avail=GUEST_ADDRESS + layout.avail,
            used=GUEST_ADDRESS + layout.used,
            base=PACKED_BASE if agreed.packed else 0,
            kick=kick,
            call=call,
            error=error,
        )
        self._shown.append(ring)

    def _set_up(self) -> None:
        """Send the back end all that it needs, from features to running rings."""
        self.backend.accept(self.agreed.features)
        if self.work.reconnect:
            self.backend.record(self.work.queues, self.agreed.ring_size)
        self.backend.share(self._memory.region, self._memory.fd)
        for index, ring in enumerate(self._shown):
            self.backend.start_ring(index, ring)

    def _reconnect(self) -> socket.socket:
        """Connect to the next back end after one went away: the socket to it.

        Of a split vring it is sent the used index; the rest it finds in the in-flight region.
        """
        patience = time.monotonic() + self.work.timeout
        if not self.agreed.packed:
            self._shown = [replace(ring, base=self._used_index(ring)) for ring in self._shown]
        while True:
            try:
                self.backend.reconnect()
                self.backend.negotiate()
                self._set_up()
            except BenchError:
                if time.monotonic() > patience:
                    raise
                time.sleep(RETRY_INTERVAL)
            else:
                self.reconnections += 1
                return self.backend.sock

    def _used_index(self, ring: DriverVring) -> int:
        at = ring.used - GUEST_ADDRESS + USED_INDEX
        return int.from_bytes(self._memory.mapping[at : at + 2], sys.byteorder)

    def run(self, stretch: Stretch, watch: Watch, interval: float) -> Outcome:
        """Do a stretch of work.  Raises BenchError where the back end fails."""
        return self._loader.run(
            stretch,
            sock=self.backend.sock,
            errors=[ring.error for ring in self._shown],
            reconnect=self._reconnect if self.work.reconnect else None,
            watch=watch,
            interval=interval,
        )
