# SPDX-License-Identifier: Apache-2.0
"""Prints the table of a command's options in docs/commands.md, from the settings it serves by.

python -m blkd.cli.options_document COMMAND
"""

import sys

from msgspec import inspect

from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.net_config import NetConfig
from blkd.export.option import Setting, settings_of
from blkd.export.vsock_config import VsockConfig

MODELS: dict[str, type[EndpointConfig]] = {
    "serve": ExportConfig,
    "net": NetConfig,
    "vsock": VsockConfig,
}
"""The settings of each command that serves."""

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
    return HEAD + "".join(map(row, settings_of(MODELS[command])))


if __name__ == "__main__":
    sys.stdout.write(table(sys.argv[1]))
