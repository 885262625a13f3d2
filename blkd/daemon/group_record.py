# SPDX-License-Identifier: Apache-2.0
"""What a daemon keeps of a group of exports, as a file of TOML that people can read."""

from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import msgspec
import tomli_w

from blkd.control.daemon_models import Limits, Name
from blkd.daemon import toml_text
from blkd.daemon.record import END, HEAD
from blkd.errors import ConfigError

VERSION: Final = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file as it is."""

    version: Literal[1]
    name: Name
    limits: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A group: its members say themselves that they are in it."""

    name: str
    limits: Limits
    """Plain values, as `group_limits` has them."""

    def write(self) -> bytes:
        """The file that says so."""
        content = {"version": VERSION, "name": self.name, "limits": self.limits}
        return (HEAD + tomli_w.dumps(content) + END).encode()

    @classmethod
    def read(cls, content: bytes, where: str, name: str) -> Self:
        """The record of the group `name`, which the file at `where` has.

        Raises ConfigError, with path and line, on one that is torn, foreign or of a later version.
        """
        toml_text.require_end(content, where, END)
        file = toml_text.read(content, where, _File)
        if file.name != name:
            line = toml_text.line_of(content.decode(), "name")
            raise ConfigError(f"{where}:{line}: is the record of {file.name}, not of {name}")
        return cls(file.name, file.limits)
