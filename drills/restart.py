# SPDX-License-Identifier: Apache-2.0
"""blkd is killed under a load that verifies all it reads, and another blkd goes on."""

import asyncio

from blkd.errors import BlkdError
from drills.killing import RULES, Killer, image, unreliable
from drills.outcome import Outcome
from harness.server import blkd

SIZE = 32 << 20
BLOCK = 4096
LONGEST_LIFE = 0.4  # seconds from one start to the next kill
RUN = 20.0  # seconds of a load, at the most; each ends with a check of the whole disk
LIFE = 0.8  # seconds of a life and a start, roughly: what a load is planned by

RATES = "iops=2500,burst-iops=5000,burst-length=1s,bps-write=8M"
"""What a limited disk may do: some requests wait at each death."""
FAILING = "fail=ENOSPC@write/40*15,fail@read/60*10"
"""What is held, of each life of blkd; it is tried again each second, and by the next life."""


async def drill(
    rounds: int, *, packed: bool = False, holding: bool = False, limited: bool = False
) -> Outcome:
    """Kill `rounds` times; requests are in flight, out of order, at each death.

    With `holding` the image fails some, and blkd holds these; with `limited` most wait for a rate.
    """
    figures = {"kills": 0, "reconnections": 0, "requests": 0, "bytes verified": 0}
    errors = seed = 0
    options = ["--on-enospc", "hold", "--on-error", "hold"] if holding else []
    options += ["--limit", RATES] if limited else []
    with image(SIZE) as path:
        rules = f"{FAILING},{RULES}" if holding else RULES
        async with unreliable(path, "--queues", 2, *options, rules=rules) as server:
            while figures["kills"] < rounds:
                seed += 1
                left = rounds - figures["kills"]
                load = asyncio.ensure_future(
                    blkd(
                        *("bench", server.socket, "--rw", "randrw", "--verify", "--reconnect"),
                        *("--queues", 2, "--iodepth", 32, "--seed", seed),
                        *("--runtime", max(1.0, min(RUN, left * LIFE))),
                        *(["--packed"] if packed else []),
                        limit=10 * RUN,
                    )
                )
                killer = Killer(server, LONGEST_LIFE, seed)
                await killer.run(left, load)
                seen = await load
                figures["kills"] += killer.kills
                figures["reconnections"] += seen["reconnections"]
                figures["requests"] += seen["ios"]
                figures["bytes verified"] += seen["verified_blocks"] * BLOCK
                errors += seen["errors"] + seen["wrong_blocks"]
            if holding:
                figures["times that requests were held"] = server.log().count("requests held")
            if not (holding or limited):  # a load that waits does not come to write the whole disk
                errors += await _look_again(server.socket, seed)
    name = f"restart{' while requests are held' * holding}{', limited' * limited}"
    name += f", {'packed' if packed else 'split'} rings"
    return Outcome(drill=name, rounds=rounds, errors=errors, figures={**figures})


async def _look_again(socket: object, seed: int) -> int:
    """Blocks that are not what the last load left."""
    seen = await blkd("bench", socket, "--verify-only", "--seed", seed)
    if not seen["verified_blocks"]:
        raise BlkdError("the last load left nothing to verify")
    return int(seen["wrong_blocks"])
