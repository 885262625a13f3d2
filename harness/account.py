# SPDX-License-Identifier: Apache-2.0
"""What an emulated guest and its host are at: the facts to keep when a test beside one has failed.

A guest that stands still because its host had no time for it, one whose QEMU missed an interrupt
and one whose disk does not answer look alike from within a test.  Here they differ: by the time
that others took from this host, by the threads of QEMU that ran, by processors that halt.
"""

import asyncio
import os
import re
from pathlib import Path

from harness.qmp import Qmp, QmpError

WATCHED = 1.0  # seconds for which threads are watched
ANSWER_LIMIT = 3.0  # seconds for QEMU to answer
STEAL = 8
"""The column of /proc/stat with the time that the host's own host gave to others."""


def stolen() -> float:
    """Seconds of a processor that this host did not get, since its boot."""
    fields = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()
    return int(fields[STEAL]) / os.sysconf("SC_CLK_TCK")


async def account(pid: int, qmp: Qmp, stolen_before: float) -> str:
    """Some lines on QEMU's process, the guest's processors and this host; takes a second or so."""
    before = _thread_times(pid)
    await asyncio.sleep(WATCHED)
    after = _thread_times(pid)
    ran = " ".join(f"{tid}:{after[tid] - before.get(tid, 0.0):.2f}" for tid in after)
    return "\n".join(
        (
            f"host: load {_load()}; {stolen() - stolen_before:.1f} s stolen since QEMU's start",
            f"QEMU's threads ran in {WATCHED} s, each so many seconds: {ran or 'it is gone'}",
            await _processors(qmp),
        )
    )


def _load() -> str:
    return Path("/proc/loadavg").read_text("ascii").strip()


def _thread_times(pid: int) -> dict[str, float]:
    """Seconds of a processor that each thread has had; none of a process that is gone."""
    times = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            fields = stat.read_text("ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        times[stat.parent.name] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return times


async def _processors(qmp: Qmp) -> str:
    """Where each of the guest's processors is, and whether it halts."""
    try:
        state = await qmp.execute("query-status", limit=ANSWER_LIMIT)
        registers = await qmp.execute(
            "human-monitor-command", limit=ANSWER_LIMIT, command_line="info registers -a"
        )
    except QmpError as error:
        return f"QEMU does not say what it does: {error}"
    found = re.findall(r"^[ER]IP=.*$", registers, re.MULTILINE)
    return "\n".join((f"QEMU says: {state['status']}", *found))
