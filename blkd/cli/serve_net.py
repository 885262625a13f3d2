# SPDX-License-Identifier: Apache-2.0
"""`blkd net`: a network device in the foreground."""

import functools
from typing import Any

import click

from blkd import hosting
from blkd.cli.export_options import export_options
from blkd.cli.output import json_option, print_result
from blkd.export.net_config import NetConfig
from blkd.export.net_export import net_export
from blkd.host import log, signals


@click.command()
@export_options(NetConfig)
@json_option
def net(*, as_json: bool, **settings: Any) -> None:
    """Make a TAP of this host a network device of a virtual machine.

    Runs until SIGTERM or SIGINT.
    """
    settings["name"] = settings["name"] or settings["tap"] or "net"
    config = NetConfig(**settings)
    if config.socket == config.control:
        raise click.UsageError(f"--socket and --control are both {config.control}")
    log.configure(json=as_json)

    def announce(state: object) -> None:
        print_result(state, title="serving", as_json=as_json)

    hosting.run_devices(config, functools.partial(net_export, config), announce)
    signals.exit_now(0)
