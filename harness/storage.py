# SPDX-License-Identifier: Apache-2.0
"""Loop devices and mounts, for tests that run as root."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DISK_BYTES = 400 << 20
"""The smallest that mkfs.xfs takes is 300 MiB."""


def run(*command: object, text: str = "") -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, input=text
    ).stdout.strip()


@contextlib.contextmanager
def loop_device(path: Path, *options: str) -> Iterator[Path]:
    device = run("losetup", "--show", "--find", *options, path)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


def unmount(place: Path, limit: float = 10.0) -> None:
    """Unmount; a process that has just ended may keep it busy until its last I/O is done."""
    deadline = time.monotonic() + limit
    while subprocess.run(["umount", place], check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{place} stays busy"


@contextlib.contextmanager
def mounted(what: Path | str, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir()
    run("mount", *options, what, place)
    try:
        yield place
    finally:
        unmount(place)
