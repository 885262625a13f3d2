# SPDX-License-Identifier: Apache-2.0
"""blkd is killed under fio in a guest, which goes on, verifies and sees no error.

Never while QEMU is only connecting: QEMU 7.2 that loses its back end at GET_FEATURES looks for no
other.
"""

import asyncio

from drills.killing import Killer, image, unreliable
from drills.outcome import Outcome
from harness.fio import Report, fio
from harness.guest import Disk, Guest, Iommu, Machine

SIZE = 64 << 20
LONGEST_LIFE = 1.0  # seconds, of those in which QEMU is connected: it looks once a second
LIFE = 2.5  # seconds from kill to kill, roughly: what a load is planned by
KILLS = 27  # of one load, at the most: fio comes to an end only in a life that is long enough
JOBS = 4
LIMIT = 300.0


async def drill(rounds: int, *, packed: bool = False, iommu: Iommu | None = None) -> Outcome:
    """Kill `rounds` times while fio writes, flushes, reads back and compares."""
    figures = {"kills": 0, "requests": 0, "bytes written": 0, "bytes verified": 0}
    machine = await Machine.prepare()
    with image(SIZE) as path:
        async with (
            unreliable(path) as server,
            machine.boot(
                Disk(server.socket, packed=packed, translated=iommu is not None), iommu=iommu
            ) as guest,
        ):
            seed = 0
            while figures["kills"] < rounds:
                seed += 1
                kills = min(KILLS, rounds - figures["kills"])
                load = asyncio.ensure_future(_load(guest, kills * LIFE))
                killer = Killer(server, LONGEST_LIFE, seed, in_handshake=False)
                await killer.run(kills, load)
                seen = await load
                figures["kills"] += killer.kills
                figures["requests"] += seen.read.requests + seen.write.requests + seen.flushes
                figures["bytes written"] += seen.write.bytes
                figures["bytes verified"] += seen.read.bytes
            errors = len(await guest.kernel_errors())
    name = f"restart under a guest, {'packed' if packed else 'split'} rings"
    name += " behind an IOMMU" if iommu else ""
    return Outcome(drill=name, rounds=rounds, errors=errors, figures={**figures})


async def _load(guest: Guest, seconds: float) -> Report:
    """Raises CommandFailed at the first request that fails and the first byte that is wrong."""
    share = SIZE // JOBS
    return await fio(
        guest,
        "/dev/vda",
        f"--rw=randrw --bsrange=4k-32k --iodepth=16 --fsync=64 --size={share} --numjobs={JOBS}",
        f"--offset_increment={share} --time_based --runtime={seconds:.0f} --verify_backlog=64 "
        "--serialize_overlap=1",  # two writes in flight to one block come in any order
        limit=LIMIT,
    )
