# SPDX-License-Identifier: Apache-2.0
"""`blkd group`: exports of a daemon that share what all of them together may use."""

from typing import Any
from urllib.parse import quote

import click

from blkd.cli.completion import complete_groups
from blkd.cli.output import group_json_option, json_option, print_result
from blkd.cli.target import daemon_option
from blkd.cli.verbs import Verbs
from blkd.control.daemon_client import Daemon
from blkd.control.daemon_models import GROUPS, AddGroup, ChangeGroup
from blkd.daemon.group_limits import read_limits
from blkd.errors import ConfigError

group_name = click.argument("name", shell_complete=complete_groups)
limits_argument = click.argument("limits", nargs=-1, required=True, metavar="LIMIT=VALUE...")


@click.group(cls=Verbs)
@group_json_option
def group() -> None:
    """Have exports share limits: what one does not need, the others may use.

    blkd add --group NAME --weight N puts an export in, blkd set web group=NAME one that there is.
    """


@group.command()
@click.argument("name")
@limits_argument
@daemon_option
@json_option
def add(daemon: Daemon, name: str, limits: tuple[str, ...], *, as_json: bool) -> None:
    """Make a group with limits such as iops=2000 or bps-write=200M, as blkd limit has them.

    Nothing is done where there is one of this name with the same limits.
    """
    wanted = AddGroup(name=name, limits=_read(limits))
    print_result(daemon.call("POST", GROUPS, wanted), title="group", as_json=as_json)


@group.command()
@daemon_option
@json_option
def ls(daemon: Daemon, *, as_json: bool) -> None:
    """List the groups, their limits and their members."""
    answer = daemon.get(GROUPS)
    if not as_json:
        answer = {"groups": [_row(each) for each in answer["groups"]]}
    print_result(answer, title="groups", as_json=as_json)


@group.command()
@group_name
@daemon_option
@json_option
def show(daemon: Daemon, name: str, *, as_json: bool) -> None:
    """Show a group, and what each of its members may use at present."""
    print_result(daemon.get(_path(name)), title="group", as_json=as_json)


@group.command("set")
@group_name
@limits_argument
@daemon_option
@json_option
def set_(daemon: Daemon, name: str, limits: tuple[str, ...], *, as_json: bool) -> None:
    """Change limits of a group, at once; no VALUE takes one away."""
    wanted = ChangeGroup(limits=_read(limits))
    print_result(daemon.call("PATCH", _path(name), wanted), title="group", as_json=as_json)


@group.command()
@group_name
@daemon_option
@json_option
def rm(daemon: Daemon, name: str, *, as_json: bool) -> None:
    """Forget a group that no export is in.

    It is no error if there is none of this name.
    """
    print_result(daemon.call("DELETE", _path(name)), title="removal", as_json=as_json)


def _path(name: str) -> str:
    return f"{GROUPS}/{quote(name, safe='')}"


def _read(words: tuple[str, ...]) -> dict[str, Any]:
    try:
        return read_limits(words)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _row(shown: dict[str, Any]) -> dict[str, Any]:
    """A group as a line of a table."""
    members = [each["export"] for each in shown["members"]]
    return {"name": shown["name"], "limits": shown["limits"], "members": members}
