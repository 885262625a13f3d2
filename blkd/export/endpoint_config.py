# SPDX-License-Identifier: Apache-2.0
"""The settings of whatever is served at a socket; each kind of device adds its own.

A setting is one field.  Its type, limits, default, text and spelling stand there and nowhere
else: `cli/export_options.py` makes the option of the command from the field, and
`cli/options_document.py` the line in docs/commands.md.  The options are in the order of the
fields, those that must be given first.
"""

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from blkd.errors import ConfigError
from blkd.export.option import Option, settings_of

MAX_MODE: Final = 0o777


def octal_mode(text: str) -> int:
    """The permissions that `text` has in octal.  Raises ConfigError if it has none."""
    if re.fullmatch("0?[0-7]{3}", text) is None:
        raise ConfigError(f"{text!r} is no mode in octal; write 0660 for owner and group")
    return int(text, 8)


Mode = Annotated[int, Meta(ge=0, le=MAX_MODE)]
"""Permissions of a socket's file."""


class EndpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is common to all that is served: its name, and who may connect."""

    name: Annotated[str, Option("What to call it; if not given, as what stands behind it.")]
    control: Annotated[
        str | None, Option("Answer the control API on this socket.", metavar="PATH")
    ] = None
    socket_group: Annotated[
        str | None, Option("The group of --socket, such as kvm.", metavar="GROUP")
    ] = None
    """Name or number; None leaves it to the kernel."""
    socket_mode: Annotated[
        Mode,
        Option(
            "Who may connect to --socket, in octal.",
            metavar="MODE",
            read=octal_mode,
            write="{:04o}".format,
        ),
    ] = 0o660  # the VMM's group may connect, nobody else
    control_group: Annotated[str | None, Option("The group of --control.", metavar="GROUP")] = None
    control_mode: Annotated[
        Mode,
        Option(
            "Who may connect to --control, and so end what is served.",
            metavar="MODE",
            read=octal_mode,
            write="{:04o}".format,
        ),
    ] = 0o600  # the API can end it: for its owner only

    def __post_init__(self) -> None:
        """Raise ConfigError on what the fields' types cannot refuse."""
        for field in reversed(self.__struct_fields__):  # what a name is made of before the name
            _require_utf8(field, getattr(self, field))
        for setting in settings_of(type(self)):
            setting.check(getattr(self, setting.field))


def _require_utf8(field: str, value: object) -> None:
    """Raise ConfigError if `value` is a text with bytes of the command line that are no UTF-8."""
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the {field} {value!a} is no UTF-8",
            hint="a file with such a name can be served through a symbolic link with another",
        ) from error
