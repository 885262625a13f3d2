# SPDX-License-Identifier: Apache-2.0
"""A virtio-blk driver behind an IOMMU: each part of a request is a page that can be mapped."""

import struct
import time

from harness.disk import IN
from harness.frontend import FrontEnd, Ring
from harness.iommu import OFFSET, PAGE, Iommu
from harness.vring import DESC_WRITE

UNANSWERED = 0xFF
"""A status byte as a driver leaves it to the device."""
LOOK_AGAIN = 0.05  # seconds


class PagedDriver:
    """A driver whose headers, buffers and status bytes are known by their pages.

    Addresses are guest addresses, for which an IOMMU has IOVAs, or IOVAs.
    """

    def __init__(self, front_end: FrontEnd, ring: Ring) -> None:
        assert front_end.iommu is not None
        self.front_end, self.ring = front_end, ring
        self.memory = front_end.memory
        self.iommu: Iommu = front_end.iommu
        self._sent: dict[int, int] = {}  # what the ring calls a request: where its status will be

    @classmethod
    def prepare(
        cls, front_end: FrontEnd, *, packed: bool, rings: int = 1, size: int = 128
    ) -> Iommu:
        """Negotiate, with requests in flight recorded, as QEMU does: the IOMMU."""
        iommu = Iommu(front_end)
        front_end.prepare(packed=packed)
        front_end.config(0, 60)
        front_end.track_inflight(rings, size)
        return iommu

    @classmethod
    def start(cls, front_end: FrontEnd, *, packed: bool) -> "PagedDriver":
        """Drive a ring for which all memory is translated beforehand; nothing is asked then."""
        iommu = cls.prepare(front_end, packed=packed)
        driver = cls(front_end, front_end.start_ring())
        while iommu.is_asked(0):  # for where the ring lies
            iommu.answer_next()
        for region in front_end.memory.regions:
            assert iommu.update(OFFSET + region.gpa, region.gpa, region.size) == 0
        iommu.misses.clear()
        return driver

    def page(self, content: bytes = b"") -> int:
        """The guest address of a page of its own."""
        gpa = self.memory.alloc(PAGE, PAGE)
        self.memory.write(gpa, content)
        return gpa

    def submit(
        self,
        kind: int,
        sector: int,
        data: int,
        *,
        size: int = PAGE,
        status: int | None = None,
        header: int | None = None,
    ) -> int:
        """Send a request, with new pages for what is not given: where its status will be."""
        header = self.page() if header is None else header
        status = self.page() if status is None else status
        self.memory.write(header, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(status, bytes([UNANSWERED]))
        chain: list[tuple[int | bytes, int, int]] = [
            (header, 16, 0),
            (data, size, DESC_WRITE if kind == IN else 0),
            (status, 1, DESC_WRITE),
        ]
        head = self.ring.add(chain)
        self._sent[head] = status
        self.ring.publish(head)
        self.ring.kick()
        return status

    def status(self, at: int) -> int:
        return self.memory.read(at, 1)[0]

    def answered(self, timeout: float) -> set[int]:
        """The requests that are given back next, by their status bytes; none after that time."""
        return {self._sent.pop(head) for head, _ in self.ring.wait_used(timeout)}

    def wait(self, *at: int, timeout: float = 5) -> list[int]:
        """The status of each of these requests, once all are given back."""
        deadline = time.monotonic() + timeout
        missing = set(at)
        while missing:
            assert time.monotonic() < deadline, f"{len(missing)} requests are not answered"
            missing -= self.answered(LOOK_AGAIN)
        return [self.status(one) for one in at]

    def do(
        self,
        kind: int,
        sector: int,
        data: int,
        *,
        size: int = PAGE,
        status: int | None = None,
        header: int | None = None,
    ) -> int:
        """Send a request and wait for it: its status."""
        at = self.submit(kind, sector, data, size=size, status=status, header=header)
        return self.wait(at)[0]
