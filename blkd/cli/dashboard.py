# SPDX-License-Identifier: Apache-2.0
"""`blkd dashboard`: where browsers see what all exports do."""

import click

from blkd.cli.output import json_option, print_result
from blkd.cli.target import daemon_option
from blkd.control.daemon_client import Daemon
from blkd.control.daemon_models import DASHBOARD


@click.command()
@daemon_option
@json_option
def dashboard(daemon: Daemon, *, as_json: bool) -> None:
    """Print the address of the daemon's dashboard, by which a browser is logged in.

    It is off unless blkd.toml has a table [dashboard] with listen = "127.0.0.1:9751", or "unix" for
    a socket that ssh forwards.  Who has the address may see all figures, and change nothing.
    """
    print_result(daemon.get(DASHBOARD), title="dashboard", as_json=as_json)
