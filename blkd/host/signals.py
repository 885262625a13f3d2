# SPDX-License-Identifier: Apache-2.0
"""Signals of a serving process: blocked in every thread from its first line to its last.

Python resets its signal handlers while it shuts down, and a handler that comes late misses
what came early.  A blocked signal has neither problem: a thread fetches it, keeps it until
`forward` says who wants it, and ends the process in time if nobody does.  The data path's threads
inherit the mask, so no signal ever interrupts them.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

END_LIMIT: Final = 5.0
"""Seconds after SIGTERM or SIGINT within which the process is gone, whatever hangs."""
AGAIN_LIMIT: Final = 1.0  # ... after the second of them
FLUSH_LIMIT: Final = 0.5  # seconds that the last output may take

_lock: Final = threading.Lock()
_early: list[int] = []  # those that came before somebody wanted them
_deliver: Callable[[int], object] | None = None
_fetching = False


def hold() -> None:
    """Block the signals, for a thread to fetch them; to be called before any other is started.

    From now on the process keeps the deadline that SIGTERM and SIGINT set, whatever it is about.
    """
    global _fetching  # noqa: PLW0603 - there is one process, and one thread for its signals
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if not _fetching:
        _fetching = True
        # A daemon: it waits for ever, and the process leaves without it.
        threading.Thread(target=_fetch, name="blkd-signals", daemon=True).start()


def forward(deliver: Callable[[int], object]) -> None:
    """Call `deliver` with each signal, held ones first, on another thread."""
    global _deliver  # noqa: PLW0603
    hold()
    with _lock:
        _deliver = deliver
        for number in _early:
            deliver(number)
        _early.clear()


def end() -> None:
    """End this process in good order, as SIGTERM does."""
    os.kill(os.getpid(), signal.SIGTERM)


def exit_now(status: int) -> NoReturn:
    """End this process now, whatever its threads still wait for; logs are flushed."""
    with contextlib.suppress(RuntimeError):  # no thread is to be had
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(FLUSH_LIMIT)
    os._exit(status)


def exit_as(stop: SystemExit) -> NoReturn:
    """End the process as Python would at `stop`, but wait for no thread."""
    if isinstance(stop.code, int) or stop.code is None:
        exit_now(stop.code or 0)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{stop.code}\n")
    exit_now(1)


def _flush() -> None:
    # Imported by now, but by commands that log nothing.
    if (log := sys.modules.get("blkd.host.log")) is not None:
        log.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # gone, or closed
            stream.flush()


def _fetch() -> None:
    """Pass signals on; keep the deadline, for which neither the event loop nor a disk is needed."""
    deadline = math.inf
    while True:
        number = _next(deadline)
        if number is None:
            exit_now(0)
        if number != signal.SIGHUP:
            limit = END_LIMIT if deadline == math.inf else AGAIN_LIMIT
            deadline = min(deadline, time.monotonic() + limit)
        with _lock:
            if _deliver is None:
                _early.append(number)
                continue
            with contextlib.suppress(RuntimeError):  # the event loop behind it is closed
                _deliver(number)


def _next(deadline: float) -> int | None:
    """The next signal, or None at the deadline."""
    if deadline == math.inf:
        return signal.sigwait(SIGNALS)
    came = signal.sigtimedwait(SIGNALS, max(0.0, deadline - time.monotonic()))
    return None if came is None else came.si_signo
