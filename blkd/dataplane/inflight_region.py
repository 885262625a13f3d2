# SPDX-License-Identifier: Apache-2.0
"""The in-flight region of a front end, mapped for the workers to write."""

import collections
import contextlib
import fcntl
import os
import struct
from dataclasses import replace
from typing import Final, Self

from blkd import ring
from blkd.dataplane.shared_files import map_file
from blkd.errors import DataPlaneError, RequestRefused
from blkd.host.fds import close_foreign
from blkd.vhost_user.data_path import InflightFile
from blkd.vhost_user.inflight import HEAD, VERSION, Inflight, part_bytes, part_entries
from blkd.vhost_user.vring_setup import VringSetup

NOTE_BYTES: Final = 8
NOTE: Final = struct.Struct(f"=8s{NOTE_BYTES}s")
"""Behind the region, where no front end looks: a mark, and what the device has to note there.

It is for the back end that comes after a death: there are things that a front end tells only one.
"""
MARK: Final = b"blkdnote"

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


SPARE: Final = 4
"""Files made ahead: when one comes up again, nobody is likely to use it still."""


def make(region: Inflight) -> int:
    """A sealed file of zeroes for a region: its descriptor.  Raises DataPlaneError."""
    with contextlib.ExitStack() as undo:
        try:
            fd = _make_file(region.mmap_size)
            undo.callback(os.close, fd)
            _mark(fd, region)
        except OSError as error:
            raise DataPlaneError(f"no memory for an in-flight region: {error}") from error
        undo.pop_all()
    return fd


class SpareFiles:
    """Files for the regions of one device, made ahead: a sealed process can make none.

    They are used in turn.  Memory made so is in no limit of a process's, so that whoever has
    entered one could take all of the host's.
    """

    def __init__(self, vrings: int, largest: int) -> None:
        """Room for a part for each of so many vrings, of up to `largest` descriptors.

        Raises DataPlaneError.
        """
        self._size = vrings * max(part_bytes(largest, packed=packed) for packed in (False, True))
        self._fds: collections.deque[int] = collections.deque()
        try:
            for _ in range(SPARE):
                self._fds.append(_make_file(self._size))
        except OSError as error:
            self.close()
            raise DataPlaneError(f"no memory for an in-flight region: {error}") from error

    def make(self, region: Inflight) -> int:
        """As the function `make`."""
        if region.mmap_size > self._size:
            raise DataPlaneError(f"an in-flight region of {region.mmap_size} bytes is too large")
        try:
            fd = os.dup(self._fds[0])
        except OSError as error:
            raise DataPlaneError(f"no descriptor for an in-flight region: {error}") from error
        self._fds.rotate()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            try:
                os.pwrite(fd, bytes(region.mmap_size), 0)
                _mark(fd, region)
            except OSError as error:
                raise DataPlaneError(f"no fresh in-flight region: {error}") from error
            undo.pop_all()
        return fd

    def close(self) -> None:
        """Close the descriptors: who has got one has one of its own."""
        while self._fds:
            os.close(self._fds.pop())


def _make_file(size: int) -> int:
    """A file of zeroes for regions of up to `size` bytes, which keeps its length."""
    fd = os.memfd_create("blkd-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size + NOTE.size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def _mark(fd: int, region: Inflight) -> None:
    """Have room for the device's note behind a region."""
    os.pwrite(fd, NOTE.pack(MARK, b""), region.mmap_size)


class InflightRegion:
    """A mapped region.  Rings start from what it says, if blkd can have written that."""

    def __init__(self, file: InflightFile, mapping: ring.Mapping, entries: int) -> None:
        self.file = file
        """Its descriptor is kept for a process that takes the export over."""
        self.entries = entries
        """Of each ring's part; 0 where another kind of back end made the region."""
        self._mapping = mapping

    @classmethod
    def adopt(
        cls, region: Inflight, fd: int, largest: int, *, packed: bool, is_lent: bool = True
    ) -> Self:
        """Map a region from its file, which is taken.

        Args:
            region: Where it lies in the file, and for which rings the front end has it.
            fd: The file.
            largest: Descriptors of the largest ring that is served.
            packed: Whether it is laid out for packed rings.
            is_lent: Whether it is the front end's, and not of our own making.

        Raises:
            RequestRefused: There is no such memory.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, [fd])
            mapping = map_file(fd, region.mmap_offset, region.mmap_size, "in-flight region")
            entries = part_entries(region, largest, packed=packed)
            step = region.mmap_size // region.queues
            heads = (_head(fd, region.mmap_offset + step * n) for n in range(region.queues))
            if not all(_is_ours(head, entries) for head in heads):
                entries = 0
            undo.pop_all()
        if entries:  # as it is laid out: so any version of blkd knows it in a live upgrade
            region = replace(region, queue_size=entries)
        return cls(InflightFile(region, packed, fd, is_lent), mapping, entries)

    def close(self) -> None:
        """Close the descriptor; the mapping ends when nothing uses it any more."""
        close_foreign([self.file.fd])

    @property
    def _end(self) -> int:
        return self.file.region.mmap_offset + self.file.region.mmap_size

    @property
    def note(self) -> bytes | None:
        """The device's note, NOTE_BYTES long; None if the file is none of ours."""
        try:
            mark, note = NOTE.unpack(os.pread(self.file.fd, NOTE.size, self._end))
        except (OSError, struct.error):  # whatever a front end has done to its file
            return None
        return note if mark == MARK else None

    def write_note(self, note: bytes) -> None:
        """Note what the device has to note, if the file is one of ours."""
        if self.note is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self.file.fd, NOTE.pack(MARK, note), self._end)

    def part(self, index: int, setup: VringSetup) -> tuple[int, int] | None:
        """Where ring `index` is recorded, and its entries; None if there is no room for it."""
        region = self.file.region
        fits = index < region.queues and setup.size <= self.entries
        if not fits or setup.packed != self.file.packed:
            return None
        return self._mapping.address + index * (region.mmap_size // region.queues), self.entries

    def __str__(self) -> str:
        """For which rings it has room, in words."""
        region, kind = self.file.region, "packed" if self.file.packed else "split"
        if not self.entries:
            return f"an in-flight region of {region.mmap_size} bytes that blkd cannot have made"
        return f"an in-flight region for {region.queues} {kind} rings of {self.entries} descriptors"


def _head(fd: int, at: int) -> bytes:
    """What a ring's part begins with.  Raises RequestRefused where that cannot be read any more."""
    try:
        head = os.pread(fd, HEAD.size, at)
    except OSError as error:
        raise RequestRefused(f"in-flight region: cannot be read: {error.strerror}") from error
    if len(head) < HEAD.size:
        raise RequestRefused(f"in-flight region: its file ends before {at + HEAD.size:#x}")
    return head


def _is_ours(head: bytes, entries: int) -> bool:
    """Whether a ring's part is fresh, or written as blkd writes one of so many entries."""
    features, version, written = HEAD.unpack(head)
    return version == 0 or (version, features, written) == (VERSION, 0, entries)
