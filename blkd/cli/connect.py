# SPDX-License-Identifier: Apache-2.0
"""`blkd connect`: what makes each VMM attach what is served."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from blkd.cli import size_arguments
from blkd.cli.export_options import export_option
from blkd.cli.output import json_option, print_result
from blkd.cli.recipes import KINDS, VMMS, Attachment, recipe

ANSWER_LIMIT = 5.0  # seconds for QEMU to print its version


@click.command()
@click.option("--socket", metavar="PATH", required=True, help="The PATH of blkd serve --socket.")
@click.option(
    "--device",
    "kind",
    type=click.Choice(list(KINDS)),
    default="blk",
    show_default=True,
    help="What is served there: by blkd serve, blkd vsock or blkd net.",
)
@click.option(
    "--vmm", type=click.Choice(list(VMMS)), required=True, help="The program that runs the guest."
)
@export_option(
    "queues",
    "Queues, or pairs of them for net: no more than --queues of what serves.",
)
@export_option("queue_size", "Descriptors of a queue: the number of blkd serve --queue-size.")
@click.option(
    "--id",
    "name",
    default="blkd",
    show_default=True,
    help="The VMM's name for the device; each device of a guest needs its own.",
)
@click.option(
    "--target",
    default="vdb",
    show_default=True,
    help="libvirt's name for the disk (vda, vdb, ...); each disk of a guest needs its own.",
)
@click.option(
    "--memory",
    callback=size_arguments.callback,
    default="4G",
    show_default=True,
    help="The memory of the guest, which it shares with blkd.",
)
@json_option
def connect(socket: str, kind: str, vmm: str, *, as_json: bool, **settings: Any) -> None:
    """Print the command or the configuration by which a VMM attaches a served disk or device."""
    device = Attachment(
        **settings,
        socket=str(Path(socket).absolute()),
        qemu=_installed_qemu() if vmm == "qemu" else None,
    )
    result = recipe(vmm, kind, device)
    if as_json:
        print_result(result, title=vmm, as_json=True)
        return
    click.echo(result.text)
    for note in result.notes:  # apart, so that the recipe alone can be piped
        click.echo(f"# {note}", err=not sys.stdout.isatty())


def _installed_qemu() -> tuple[int, int] | None:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return None
    try:
        printed = subprocess.run(  # noqa: S603 - a program of the PATH, as the user would start it
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=ANSWER_LIMIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"version (\d+)\.(\d+)", printed.stdout)
    return (int(version[1]), int(version[2])) if version else None
