# SPDX-License-Identifier: Apache-2.0
"""Prints the tables in docs/commands.md: a command's options, from the settings it serves by.

python -m blkd.cli.options_document COMMAND, or without one for the table of all commands
"""

import sys

import click
from msgspec import inspect

from blkd.cli.export_options import served_settings
from blkd.cli.group import COMMANDS, blkd
from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.net_config import NetConfig
from blkd.export.option import Setting
from blkd.export.vsock_config import VsockConfig

MODELS: dict[str, type[EndpointConfig]] = {
    "serve": ExportConfig,
    "net": NetConfig,
    "vsock": VsockConfig,
}
"""The settings of each command that serves."""

COMMANDS_HEAD = """\
| Command | Does |
| --- | --- |
"""
HEAD = """\
| Option | Values | Default | Means |
| --- | --- | --- | --- |
"""


def values(setting: Setting) -> str:
    """What may be written behind the option; empty for a switch."""
    if setting.option.metavar is not None:
        return setting.option.metavar
    match setting.type:
        case inspect.BoolType():
            return ""
        case inspect.IntType(ge=least, le=most):
            return f"{least} to {most}"
        case inspect.LiteralType(values=words):
            return ", ".join(f"`{word}`" for word in words)
        case _:
            return "TEXT"


def row(setting: Setting) -> str:
    """The line of one option."""
    default = setting.default_text
    shown = f"`{default}`" if default is not None else ""
    cells = (f"`{setting.flag}`", values(setting), shown, " ".join(setting.option.text.split()))
    return "".join(f"| {cell} " for cell in cells) + "|\n"


def table(command: str) -> str:
    """All options of a command that serves, as Markdown."""
    return HEAD + "".join(map(row, served_settings(MODELS[command])))


def commands() -> str:
    """All commands, as Markdown."""
    context = click.Context(blkd, info_name="blkd")
    rows = []
    for name, (_, text) in COMMANDS.items():
        command = blkd.get_command(context, name)
        assert command is not None
        arguments = [each.make_metavar(context) for each in _arguments(command)]
        usage = " ".join(["blkd", name, *arguments]).replace("|", "\\|")
        rows.append(f"| `{usage}` | {text} |\n")
    return COMMANDS_HEAD + "".join(rows)


def _arguments(command: click.Command) -> list[click.Parameter]:
    return [each for each in command.params if isinstance(each, click.Argument)]


if __name__ == "__main__":
    sys.stdout.write(table(sys.argv[1]) if sys.argv[1:] else commands())
