# SPDX-License-Identifier: Apache-2.0
"""The program `blkd`."""

import signal
import sys

from blkd.host import lean, signals, standard_fds

SERVING = frozenset({"serve", "net", "vsock", "daemon"})


def main() -> None:
    """Run `blkd` with the arguments of this process."""
    standard_fds.keep_standard()
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    serves = command in SERVING or (command == "upgrade" and _takes_over(sys.argv))
    if serves:
        signals.hold()
        lean.import_structlog()
    else:  # what is half done is undone
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # All else is imported only now, so that no signal comes too early.
    from blkd.cli.group import blkd  # noqa: PLC0415

    try:
        blkd()
    except SystemExit as stop:
        if serves:  # a thread may be stuck in a disk, and Python would wait for it
            signals.exit_as(stop)
        raise


def _takes_over(words: list[str]) -> bool:
    """Whether a `blkd upgrade` of these words serves in this process."""
    return any(word.partition("=")[0] == "--control" for word in words)
