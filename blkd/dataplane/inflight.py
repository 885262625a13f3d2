# SPDX-License-Identifier: Apache-2.0
"""The in-flight region of a front end, mapped for the workers to write."""

import contextlib
import fcntl
import os
import struct
from typing import Final, Self

from blkd import ring
from blkd.dataplane.memory import map_file
from blkd.errors import DataPlaneError, RequestRefused
from blkd.vhost_user.inflight import HEAD, VERSION, Inflight, part_bytes
from blkd.vhost_user.rings import HeldInflight, VringSetup

NOTE: Final = struct.Struct("=8s?7x")
"""Behind the region, where no front end looks: a mark, and whether a driver chose write-through.

QEMU tells a back end of that once, and not the next one after a death.
"""
MARK: Final = b"blkdnote"

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make(region: Inflight) -> int:
    """A sealed file of zeroes for a region: its descriptor.  Raises DataPlaneError."""
    with contextlib.ExitStack() as undo:
        try:
            fd = os.memfd_create("blkd-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, fd)
            os.ftruncate(fd, region.mmap_size + NOTE.size)
            os.pwrite(fd, NOTE.pack(MARK, False), region.mmap_size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            raise DataPlaneError(f"no memory for an in-flight region: {error}") from error
        undo.pop_all()
    return fd


class InflightRegion:
    """A mapped region, which has been found fit to start rings from."""

    def __init__(self, held: HeldInflight, mapping: ring.Mapping) -> None:
        self.held = held
        """What it is; the descriptor is kept for a successor."""
        self._mapping = mapping

    @classmethod
    def adopt(cls, region: Inflight, fd: int, *, packed: bool) -> Self:
        """Map a region from its file, which is taken.  Raises RequestRefused."""
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            mapping = map_file(fd, region.mmap_offset, region.mmap_size, "in-flight region")
            step = part_bytes(region.queue_size, packed=packed)
            for index in range(region.queues):
                _check(index, _head(fd, region.mmap_offset + index * step), region.queue_size)
            undo.pop_all()
        return cls(HeldInflight(region, packed, fd), mapping)

    def close(self) -> None:
        """Close the descriptor; the mapping ends when nothing uses it any more."""
        os.close(self.held.fd)

    @property
    def _end(self) -> int:
        return self.held.region.mmap_offset + self.held.region.mmap_size

    @property
    def notes_write_through(self) -> bool:
        """Whether it is noted that the driver chose write-through."""
        return self._note() == NOTE.pack(MARK, True)

    def note(self, *, write_through: bool) -> None:
        """Note what the driver chose, if the file is one of ours."""
        if self._note().startswith(MARK):
            with contextlib.suppress(OSError):  # whatever a front end has done to its file
                os.pwrite(self.held.fd, NOTE.pack(MARK, write_through), self._end)

    def _note(self) -> bytes:
        try:
            return os.pread(self.held.fd, NOTE.size, self._end)
        except OSError:
            return b""

    def part(self, index: int, setup: VringSetup) -> tuple[int, int]:
        """Where ring `index` is recorded, and its entries.  Raises RequestRefused."""
        region, packed = self.held.region, self.held.packed
        if index >= region.queues or setup.size > region.queue_size or setup.packed != packed:
            kind = "packed" if packed else "split"
            raise RequestRefused(
                f"ring {index} of {setup.size} descriptors, and an in-flight region for"
                f" {region.queues} {kind} rings of {region.queue_size}"
            )
        step = part_bytes(region.queue_size, packed=packed)
        return self._mapping.address + index * step, region.queue_size


def _head(fd: int, at: int) -> bytes:
    try:
        return os.pread(fd, HEAD.size, at)
    except OSError as error:
        raise RequestRefused(f"in-flight region: cannot be read: {error.strerror}") from error


def _check(index: int, head: bytes, queue_size: int) -> None:
    """Raise RequestRefused unless a ring's part is fresh, or written as we write it."""
    if len(head) < HEAD.size:
        raise RequestRefused(f"in-flight region: its file ends before the part of ring {index}")
    features, version, entries = HEAD.unpack(head)
    if version and (version, features, entries) != (VERSION, 0, queue_size):
        raise RequestRefused(
            f"in-flight region of version {version}, features {features:#x}, {entries} entries for"
            f" ring {index}, not version {VERSION}, 0 and {queue_size}"
        )
