# SPDX-License-Identifier: Apache-2.0
"""What a daemon keeps of an export, as a file of TOML that people can read.

What a guest may see of a disk is pinned: what the settings leave open, and what was a default when
the export was added, stays as it was then, whatever a later version of blkd would make of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import tomli_w
from msgspec import Meta

from blkd.control.daemon_models import TAKEN_NAMES, Device, Name, Settings, Wanted
from blkd.daemon import toml_text
from blkd.errors import ConfigError

VERSION: Final = 1
LATEST: Final = "latest"

OWN_USERS: Final = range(2_000_000_000, 2_147_000_000)
"""Numbers of users that are each an export's own: beyond those of systemd and of containers, up to
where programs take them for negative ones."""

PINNED: Final[Mapping[Device, tuple[str, ...]]] = MappingProxyType(
    {
        "blk": (
            "features_as",
            "serial",
            "logical_block_size",
            "queues",
            "queue_size",
            "cache",
            "discard",
            "max_discard_segments",
        ),
        "net": ("queues", "control_queue"),
        "vsock": (),
    }
)
"""Settings by which a guest sees a device differently."""

HEAD: Final = "# Kept by blkd daemon, which must not run while this is edited.\n"
END: Final = "# end\n"
"""The last line, without which a file is torn."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file as it is."""

    version: Literal[1]
    name: Name
    device: Device
    wanted: Wanted
    user: Annotated[int, Meta(gt=0, lt=2**32 - 1)] | None = None
    pending: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    pinned: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """An export: what it is, and whether it is to be served."""

    name: str
    device: Device
    wanted: Wanted
    settings: Settings
    """Plain values, without those that are the default: see `plain_settings`."""
    pinned: Settings
    """What is served where `settings` leave it open."""
    user: int | None = None
    """The number of the user whose process it is, if that is the export's own."""
    pending: tuple[str, ...] = ()
    """Settings that were changed since the process that serves it was started."""

    @property
    def effective(self) -> Settings:
        """What a process of the export is started with."""
        return self.pinned | self.settings

    def change(self, settings: Settings, given: Settings) -> Self:
        """With other `settings`, in which those of `given` are what a caller wants.

        What of them a guest sees is pinned as given, also where that is the default by now; None
        leaves it open until the next start.
        """
        wanted = {key: given[key] for key in PINNED[self.device] if given.get(key) is not None}
        kept = {key: value for key, value in self.pinned.items() if key not in given}
        return replace(self, settings=settings, pinned=kept | wanted)

    def pin(self, seen: Mapping[str, Any]) -> Self:
        """Pin what is still open, by the values that a served export was seen to have."""
        names = PINNED[self.device]
        found = {name: seen[name] for name in names if seen.get(name) is not None}
        return replace(self, pinned=found | self.pinned)

    def unpin(self) -> Self:
        """Pin anew at the next start, by the newest that blkd has then.

        The serial stays: it is no feature, and the name by which a guest knows the disk.
        """
        kept = {name: value for name, value in self.pinned.items() if name == "serial"}
        return replace(self, pinned=kept)

    def write(self) -> bytes:
        """The file that says so."""
        content = {
            "version": VERSION,
            "name": self.name,
            "device": self.device,
            "wanted": self.wanted,
            **({} if self.user is None else {"user": self.user}),
            **({"pending": list(self.pending)} if self.pending else {}),
            "settings": self.settings,
            "pinned": self.pinned,
        }
        return (HEAD + tomli_w.dumps(content) + END).encode()

    @classmethod
    def read(cls, content: bytes, where: str, name: str) -> Self:
        """The record of the export `name`, which the file at `where` has.

        Raises ConfigError, with path and line, on one that is torn, foreign or of a later version.
        """
        toml_text.require_end(content, where, END)
        file = toml_text.read(content, where, _File)
        if file.name != name:
            line = toml_text.line_of(content.decode(), "name")
            raise ConfigError(f"{where}:{line}: is the record of {file.name}, not of {name}")
        if name in TAKEN_NAMES:
            line = toml_text.line_of(content.decode(), "name")
            raise ConfigError(f"{where}:{line}: {name!r} is a name that the daemon needs itself")
        fields = {key: getattr(file, key) for key in _File.__struct_fields__ if key != "version"}
        return cls(**fields)


def overlaid(settings: Settings, given: Settings) -> Settings:
    """The settings with those of `given` in their places; None takes one away."""
    both = settings | given
    return {key: value for key, value in both.items() if key not in given or value is not None}
