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

NOTE: Final = struct.Struct("=8sB7x")
"""Behind the region, where no front end looks: a mark, and the disk's `writeback` field.

QEMU tells a back end of a driver's choice once, and not the next one after a death.
"""
NOTED: Final = b"blkdnote"

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make(region: Inflight) -> int:
    """A sealed file of zeroes for a region: its descriptor.  Raises DataPlaneError."""
    with contextlib.ExitStack() as undo:
        try:
            fd = os.memfd_create("blkd-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, fd)
            os.ftruncate(fd, region.mmap_size + NOTE.size)
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
                head = os.pread(fd, HEAD.size, region.mmap_offset + index * step)
                _check(index, head, region.queue_size)
            undo.pop_all()
        return cls(HeldInflight(region, packed, fd), mapping)

    def close(self) -> None:
        """Close the descriptor; the mapping ends when nothing uses it any more."""
        os.close(self.held.fd)

    @property
    def _end(self) -> int:
        return self.held.region.mmap_offset + self.held.region.mmap_size

    @property
    def writeback(self) -> bool | None:
        """The `writeback` field as it was last noted; None where it never was."""
        note = os.pread(self.held.fd, NOTE.size, self._end)
        if not note.startswith(NOTED) or len(note) < NOTE.size:
            return None
        return bool(NOTE.unpack(note)[1])

    def note(self, *, writeback: bool) -> None:
        """Note the `writeback` field, if the file is one of ours with room for it."""
        if os.fstat(self.held.fd).st_size >= self._end + NOTE.size:
            os.pwrite(self.held.fd, NOTE.pack(NOTED, writeback), self._end)

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
