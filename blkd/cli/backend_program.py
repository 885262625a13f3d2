# SPDX-License-Identifier: Apache-2.0
"""The program `vhost-user-blkd`: blkd as management software starts a back end.

It follows the back-end program conventions of the vhost-user specification.
"""

import sys

from blkd.host import lean, signals, standard_fds

CAPABILITIES = '{"type": "block", "features": ["read-only", "blk-file"]}'


def main() -> None:
    """Run `vhost-user-blkd` with the arguments of this process."""
    standard_fds.keep_standard()
    if "--print-capabilities" in sys.argv[1:]:  # whatever else is said
        sys.stdout.write(CAPABILITIES + "\n")
        return
    signals.hold()
    lean.import_structlog()
    # All else is imported only now, so that no signal comes too early.
    from blkd.cli.backend import run  # noqa: PLC0415

    try:
        run()
    except SystemExit as stop:  # a thread may be stuck in a disk, and Python would wait for it
        signals.exit_as(stop)
