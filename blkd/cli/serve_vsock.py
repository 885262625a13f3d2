# SPDX-License-Identifier: Apache-2.0
"""`blkd vsock`: socket devices in the foreground."""

import functools
from typing import Any

import click

from blkd import hosting
from blkd.cli.export_options import export_options
from blkd.cli.output import json_option, print_result
from blkd.export.vsock_config import VsockConfig
from blkd.export.vsock_export import open_vsock
from blkd.host import log, signals


@click.command()
@export_options(VsockConfig)
@json_option
def vsock(*, as_json: bool, **settings: Any) -> None:
    """Give virtual machines sockets to this host and to each other (virtio-vsock).

    Runs until SIGTERM or SIGINT, which end all connections.
    """
    settings["name"] = settings["name"] or "vsock"
    config = VsockConfig(**settings)
    log.configure(json=as_json)

    def announce(state: object) -> None:
        print_result(state, title="serving", as_json=as_json)

    hosting.run_devices(config, functools.partial(open_vsock, config), announce)
    signals.exit_now(0)
