# SPDX-License-Identifier: Apache-2.0
"""`blkd completion`, and what shells are told of names."""

from typing import Final

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from blkd.cli.output import json_option, print_result
from blkd.control import addresses
from blkd.control.daemon_client import Daemon
from blkd.control.daemon_models import EXPORTS, GROUPS
from blkd.errors import BlkdError

NAMES_LIMIT: Final = 0.5  # seconds: who has pressed the key waits
VARIABLE: Final = "_BLKD_COMPLETE"  # by which click is asked

SHELLS: Final = ("bash", "zsh", "fish")


def complete_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The exports of the daemon that begin so; none where it does not answer soon."""
    return _complete(ctx, EXPORTS, "exports", incomplete)


def complete_groups(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The groups of the daemon that begin so; likewise."""
    return _complete(ctx, GROUPS, "groups", incomplete)


def _complete(
    ctx: click.Context, place: str, field: str, incomplete: str
) -> list[CompletionItem[str]]:
    path = ctx.params.get("daemon") or addresses.daemon_socket()
    try:
        listed = Daemon(path, NAMES_LIMIT).get(place)[field]
        return [
            CompletionItem(each["name"], help=each.get("state"))
            for each in listed
            if each["name"].startswith(incomplete)
        ]
    except (BlkdError, KeyError, TypeError):
        return []


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
def completion(shell: str, *, as_json: bool) -> None:
    """Print a script by which SHELL completes commands, options and names of exports.

    For bash: put eval "$(blkd completion bash)" into ~/.bashrc.
    """
    text = script(shell)
    if as_json:
        print_result({"shell": shell, "script": text}, title=shell, as_json=True)
    else:
        click.echo(text, nl=False)


def script(shell: str) -> str:
    """What one of `SHELLS` reads, within a command."""
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(click.get_current_context().find_root().command, {}, "blkd", VARIABLE)
    # Its own source() would start a bash to ask its version.
    return ShellComplete.source(made)
