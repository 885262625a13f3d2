# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of processes and processors."""

import os
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

SCHED_CLOCK: Final = 2  # CPUCLOCK_SCHED: nanoseconds as the scheduler counts them
PID_SHIFT: Final = 3  # of a process's clock id, as clock_getcpuclockid(3) makes it
IDLE_FIELDS: Final = (3, 4)  # "idle" and "iowait" in the first line of /proc/stat, proc(5)
COUNTED_FIELDS: Final = 8  # up to "steal"; guest time is part of user time


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process so far, kernel workers of io_uring included."""
    return time.clock_gettime(~pid << PID_SHIFT | SCHED_CLOCK)


@dataclass(frozen=True, slots=True)
class Switches:
    """Context switches of a process's threads."""

    by_thread: dict[str, int]

    @classmethod
    def of(cls, pid: int) -> Self:
        """As they are now, voluntary or not."""
        return cls(
            {
                task.name: sum(
                    int(n)
                    for n in re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())
                )
                for task in Path(f"/proc/{pid}/task").iterdir()
            }
        )

    def since(self, earlier: "Switches") -> int:
        """How many there were; those of a thread that ended meanwhile are lost."""
        return sum(n - earlier.by_thread.get(task, 0) for task, n in self.by_thread.items())


def resident(pid: int) -> dict[str, int]:
    """Resident memory in KiB, by the names of /proc/PID/status."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.findall(r"^(VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB$", status, re.MULTILINE)
    return {name: int(kib) for name, kib in found}


class Neighbours:
    """How busy others kept the processors since this was made.

    Our own time counts once a process that we started has ended and was waited for.
    """

    def __init__(self) -> None:
        self._busy, self._own = _busy_seconds(), _own_seconds()
        self._began = time.monotonic()

    def processors(self) -> float:
        """1.0 is a whole one; time that the hypervisor took away counts."""
        others = _busy_seconds() - self._busy - (_own_seconds() - self._own)
        return round(max(others / (time.monotonic() - self._began), 0.0), 3)


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1 : COUNTED_FIELDS + 1]
    busy = sum(int(ticks) for n, ticks in enumerate(fields) if n not in IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return _used(resource.RUSAGE_SELF) + ended_seconds()


def ended_seconds() -> float:
    """Processor time of all processes that we started, that have ended and were waited for."""
    return _used(resource.RUSAGE_CHILDREN)


def _used(by: int) -> float:
    usage = resource.getrusage(by)
    return usage.ru_utime + usage.ru_stime
