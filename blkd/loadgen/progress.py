# SPDX-License-Identifier: Apache-2.0
"""One line on the terminal that says how far a run is."""

import contextlib
from collections.abc import Callable, Iterator

from blkd.loadgen.phases import Progress


def describe(progress: Progress, before: Progress | None) -> str:
    """A line for a person: the phase, how far it is, and the rate since `before`."""
    if before is None or before.phase != progress.phase:
        rate = progress.done / progress.seconds if progress.seconds else 0.0
    else:
        passed = progress.seconds - before.seconds
        rate = (progress.done - before.done) / passed if passed else 0.0
    if progress.of_seconds:
        far = f"{min(progress.seconds, progress.of_seconds):.0f} of {progress.of_seconds:g} s"
    elif progress.total:
        far = f"{100 * progress.done / progress.total:.0f} %"
    else:
        far = f"{progress.seconds:.0f} s"
    return f"{progress.phase}: {far}, {progress.done} requests, {rate:.0f}/s"


@contextlib.contextmanager
def line() -> Iterator[Callable[[Progress], None]]:
    """A line on standard error that shows the latest progress, and is cleared in the end."""
    from rich.console import Console  # noqa: PLC0415 - slow, and only a terminal needs it

    before: Progress | None = None
    with Console(stderr=True).status("connecting") as status:

        def show(progress: Progress) -> None:
            nonlocal before
            status.update(describe(progress, before))
            before = progress

        yield show
