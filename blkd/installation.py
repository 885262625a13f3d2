# SPDX-License-Identifier: Apache-2.0
"""What a host has of blkd besides its programs: units, man pages, completion, settings.

A package of the distribution brings these itself; after an installation by pip `blkd setup` puts
them where systemd, man, the shells and libvirt look for them.
"""

import os
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import blkd
from blkd.errors import ConfigError

PACKAGED_PROGRAMS: Final = b"/usr/bin/"
"""Where units and descriptors say that programs are."""
SHARE: Final = "share/blkd"
"""Where an installation keeps its sources of these files, beneath its prefix."""
COMPLETION: Final = {
    "bash": "share/bash-completion/completions/blkd",
    "zsh": "share/zsh/site-functions/_blkd",
    "fish": "share/fish/vendor_completions.d/blkd.fish",
}
"""Beneath a prefix, the place of a shell's script."""
FOLDERS: Final = {
    "systemd": "/etc/systemd/system",
    "sysusers.d": "/etc/sysusers.d",
    "tmpfiles.d": "/etc/tmpfiles.d",
    "vhost-user": "/etc/qemu/vhost-user",
    "man": "share/man/man1",
    "bpftrace": "share/doc/blkd/bpftrace",
    "grafana": "share/doc/blkd/grafana",
    "prometheus": "share/doc/blkd/prometheus",
}
"""Where the files of each folder go: beneath the prefix unless absolute."""
SETTINGS: Final = {"config": "/etc/blkd"}
"""Likewise, of those that belong to who operates the host once they are there."""


class Done(StrEnum):
    """What has become of a file."""

    INSTALLED = "installed"
    REPLACED = "replaced"
    UNCHANGED = "there already"
    REMOVED = "removed"
    KEPT = "kept: not as it was installed"
    ABSENT = "not there"


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file, and where it belongs."""

    path: Path
    """Absolute."""
    content: bytes
    is_setting: bool = False
    """Is not written over."""


def source() -> Path:
    """The folder of what is installed.  Raises ConfigError: this installation has none."""
    checkout = Path(blkd.__file__).parents[1] / "packaging"
    for folder in (checkout, Path(sysconfig.get_path("data"), SHARE)):
        if (folder / "systemd" / "blkd.service").exists():
            return folder
    raise ConfigError(
        f"{SHARE} is not there", hint="units and man pages come with the wheel: install that"
    )


def installed_files(
    folder: Path, prefix: Path, programs: Path, completion: Mapping[str, str]
) -> Iterator[InstalledFile]:
    """All files of a `source()`; `completion` has the script of each shell by its name.

    `programs` is where blkd and vhost-user-blkd are: units and descriptors have to say so.
    """
    for name, place in (FOLDERS | SETTINGS).items():
        for file in sorted((folder / name).glob("*")):
            content = file.read_bytes().replace(PACKAGED_PROGRAMS, b"%s/" % bytes(programs))
            yield InstalledFile(prefix / place / file.name, content, name in SETTINGS)
    for shell, place in COMPLETION.items():
        yield InstalledFile(prefix / place, completion[shell].encode())


def install(files: Sequence[InstalledFile], root: Path) -> Iterator[tuple[Path, Done]]:
    """Put files where they belong beneath `root`.  Raises OSError."""
    for file in files:
        place = _beneath(root, file.path)
        found = _content(place)
        if found == file.content:
            done = Done.UNCHANGED
        elif found is not None and file.is_setting:
            done = Done.KEPT
        else:
            done = Done.INSTALLED if found is None else Done.REPLACED
            _write(place, file.content)
        yield file.path, done


def remove(files: Sequence[InstalledFile], root: Path) -> Iterator[tuple[Path, Done]]:
    """Remove what is there as it was installed.  Raises OSError."""
    for file in files:
        place = _beneath(root, file.path)
        found = _content(place)
        if found == file.content:
            place.unlink()
        yield file.path, _removed(found, file.content)


def _removed(found: bytes | None, content: bytes) -> Done:
    if found is None:
        return Done.ABSENT
    return Done.REMOVED if found == content else Done.KEPT


def _beneath(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _content(path: Path) -> bytes | None:
    """None where there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, content: bytes) -> None:
    """A whole file or none, that all may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        Path(new).replace(path)
    except OSError:
        Path(new).unlink()
        raise
