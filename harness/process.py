# SPDX-License-Identifier: Apache-2.0
"""Child processes: a Ctrl-C at the terminal does not reach them, and they do not outlive us."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Any

DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""Even when we are killed, the kernel then ends the child."""


async def spawn(*words: object, **options: Any) -> Process:
    """Start a program, in a process group of its own and with nothing to read."""
    return await asyncio.create_subprocess_exec(
        *DIE_WITH_US, *map(str, words), stdin=DEVNULL, process_group=0, **options
    )


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal, if it still runs.

    Process.send_signal polls first: that reaps a child which has just ended, and the
    watcher of Python 3.11 then reports a status of 255.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def kill(process: Process) -> None:
    """End it at once, if it still runs; returns when it is gone."""
    send(process, signal.SIGKILL)
    await process.wait()


def worker_sleeps(pid: int) -> int:
    """How often blkd's first worker has gone to sleep.  Raises LookupError without one."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        if status.startswith("Name:\tblkd-io-0\n"):
            return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    raise LookupError("there is no worker")
