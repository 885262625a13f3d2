# SPDX-License-Identifier: Apache-2.0
"""`blkd doctor`: what this host has and lacks."""

import sys

import click

from blkd.cli.output import json_option, print_result
from blkd.diagnosis import examine


@click.command()
@click.argument("image", required=False)
@json_option
def doctor(image: str | None, *, as_json: bool) -> None:
    """Tell whether this host can serve disks, and IMAGE if one is given.

    The exit status is 1 if something is missing.
    """
    checks = examine(image)
    print_result({"checks": checks}, title="host", as_json=as_json)
    if any(check.ok is False for check in checks):
        sys.exit(1)
