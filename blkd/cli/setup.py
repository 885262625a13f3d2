# SPDX-License-Identifier: Apache-2.0
"""`blkd setup`: units, man pages and completion after an installation by pip."""

import sys
from pathlib import Path
from typing import Final

import click

from blkd.cli.completion import SHELLS, script
from blkd.cli.output import json_option, print_result
from blkd.errors import ConfigError
from blkd.installation import install, installed_files, remove, source

PROGRAMS: Final = ("blkd", "vhost-user-blkd")
NEXT: Final = (
    "systemd-sysusers && systemd-tmpfiles --create",
    "systemctl daemon-reload",
    "systemctl enable --now blkd",
)
"""What is left to be done by who may do it."""

directory = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--prefix", type=directory, default=Path("/usr/local"), show_default=True)
@click.option("--root", type=directory, default=Path("/"), help="Install for a system beneath it.")
@click.option("--remove", "is_removal", is_flag=True, help="Remove what was installed.")
@json_option
def setup(prefix: Path, root: Path, *, is_removal: bool, as_json: bool) -> None:
    """Install units, man pages, completion and settings, where blkd was installed by pip.

    Units and settings go to /etc, all else beneath --prefix.  Settings that are there stay as they
    are.  A package of the distribution needs none of this.
    """
    completion = {shell: script(shell) for shell in SHELLS}
    files = list(installed_files(source(), Path("/") / prefix, _programs(), completion))
    try:
        done = list((remove if is_removal else install)(files, root))
    except PermissionError as error:
        raise ConfigError(str(error), hint="run it as root") from error
    except OSError as error:
        raise ConfigError(str(error)) from error
    fields = {"files": [{"file": str(path), "state": str(what)} for path, what in done]}
    print_result(fields, title="setup", as_json=as_json)
    if not is_removal and not as_json:
        click.echo("next:\n" + "\n".join(f"  {line}" for line in NEXT))


def _programs() -> Path:
    """The folder of the programs of this installation, whatever link led here.

    Raises ConfigError.
    """
    folder = Path(sys.argv[0]).resolve().parent
    if not all((folder / name).exists() for name in PROGRAMS):
        raise ConfigError(f"{folder} has not both of {' and '.join(PROGRAMS)}")
    return folder
