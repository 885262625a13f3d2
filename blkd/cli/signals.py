# SPDX-License-Identifier: Apache-2.0
"""Signals of a serving process: blocked in every thread from its first line to its last.

Python resets its signal handlers while it shuts down, and a handler that comes late misses
what came early.  A blocked signal has neither problem: it waits until `forward` fetches it,
or is forgotten with the process.  The data path's threads inherit the mask, so no signal
ever interrupts them.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def hold() -> None:
    """Block the signals; to be called before any thread is started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def forward(deliver: Callable[[int], object]) -> None:
    """Call `deliver` with each signal, held ones first, on a thread of its own."""
    threading.Thread(
        target=_fetch,
        args=(deliver,),
        name="blkd-signals",
        daemon=True,  # it waits for ever, and the process leaves without it
    ).start()


def end() -> None:
    """End this process in good order, as SIGTERM does."""
    os.kill(os.getpid(), signal.SIGTERM)


def leave(status: int) -> NoReturn:
    """End the process now: whatever a thread still waits for, nobody waits for the thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # gone, or closed
            stream.flush()
    os._exit(status)


def _fetch(deliver: Callable[[int], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop behind it is closed
        while True:
            deliver(signal.sigwait(SIGNALS))
