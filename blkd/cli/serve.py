# SPDX-License-Identifier: Apache-2.0
"""`blkd serve`: one export in the foreground."""

from pathlib import Path
from typing import Any

import click

from blkd import hosting
from blkd.cli.export_options import export_options
from blkd.cli.output import json_option, print_result
from blkd.export.config import ExportConfig, name_of
from blkd.host import log, signals


def _are_one(one: str, other: str) -> bool:
    """Whether two paths are of one file, which need not be there."""
    return Path(one).parent.resolve() / Path(one).name == (
        Path(other).parent.resolve() / Path(other).name
    )


@click.command()
@click.argument("image", metavar="IMAGE")
@export_options(ExportConfig)
@json_option
def serve(*, as_json: bool, **settings: Any) -> None:
    """Make IMAGE, a raw image or a block device, a disk of a virtual machine.

    Runs until SIGTERM or SIGINT, which let the requests in flight complete.
    SIGHUP reads the image's size again.
    """
    settings["name"] = settings["name"] or name_of(settings["image"])
    config = ExportConfig(**settings)
    if config.socket and config.control and _are_one(config.socket, config.control):
        raise click.UsageError(f"--socket and --control are both {config.control}")
    log.configure(json=as_json)

    def announce(state: object) -> None:
        print_result(state, title="serving", as_json=as_json)

    hosting.run(config, announce)
    signals.exit_now(0)
