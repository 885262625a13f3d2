# SPDX-License-Identifier: Apache-2.0
"""`blkd doctor`: whether this host, and an image, can be used."""

import sys

import click

from blkd.cli.output import json_option, print_result
from blkd.diagnosis import examine


@click.command()
@click.argument("image", required=False)
@json_option
def doctor(image: str | None, *, as_json: bool) -> None:
    """Check whether this host can serve disks, and IMAGE in particular if it is given.

    "no" under "ok" is a problem that keeps blkd from working, and makes the exit status 1;
    "-" is only information.
    """
    checks = examine(image)
    print_result({"checks": checks}, title="host", as_json=as_json)
    if any(check.ok is False for check in checks):
        sys.exit(1)
