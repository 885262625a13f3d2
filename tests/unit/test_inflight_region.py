# SPDX-License-Identifier: Apache-2.0
"""An in-flight region's file is the front end's to change at any moment."""

import os

import pytest

from blkd.dataplane import inflight_region
from blkd.dataplane.inflight_region import InflightRegion
from blkd.errors import DataPlaneError, RequestRefused
from blkd.vhost_user.inflight import Inflight, part_bytes


def test_a_file_that_shrinks_while_it_is_adopted_is_refused(monkeypatch):
    size = 2 * part_bytes(128, packed=False)
    fd = os.memfd_create("in-flight")
    os.ftruncate(fd, size)
    map_file = inflight_region.map_file

    def shrunk_meanwhile(*where):
        mapping = map_file(*where)
        os.ftruncate(fd, part_bytes(128, packed=False))
        return mapping

    monkeypatch.setattr(inflight_region, "map_file", shrunk_meanwhile)
    with pytest.raises(RequestRefused, match="its file ends before 0x84c"):
        InflightRegion.adopt(Inflight(size, 0, 2, 128), fd, 1024, packed=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)  # it was taken, and is closed


@pytest.mark.parametrize(
    ("part", "entries"), [(16448, 1024), (2112, 128)], ids=["of now", "of old"]
)
def test_a_region_is_described_to_another_process_as_it_is_laid_out(part, entries):
    """Older versions of blkd take a region over only if its size is that of its rings."""
    fd = os.memfd_create("in-flight")
    os.ftruncate(fd, 2 * part)
    region = InflightRegion.adopt(Inflight(2 * part, 0, 2, 128), fd, 1024, packed=False)
    assert region.file.region == Inflight(2 * part, 0, 2, entries)
    region.close()


def test_files_made_ahead_are_fresh_and_keep_their_length():
    spare = inflight_region.SpareFiles(2, 128)
    wanted = Inflight(2 * part_bytes(128, packed=False), 0, 2, 128)
    files = set()
    for _ in range(2 * inflight_region.SPARE):
        fd = spare.make(wanted)
        assert os.pread(fd, wanted.mmap_size, 0) == bytes(wanted.mmap_size)
        os.pwrite(fd, b"x" * 100, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1 << 20)
        files.add(os.fstat(fd).st_ino)
        os.close(fd)
    assert len(files) == inflight_region.SPARE
    with pytest.raises(DataPlaneError, match="too large"):
        spare.make(Inflight(1 << 20, 0, 2, 128))
    spare.close()
