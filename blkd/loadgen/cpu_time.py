# SPDX-License-Identifier: Apache-2.0
"""Processor time of ourselves and of another process."""

import os
import time
from typing import Final

from blkd.errors import BenchError

SCHED_CLOCK: Final = 2  # CPUCLOCK_SCHED: nanoseconds as the scheduler counts them
PID_SHIFT: Final = 3  # of a process's clock id, as clock_getcpuclockid(3) makes it


class Processor:
    """The processor time of process `pid`, of threads that have ended too; None: of nobody.

    Its clock counts user and system time of all its threads in ns, io_uring's included.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self.seconds()

    def seconds(self) -> float:
        """What it has used so far, or 0.  Raises BenchError when there is no such process."""
        if self._pid is None:
            return 0.0
        try:
            return time.clock_gettime(~self._pid << PID_SHIFT | SCHED_CLOCK)
        except OSError as error:
            raise BenchError(
                f"no process {self._pid} to measure: {error.strerror}",
                hint="--pid is that of the back end",
            ) from error


def require_cpu(cpu: int) -> None:
    """Raise BenchError unless a thread can be pinned to this CPU."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, OverflowError, ValueError) as error:
        raise BenchError(
            f"no thread can run on CPU {cpu}", hint="nproc tells how many there are, from 0"
        ) from error
    os.sched_setaffinity(0, allowed)
