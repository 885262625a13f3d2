# SPDX-License-Identifier: Apache-2.0
"""Child processes that a Ctrl-C at the terminal does not reach, and that do not outlive us."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, Process
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
