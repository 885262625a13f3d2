# SPDX-License-Identifier: Apache-2.0
"""`blkd daemon`: many exports, served in the background."""

import os
from pathlib import Path

import click

from blkd.cli.output import json_option, print_result
from blkd.daemon import service
from blkd.daemon.daemon_config import (
    SYSTEM,
    DaemonConfig,
    Directories,
    read_config,
    user_directories,
)
from blkd.errors import ConfigError
from blkd.host import log, signals


def _directories() -> Directories:
    """Where things are if the settings do not say so."""
    if os.geteuid() == 0:
        return SYSTEM
    return user_directories(os.environ, str(Path.home()), os.geteuid())


def _read(config: str | None) -> DaemonConfig:
    """The settings.  Raises ConfigError."""
    directories = _directories()
    path = Path(config or directories.config).absolute()
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        if config is not None:
            raise ConfigError(f"{path} is not there") from error
        content = b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return read_config(content, str(path), directories)


@click.command()
@click.option(
    "--config", metavar="PATH", help="Settings; /etc/blkd/blkd.toml, or the user's, if not given."
)
@json_option
def daemon(*, config: str | None, as_json: bool) -> None:
    """Serve exports that blkd add, start, stop and their like name, over restarts and reboots.

    Runs until SIGTERM or SIGINT.  What is served goes on then, unless on-stop says otherwise, and
    is found again by the next daemon.
    """
    settings = _read(config)
    log.configure(json=as_json)

    def announce(state: object) -> None:
        print_result(state, title="daemon", as_json=as_json)

    service.run(settings, announce)
    signals.exit_now(0)
