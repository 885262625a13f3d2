# SPDX-License-Identifier: Apache-2.0
"""Loop devices and mounts, for tests that run as root."""

import contextlib
import subprocess
import time
from pathlib import Path

DISK_BYTES = 400 << 20
"""The smallest that mkfs.xfs takes is 300 MiB."""


def run(*command, text=""):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, input=text
    ).stdout.strip()


@contextlib.contextmanager
def loop_device(path, *options):
    device = run("losetup", "--show", "--find", *options, path)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


def unmount(place, limit=10.0):
    """Unmount; a process that has just ended may keep it busy until its last I/O is done."""
    deadline = time.monotonic() + limit
    while subprocess.run(["umount", place], check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{place} stays busy"


@contextlib.contextmanager
def mounted(what, place, *options):
    place.mkdir()
    run("mount", *options, what, place)
    try:
        yield place
    finally:
        unmount(place)
