# SPDX-License-Identifier: Apache-2.0
"""The same load from within a Linux guest: fio on the disk that a back end serves."""

import contextlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from compare.cases import CLIENT_CPUS, TARGET_CPUS, Case, Subject
from compare.load import LIMIT, Which, fio_command, fio_sample
from compare.processor import Neighbours, cpu_seconds
from compare.results import Sample
from compare.targets import Target, serving
from harness.guest import Disk, Guest, Machine

CPUS: Final = 1  # of the guest: it has one processor of the host to itself
DISK: Final = "/dev/vda"
ENGINE: Final = "libaio"
RUNTIME: Final = 4.0  # seconds: an emulated guest gets through few requests in one
US: Final = 1_000_000


async def in_guest(
    machine: Machine, subject: Subject, cases: Iterable[Case], number: int, image: str
) -> list[Sample]:
    """Boot a guest on a fresh back end and run each case's load in it.

    Raises MeasurementFailed, GuestError.
    """
    neighbours = Neighbours()
    with on_processor(int(CLIENT_CPUS)):
        async with (
            serving(subject, image, cpus=TARGET_CPUS) as target,
            machine.boot(Disk(target.socket, queues=1), cpus=CPUS) as guest,
        ):
            seen = [await run_load(guest, target, Which(case, subject, number)) for case in cases]
    foreign = neighbours.processors()
    return [msgspec.structs.replace(sample, foreign=foreign) for sample in seen]


async def run_load(
    guest: Guest, target: Target, which: Which, disk: str = DISK, runtime: float = RUNTIME
) -> Sample:
    """What fio sees in the guest; the processor time is the back end's, as on the host."""
    command = shlex.join(fio_command(which.case, ENGINE, disk, runtime, 0))
    used = cpu_seconds(target.pid)
    out = await guest.run(command, limit=runtime + LIMIT)
    used = cpu_seconds(target.pid) - used
    sample = fio_sample(which, json.loads(out[out.index("{") :]), runtime)
    return msgspec.structs.replace(sample, cpu_us=round(used * US / sample.ios, 3))


@contextlib.contextmanager
def on_processor(number: int) -> Iterator[None]:
    """What is started in this context runs on that processor, unless it is pinned elsewhere."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
