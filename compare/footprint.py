# SPDX-License-Identifier: Apache-2.0
"""What an export costs when its guest does nothing: wake-ups, processor time, memory."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from blkd.loadgen.conversation import BackEnd, DriverVring
from blkd.loadgen.guest_memory import GUEST_ADDRESS, QueueLayout
from blkd.vhost_user.wire import MemoryRegion
from compare.cases import CLIENT_CPUS, TARGET_CPUS, Plan, Subject
from compare.images import GIB, MIB, sparse
from compare.processor import Switches, cpu_seconds, resident
from compare.results import Footprint
from compare.targets import BLKD, Target, output, serving

QUEUES: Final = 4
RING: Final = 256  # descriptors, as `blkd serve` asks for by default
TIB: Final = 1 << 40
SETTLE: Final = 1.0  # seconds until polling and what a start leaves behind are over
ANSWER_LIMIT: Final = 10.0
WARM_SECONDS: Final = 0.3
WARM_LIMIT: Final = 30.0
US: Final = 1_000_000
VERSION_1: Final = 1 << 32
PROTOCOL_FEATURES: Final = 1 << 30
MQ: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Size:
    """What could make an export larger."""

    image: int
    guest: int
    """Bytes, as the image's."""


SIZES: Final = (Size(GIB, 64 * MIB), Size(TIB, 64 * MIB), Size(GIB, 16 * GIB))


async def footprint(subject: Subject, number: int, size: Size, plan: Plan) -> Footprint:
    """Load an export for a moment, so that it has touched its memory; then watch it idle."""
    with sparse(size.image) as image:
        async with serving(subject, image, cpus=TARGET_CPUS, queues=QUEUES) as target:
            await _warm(target)
            with _front_end(target, size.guest):
                await asyncio.sleep(SETTLE)
                return await _watch(subject, number, size, target.pid, plan.idle_window)


async def _warm(target: Target) -> None:
    load = ("--rw", "randread", "--bs", "4096", "--iodepth", "128", "--queues", QUEUES)
    when = ("--runtime", WARM_SECONDS, "--size", f"{64 * MIB}", "--cpu", CLIENT_CPUS)
    await output(BLKD, "bench", target.socket, *load, *when, "--json", limit=WARM_LIMIT)


@contextlib.contextmanager
def _front_end(target: Target, guest_bytes: int) -> Iterator[None]:
    """A front end with `guest_bytes` of memory, its rings started, and nothing asked for.

    The memory is never touched, and reads as rings without a request.
    """
    with contextlib.ExitStack() as undo:
        memory = os.memfd_create("blkd-bench", os.MFD_CLOEXEC)
        undo.callback(os.close, memory)
        os.truncate(memory, guest_bytes)
        back_end = undo.enter_context(BackEnd.connect(f"{target.socket}", ANSWER_LIMIT))
        back_end.negotiate()
        back_end.accept(back_end.offered & (VERSION_1 | PROTOCOL_FEATURES | MQ))
        region = MemoryRegion(GUEST_ADDRESS, guest_bytes, GUEST_ADDRESS, 0)
        back_end.share(region, memory)
        end = 0
        for index in range(QUEUES):
            layout = QueueLayout.at(end, size=RING, depth=1, parts=1, block_bytes=MIB)
            end = layout.end
            kick, call, error = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3))
            for fd in (kick, call, error):
                undo.callback(os.close, fd)
            back_end.start_ring(index, _ring(layout, kick, call, error))
        yield


def _ring(layout: QueueLayout, kick: int, call: int, error: int) -> DriverVring:
    desc, avail, used = (GUEST_ADDRESS + at for at in (layout.desc, layout.avail, layout.used))
    return DriverVring(RING, desc, avail, used, 0, kick, call, error)


async def _watch(subject: Subject, number: int, size: Size, pid: int, seconds: float) -> Footprint:
    before, used = Switches.of(pid), cpu_seconds(pid)
    await asyncio.sleep(seconds)
    used = cpu_seconds(pid) - used
    after = Switches.of(pid)
    memory = resident(pid)
    return Footprint(
        *(subject.key, number, size.image, size.guest),
        wakeups=round(after.since(before) / seconds, 2),
        cpu_us=round(used * US / seconds, 1),
        threads=len(after.by_thread),
        rss_kib=memory["VmRSS"],
        anon_kib=memory["RssAnon"],
        file_kib=memory["RssFile"],
        shmem_kib=memory["RssShmem"],
    )
