# SPDX-License-Identifier: Apache-2.0
"""An IOMMU of the scripted front end: a page table, and answers to what a back end misses.

    iommu = Iommu(front_end)                # before it negotiates
    disk = front_end.disk()                 # its vrings and requests have IOVAs
    with iommu.serving():                   # answers misses meanwhile, on a thread
        disk.read(0, 512)

Without a thread, `next_miss` and `answer` are the same step by step.
"""

import contextlib
import enum
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.vring import wait_readable

if TYPE_CHECKING:
    from harness.frontend import FrontEnd

PAGE = 4096
OFFSET = 1 << 40
"""How far above its guest address memory is mapped to begin with."""
EVERYTHING = (0, 0)
"""What QEMU says for all IOVAs: 2**64 does not fit."""

MESSAGE = struct.Struct("=QQQBB6x")  # iova, size, user address, permissions, type
SHORT_MESSAGE = struct.Struct("=QQQBB")
HEADER = struct.Struct("=III")
IOTLB_MSG = 22
MISS_MSG = 1
VERSION, REPLY, NEED_REPLY = 0x1, 0x4, 0x8
READ, WRITE, BOTH = 1, 2, 3


class Kind(enum.IntEnum):
    """Types of IOTLB messages."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


@dataclass(frozen=True, slots=True)
class Miss:
    """What a back end asks for."""

    iova: int
    access: int

    @property
    def page(self) -> int:
        return self.iova & -PAGE


@dataclass(frozen=True, slots=True)
class Mapping:
    """What a page of IOVAs stands for."""

    gpa: int
    access: int = BOTH


class Iommu:
    """The page table, and what is said of it on both channels.

    All guest memory is mapped `OFFSET` above its guest addresses, until `map` or `unmap` change
    that.  The back end learns of a change when it misses, and by `invalidate` or `update`.
    """

    def __init__(self, front_end: "FrontEnd") -> None:
        self.front_end = front_end
        self.misses: list[Miss] = []
        """All that came, in their order."""
        self._changed: dict[int, Mapping | None] = {}  # by the IOVA of a page
        self._placed: dict[int, int] = {}  # the IOVA of a page that is not where it was
        front_end.iommu = self
        front_end.memory.device_address = self.iova

    # The page table

    def iova(self, gpa: int) -> int:
        """The IOVA of a guest address; an IOVA stays what it is."""
        if gpa >= OFFSET:
            return gpa
        page = gpa & -PAGE
        return self._placed.get(page, page + OFFSET) + gpa % PAGE

    def map(self, iova: int, gpa: int, size: int = PAGE, access: int = BOTH) -> None:
        """Have whole pages of IOVAs stand for guest memory; drivers use these IOVAs for it."""
        for at in range(0, size, PAGE):
            self._changed[iova + at] = Mapping(gpa + at, access)
            self._placed[gpa + at] = iova + at

    def unmap(self, iova: int, size: int = PAGE) -> None:
        """Have whole pages of IOVAs stand for nothing."""
        for at in range(0, size, PAGE):
            self._changed[iova + at] = None

    def translate(self, iova: int) -> Mapping | None:
        """What the page with this IOVA stands for."""
        page = iova & -PAGE
        if page in self._changed:
            return self._changed[page]
        memory = self.front_end.memory
        inside = any(r.gpa <= page - OFFSET < r.gpa + r.size for r in memory.regions)
        return Mapping(page - OFFSET) if inside else None

    # What is said to the back end

    def say(
        self,
        kind: int,
        iova: int,
        size: int = 0,
        user_address: int = 0,
        access: int = 0,
        *,
        short: bool = False,
    ) -> int:
        """Send an IOTLB message, and wait for its answer: 0 for done."""
        layout = SHORT_MESSAGE if short else MESSAGE
        return self.front_end.ack(IOTLB_MSG, layout.pack(iova, size, user_address, access, kind))

    def update(self, iova: int, gpa: int, size: int = PAGE, access: int = BOTH) -> int:
        """Tell the back end what IOVAs stand for."""
        return self.say(Kind.UPDATE, iova, size, self.front_end.memory.user_address(gpa), access)

    def invalidate(self, iova: int, size: int = PAGE) -> int:
        """Have the back end forget; nothing touches that memory when this returns."""
        return self.say(Kind.INVALIDATE, iova, size)

    # What the back end asks

    def next_miss(self, timeout: float = 5) -> Miss:
        """The next miss; it is not answered.  Raises TimeoutError."""
        if not self.is_asked(timeout):
            raise TimeoutError("the back end misses nothing")
        request, flags, payload, _ = self.front_end.receive_request()
        assert (request, flags) == (MISS_MSG, VERSION | NEED_REPLY), (request, flags)
        iova, size, user_address, access, kind = MESSAGE.unpack(payload)
        assert (size, user_address, kind) == (0, 0, Kind.MISS)
        assert access in (READ, WRITE, BOTH)
        self.misses.append(Miss(iova, access))
        return self.misses[-1]

    def is_asked(self, timeout: float) -> bool:
        """Whether a miss comes in this time."""
        channel = self.front_end.backend_requests
        return channel is not None and wait_readable(channel.fileno(), timeout)

    def acknowledge(self, result: int = 0) -> None:
        """Say that a miss is dealt with: another number than 0 where it cannot be."""
        channel = self.front_end.backend_requests
        assert channel is not None
        channel.sendall(HEADER.pack(MISS_MSG, VERSION | REPLY, 8) + struct.pack("=Q", result))

    def answer(self, miss: Miss) -> bool:
        """Answer as QEMU does, by the page table: whether there was a translation."""
        mapping = self.translate(miss.iova)
        found = mapping is not None and not miss.access & ~mapping.access
        if mapping is not None and found:
            assert self.update(miss.page, mapping.gpa, PAGE, mapping.access) == 0
        self.acknowledge(0 if found else 1)
        return found

    def answer_next(self, timeout: float = 5) -> Miss:
        """Answer the next miss: which one it was."""
        miss = self.next_miss(timeout)
        self.answer(miss)
        return miss

    def serve_next(self) -> None:
        """Answer the next request of the back end, be it a miss or not."""
        channel = self.front_end.backend_requests
        assert channel is not None
        head = channel.recv(HEADER.size, socket.MSG_PEEK | socket.MSG_WAITALL)
        if len(head) < HEADER.size:
            raise ConnectionError("the back end closed the back-end channel")
        if HEADER.unpack(head)[0] == MISS_MSG:
            self.answer_next()
        else:
            self.front_end.answer_backend()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer all that is asked on a thread; what went wrong there is raised at the end."""
        ending = threading.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            while not ending.is_set():
                try:
                    with self.front_end.lock:
                        if self.is_asked(0):
                            self.serve_next()
                            continue
                except OSError:  # the back end is gone; the next one has a channel of its own
                    time.sleep(0.01)
                except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
                    failures.append(error)
                    return
                self.is_asked(0.02)

        thread = threading.Thread(target=serve, name="iommu")
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()
        if failures:
            raise failures[0]
