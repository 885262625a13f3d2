# SPDX-License-Identifier: Apache-2.0
"""A driver maps each buffer for one request, while blkd is killed and upgraded.

Translations are lacking, denied, taken back and moved at any moment.  A page that was taken back is
filled by its driver with what must be there when it is used next: a write of the device that comes
too late shows.
"""

import asyncio
import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from drills.killing import RULES, image
from drills.outcome import Outcome
from harness.disk import IN, IOERR, OK, OUT
from harness.frontend import FrontEnd
from harness.iommu import EVERYTHING, OFFSET, PAGE
from harness.paged_driver import PagedDriver
from harness.server import Server, serve

SIZE = 16 << 20
SLOTS = 24
"""Requests at once; each has a part of the disk of its own."""
LONGEST = 8  # pages of one request
PAGES = 400
"""Of guest memory that buffers are made of."""
SECTORS = PAGE // 512
REQUESTS = 400  # of a round
DENIED = 0.05  # of all requests
DISTURBED = 0.1  # of all requests: some translation is taken back behind one that is sent
PATIENCE = 60.0  # seconds
LOOK_AGAIN = 0.01  # seconds
LONGEST_LIFE = 0.3  # seconds from the start of a round to what ends blkd
BUFFERS_AT = 2 * OFFSET


@dataclass
class Slot:
    """A part of the disk, and the request that is at it."""

    number: int
    content: bytes = bytes(LONGEST * PAGE)
    """What the disk has there."""
    header: int = 0
    status: int = 0
    kind: int = IN
    wanted: bytes = b""
    pages: list[int] = field(default_factory=list)
    iova: int = 0
    is_denied: bool = False
    is_busy: bool = False


class StrictLoad:
    """Requests of one driver, whose buffers are mapped for as long as they take."""

    def __init__(self, front_end: FrontEnd, *, packed: bool, seed: int) -> None:
        self.requests = self.denied = self.invalidations = self.errors = 0
        self._random = random.Random(seed)  # noqa: S311 - no secret
        iommu = PagedDriver.prepare(front_end, packed=packed)
        self.driver = PagedDriver(front_end, front_end.start_ring())
        self.iommu = iommu
        self._free = {self.driver.page(): bytes(PAGE) for _ in range(PAGES)}
        self._slots = [Slot(n) for n in range(SLOTS)]
        for slot in self._slots:
            slot.header, slot.status = self.driver.page(), self.driver.page()
        self._next_iova = BUFFERS_AT

    def carry(self, count: int) -> None:
        """Send so many requests and wait for them, with all that goes wrong meanwhile."""
        target = self.requests + count
        while self.requests < target or any(slot.is_busy for slot in self._slots):
            answered = self.driver.answered(LOOK_AGAIN)
            for slot in self._slots:
                if slot.status in answered:
                    self._end(slot)
                if not slot.is_busy and self.requests < target:
                    self._begin(slot)

    def _begin(self, slot: Slot) -> None:
        chance = self._random
        slot.kind, count = chance.choice((IN, OUT)), chance.randint(1, LONGEST)
        slot.is_denied = chance.random() < DENIED
        slot.pages = [self._take_page() for _ in range(count)]
        slot.iova, self._next_iova = self._next_iova, self._next_iova + (count + 1) * PAGE
        slot.wanted = chance.randbytes(count * PAGE)
        for n, gpa in enumerate(slot.pages):
            self.iommu.map(slot.iova + n * PAGE, gpa)
            if slot.kind == OUT:
                self.driver.memory.write(gpa, slot.wanted[n * PAGE :][:PAGE])
        if slot.is_denied:
            self.iommu.unmap(slot.iova + chance.randrange(count) * PAGE)
        slot.is_busy = True
        self.requests += 1
        sector = slot.number * LONGEST * SECTORS
        self.driver.submit(
            slot.kind, sector, slot.iova, size=count * PAGE, header=slot.header, status=slot.status
        )
        if chance.random() < DISTURBED:
            self._invalidate(*self._somewhere(slot))

    def _somewhere(self, slot: Slot) -> tuple[int, int]:
        """A range whose translations still hold, so that the device only has to ask again."""
        pages = [OFFSET + slot.header, OFFSET + slot.status, slot.iova]
        return self._random.choice([EVERYTHING, *((page, PAGE) for page in pages)])

    def _end(self, slot: Slot) -> None:
        slot.is_busy = False
        status = self.driver.status(slot.status)
        self.denied += slot.is_denied
        self.errors += status != (IOERR if slot.is_denied else OK)
        length = len(slot.pages) * PAGE
        if status == OK and slot.kind == IN:
            seen = b"".join(self.driver.memory.read(gpa, PAGE) for gpa in slot.pages)
            self.errors += seen != slot.content[:length]
        if status == OK and slot.kind == OUT:
            slot.content = slot.wanted + slot.content[length:]
        self.iommu.unmap(slot.iova, length)
        self._invalidate(slot.iova, length)
        for gpa in slot.pages:
            self._free[gpa] = self._random.randbytes(PAGE)
            self.driver.memory.write(gpa, self._free[gpa])

    def _take_page(self) -> int:
        """A page that nobody has written since its driver filled it."""
        gpa = self._random.choice(list(self._free))
        self.errors += self.driver.memory.read(gpa, PAGE) != self._free.pop(gpa)
        return gpa

    def _invalidate(self, iova: int, size: int) -> None:
        self.invalidations += 1
        with contextlib.suppress(OSError):  # a dead back end knows nothing any more
            self.errors += self.iommu.invalidate(iova, size) != 0


async def drill(rounds: int, *, packed: bool = False) -> Outcome:
    """Kill or upgrade blkd once a round."""
    loop, executor = asyncio.get_running_loop(), ThreadPoolExecutor(2)
    kills = upgrades = 0
    with image(SIZE) as path, executor:
        async with serve(f"faulty:{RULES}:{path}") as server:
            with FrontEnd.connect(server.socket, timeout=PATIENCE) as front_end:
                load = StrictLoad(front_end, packed=packed, seed=rounds)
                chance = random.Random(rounds)  # noqa: S311 - no secret
                with load.iommu.serving():
                    for _ in range(rounds):
                        carried = loop.run_in_executor(executor, load.carry, REQUESTS)
                        await asyncio.wait([carried], timeout=chance.uniform(0, LONGEST_LIFE))
                        if chance.choice((True, False)):
                            upgrades += await server.upgrade() == 0
                        else:
                            await _replace(server, front_end, executor)
                            kills += 1
                        async with asyncio.timeout(PATIENCE):
                            await carried
    return Outcome(
        drill=f"behind an IOMMU, {'packed' if packed else 'split'} rings",
        rounds=rounds,
        errors=load.errors + abs(rounds - kills - upgrades),
        figures={
            "kills": kills,
            "upgrades": upgrades,
            "requests": load.requests,
            "requests denied": load.denied,
            "translations missed": len(load.iommu.misses),
            "invalidations": load.invalidations,
        },
    )


async def _replace(server: Server, front_end: FrontEnd, executor: ThreadPoolExecutor) -> None:
    """Kill blkd, and have another one go on."""
    await server.kill()
    await server.start()
    await asyncio.get_running_loop().run_in_executor(executor, front_end.resume, server.socket)
