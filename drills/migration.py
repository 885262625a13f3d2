# SPDX-License-Identifier: Apache-2.0
"""A guest migrates there and back under fio: two QEMUs, and two blkds on one image."""

import asyncio
import contextlib

from drills.killing import image
from drills.outcome import Outcome
from harness.fio import Report, fio
from harness.guest import Disk, Guest, Iommu, Machine
from harness.server import Server, serve

SIZE = 64 << 20
JOBS = 4
CPUS = 2
RUN = 3  # seconds of a load, after which it is looked at and another begins
LIMIT = 180.0
START_LIMIT = 20.0
LOCK_LIMIT = 3.0  # seconds; QEMU does not wait until its rings have started


class Load:
    """fio in the guest, one run after the other for as long as the guest migrates."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._enough = False
        self.guest: Guest

    def stop(self) -> None:
        """Let the present run be the last."""
        self._enough = True

    async def run(self) -> None:
        """Raises CommandFailed at the first request that fails and the first byte that is wrong."""
        while not self._enough:
            self.reports.append(await _load(self.guest))


async def drill(rounds: int, *, packed: bool = False, iommu: Iommu | None = None) -> Outcome:
    """Migrate there and back, `rounds` times, while fio writes, flushes, reads and compares.

    Before each time a migration is cancelled, and another fails at its very end: the destination
    dies before the guest goes on there, and it goes on where it was.

    An error, beside what fio and the guest's kernel say, is an image that is locked by another
    blkd than the one whose guest runs.
    """
    machine = await Machine.prepare()
    with image(SIZE) as path:
        async with (
            serve(path) as here,
            serve(path, "--incoming") as there,
            contextlib.AsyncExitStack() as machines,
        ):
            journey = Journey(machine, [here, there], machines, packed=packed, iommu=iommu)
            return await journey.go(rounds)


class Journey:
    """The guest's way from one back end to the other and back."""

    def __init__(
        self,
        machine: Machine,
        servers: list[Server],
        machines: contextlib.AsyncExitStack,
        *,
        packed: bool,
        iommu: Iommu | None,
    ) -> None:
        self._machine, self._servers, self._machines = machine, servers, machines
        self._packed, self._iommu = packed, iommu
        self._load = Load()
        self._cancelled = self._failed = 0
        self._wrong_locks = 0
        self._seconds: list[float] = []
        self._downtimes: list[float] = []
        self._sent = 0

    async def go(self, rounds: int) -> Outcome:
        """Boot at the first, and be at the first again in the end."""
        guest = await self._machines.enter_async_context(
            self._machine.boot(self._disk(self._servers[0]), cpus=CPUS, iommu=self._iommu)
        )
        self._load.guest = guest
        load = asyncio.ensure_future(self._load.run())
        try:
            for _ in range(rounds):
                await self._under(load)
                await self._cancel(guest)
                await self._under(load)
                await self._fail(guest)
                for _ in range(2):
                    await self._under(load)
                    guest = await self._migrate(guest)
            self._load.stop()
            await load
        finally:
            load.cancel()
        errors = len(await guest.kernel_errors()) + self._wrong_locks
        return self._outcome(rounds, errors)

    async def _migrate(self, guest: Guest) -> Guest:
        """Go over to the other back end: the guest there."""
        there = await self._send(guest)
        self._load.guest = there
        await there.take_over(guest)
        await guest.kill()
        self._servers.reverse()
        await self._expect(True, False)
        return there

    async def _cancel(self, guest: Guest) -> None:
        """Begin to go over, and stay."""
        there = await self._waiting()
        await guest.begin_and_cancel(there)
        await self._expect(True, False)
        await there.kill()
        self._cancelled += 1

    async def _fail(self, guest: Guest) -> None:
        """Go over, find the destination dead and go on here."""
        there = await self._send(guest)
        await there.kill()
        await guest.resume()
        await self._expect(True, False)
        self._failed += 1

    async def _send(self, guest: Guest) -> Guest:
        """Have the guest stand still at both ends: the other one."""
        there = await self._waiting()
        seen = await guest.migrate(there)
        await self._expect(False, False)
        self._seconds.append(seen.seconds)
        self._downtimes.append(seen.downtime)
        self._sent += seen.bytes
        return there

    async def _waiting(self) -> Guest:
        """A machine at the other back end that waits for the guest."""
        there = await self._machines.enter_async_context(
            self._machine.incoming(self._disk(self._servers[1]), cpus=CPUS, iommu=self._iommu)
        )
        await self._expect(True, False)
        return there

    async def _expect(self, *locked: bool) -> None:
        """Look at who has the image: the present back end, and the other one."""
        try:
            async with asyncio.timeout(LOCK_LIMIT):
                while await self._locked() != locked:
                    pass
        except TimeoutError:
            self._wrong_locks += 1

    async def _locked(self) -> tuple[bool, ...]:
        states = [await server.call("show") for server in self._servers]
        return tuple(state["image_locked"] for state in states)

    async def _under(self, load: asyncio.Future[None]) -> None:
        """Wait until the guest's requests are answered where it is now."""
        before = await self._answered()
        async with asyncio.timeout(START_LIMIT):
            while await self._answered() == before:
                if load.done():
                    await load
                await asyncio.sleep(0.1)

    async def _answered(self) -> int:
        total = (await self._servers[0].call("stats"))["total"]
        return int(total["reads"] + total["writes"])

    def _disk(self, server: Server) -> Disk:
        translated = self._iommu is not None
        return Disk(server.socket, queues=2, packed=self._packed, translated=translated)

    def _outcome(self, rounds: int, errors: int) -> Outcome:
        reports = self._load.reports
        behind = " behind an IOMMU" if self._iommu else ""
        return Outcome(
            drill=f"live migration, {'packed' if self._packed else 'split'} rings{behind}",
            rounds=rounds,
            errors=errors,
            figures={
                "migrations": len(self._downtimes) - self._failed,
                "migrations cancelled": self._cancelled,
                "migrations failed at their end": self._failed,
                "requests": sum(r.read.requests + r.write.requests + r.flushes for r in reports),
                "bytes written": sum(r.write.bytes for r in reports),
                "bytes verified": sum(r.read.bytes for r in reports),
                "memory sent, bytes": self._sent,
                "longest migration, ms": round(1000 * max(self._seconds)),
                "longest downtime, ms": round(1000 * max(self._downtimes)),
            },
        )


async def _load(guest: Guest) -> Report:
    share = SIZE // JOBS
    return await fio(
        guest,
        "/dev/vda",
        f"--rw=randrw --bsrange=4k-32k --iodepth=16 --fsync=64 --size={share} --numjobs={JOBS}",
        f"--offset_increment={share} --time_based --runtime={RUN} --verify_backlog=64 "
        "--serialize_overlap=1",
        limit=LIMIT,
    )
