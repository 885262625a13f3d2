# SPDX-License-Identifier: Apache-2.0
"""`blkd upgrade`: a served disk goes on in this process, in the foreground."""

import click

from blkd.cli import serving
from blkd.cli.control import control_option, timeout
from blkd.cli.output import json_option, print_result
from blkd.host import log, signals


@click.command()
@control_option
@json_option
def upgrade(control: str, *, as_json: bool) -> None:
    """Take a served disk over from the process that serves it; the guest goes on.

    Runs in that one's place, with its settings, as blkd serve does.  If anything is amiss,
    that one serves on.
    """
    log.configure(json=as_json)

    def announce(state: object) -> None:
        print_result(state, title="serving", as_json=as_json)

    serving.take_over(control, timeout(), announce)
    signals.exit_now(0)
