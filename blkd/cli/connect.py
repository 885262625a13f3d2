# SPDX-License-Identifier: Apache-2.0
"""`blkd connect`: what makes each VMM attach what is served."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from blkd.cli import size_arguments
from blkd.cli.export_options import export_option
from blkd.cli.output import json_option, print_result
from blkd.cli.recipes import KINDS, VMMS, Attachment, recipe
from blkd.cli.target import daemon_option, name_argument
from blkd.control.daemon_client import Daemon, export_path
from blkd.errors import ConfigError

ANSWER_LIMIT = 5.0  # seconds for QEMU to print its version
SHARED = frozenset({"queues", "queue_size"})
"""Settings of an export that its VMM needs as well."""


@click.command()
@name_argument
@click.option(
    "--socket",
    metavar="PATH",
    help="The PATH of blkd serve --socket, instead of NAME; or which of the sockets of NAME.",
)
@click.option(
    "--device",
    "kind",
    type=click.Choice(list(KINDS)),
    help="What is served there, by blkd serve, blkd vsock or blkd net; blk if not given.",
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
    "identity",
    metavar="TEXT",
    help="The VMM's name for the device; each device of a guest needs its own.  NAME, or blkd, if"
    " not given.",
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
@daemon_option
@json_option
@click.pass_context
def connect(
    ctx: click.Context,
    /,
    *,
    daemon: Daemon,
    name: str | None,
    socket: str | None,
    kind: str | None,
    vmm: str,
    identity: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Print the command or the configuration by which a VMM attaches an export.

    The export is one of the daemon, NAME, or what answers at --socket.
    """
    if name is None and socket is None:
        raise click.UsageError("give the NAME of an export of the daemon, or --socket PATH")
    if name is not None:
        if kind is not None:
            raise click.UsageError(f"the daemon knows what {name} is: --device is for --socket")
        view = daemon.get(export_path(name))
        kind = view["device"]
        socket = _socket_of(view, socket)
        written = {key for key in SHARED if _is_written(ctx, key)}
        settings |= {key: value for key, value in _settings_of(view).items() if key not in written}
    device = Attachment(
        **settings,
        name=identity or _identity(name, vmm),
        socket=str(Path(socket or "").absolute()),
        qemu=_installed_qemu() if vmm == "qemu" else None,
    )
    result = recipe(vmm, kind or "blk", device)
    if as_json:
        print_result(result, title=vmm, as_json=True)
        return
    click.echo(result.text)
    for note in result.notes:  # apart, so that the recipe alone can be piped
        click.echo(f"# {note}", err=not sys.stdout.isatty())


def _socket_of(view: dict[str, Any], wanted: str | None) -> str:
    """The socket of an export of the daemon that is meant.  Raises ConfigError."""
    sockets: list[str] = view["sockets"]
    if wanted is not None:
        wanted = str(Path(wanted).absolute())
    if wanted not in sockets and (wanted is not None or len(sockets) != 1):
        raise ConfigError(
            f"{view['name']} has {len(sockets)} sockets, of which --socket names none",
            hint=f"there are {', '.join(sockets)}" if sockets else None,
        )
    return wanted or sockets[0]


def _settings_of(view: dict[str, Any]) -> dict[str, int]:
    """What a recipe has to know of the settings of an export, where they are no defaults."""
    usual = {"queues": 1} if view["device"] == "net" else {}
    return {key: value for key, value in {**usual, **view["settings"]}.items() if key in SHARED}


def _is_written(ctx: click.Context, field: str) -> bool:
    return ctx.get_parameter_source(field) is ParameterSource.COMMANDLINE


def _identity(name: str | None, vmm: str) -> str:
    """What a VMM is to call the device of an export: its name, as far as the VMM allows."""
    if name is None:
        return "blkd"
    if vmm == "firecracker":
        return re.sub(r"[^A-Za-z0-9_]", "_", name)
    return name if name[0].isalpha() else f"blkd-{name}"


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
