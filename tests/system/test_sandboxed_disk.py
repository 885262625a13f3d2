# SPDX-License-Identifier: Apache-2.0
"""A disk of a daemon, in its sandbox, does what comes late in a front end's life all the same.

Memory that is mapped and unmapped, a dirty log, an IOMMU, a fault in memory: what these take of
the kernel is asked for after the system call filter has closed.
"""

import mmap
import os
import re
import struct
from pathlib import Path

import pytest

from harness.dirtylog import DirtyLog
from harness.frontend import IN, OK, FrontEnd
from harness.host import HostDaemon
from harness.iommu import Iommu
from harness.vring import DESC_WRITE, MIB, Region
from tests.system.test_daemon_adoption import SIZE

BLOCK = bytes(range(256)) * 16


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with HostDaemon(tmp_path_factory.mktemp("host")) as started:
        started.ready()
        yield started


@pytest.fixture(params=["direct", "buffered"])
def disk(host, request):
    """A disk in its sandbox, as the daemon shows it."""
    cache = "none" if request.param == "direct" else "writeback"
    shown = host.add("disk", host.image("disk.img", SIZE), cache=cache, poll_us=0)
    assert shown["served"]["sandbox"]["seccomp"]
    assert not shown["served"]["sandbox"]["missing"]
    yield shown
    process = host.call("GET", "/v1/exports/disk")
    host.call("DELETE", "/v1/exports/disk?delete-image=true")
    assert (process["pid"], process["restarts"]) == (shown["pid"], 0), "it has ended in between"


def connected(disk):
    return FrontEnd.connect(disk["sockets"][0])


def mappings(disk):
    """How many memory regions of front ends its process has mapped."""
    maps = Path(f"/proc/{disk['pid']}/maps").read_text("ascii")
    return len(re.findall(r"/memfd:guest", maps))


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_writes_into_memory_are_logged_while_a_guest_is_migrated(disk, packed):
    with connected(disk) as front_end, DirtyLog(front_end) as log:
        driver = front_end.disk(packed=packed)
        assert driver.write(0, BLOCK) == OK
        log.start()
        log.take()
        assert driver.read(0, len(BLOCK)) == (OK, BLOCK)
        assert log.take()
        log.stop()
        assert driver.read(0, len(BLOCK)) == (OK, BLOCK)
        assert not log.take()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_guest_behind_an_iommu_is_served(disk, packed):
    with connected(disk) as front_end:
        iommu = Iommu(front_end)
        front_end.prepare(packed=packed)
        front_end.track_inflight(1)
        with iommu.serving():
            driver = front_end.make_disk(0)
            assert driver.write(0, BLOCK) == OK
            assert driver.read(0, len(BLOCK)) == (OK, BLOCK)
        assert iommu.misses


def test_memory_that_is_gone_ends_its_connection_and_nothing_else(disk):
    with connected(disk) as front_end:
        driver = front_end.disk()
        for region in front_end.memory.regions:
            os.ftruncate(region.fd, 0)
        os.eventfd_write(driver.ring.kick_fd, 1)  # a look at the ring would be our own fault
        assert front_end.wait_closed()
    with connected(disk) as another:
        assert another.disk().read(0, len(BLOCK))[0] == OK


def test_memory_comes_and_goes_while_requests_are_served(disk):
    with connected(disk) as front_end:
        driver = front_end.disk()
        before = mappings(disk)
        for _ in range(8):
            front_end.add_region(front_end.memory.grow(MIB))
            assert driver.write(0, BLOCK) == OK
        assert mappings(disk) == before + 8
        for region in front_end.memory.regions[-8:]:
            front_end.remove_region(region)
            assert driver.read(0, len(BLOCK)) == (OK, BLOCK)
        assert mappings(disk) == before


@pytest.fixture
def huge_page():
    """A region of one huge page, far above all other guest memory."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text("ascii")
    pool.write_text("2")
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    try:
        size = 2 * MIB
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            yield Region(1 << 40, size, 1 << 40, 0, fd, memory)
    finally:
        os.close(fd)
        pool.write_text(before)


def test_memory_in_huge_pages_is_served(disk, huge_page):
    with connected(disk) as front_end:
        driver = front_end.disk()
        assert driver.write(0, BLOCK) == OK
        front_end.add_region(huge_page)
        memory = front_end.memory
        header, status = memory.alloc(16), memory.alloc(1)
        memory.write(header, struct.pack("<IIQ", IN, 0, 0))
        chain = [(header, 16, 0), (huge_page.gpa, len(BLOCK), DESC_WRITE), (status, 1, DESC_WRITE)]
        driver.ring.publish(driver.ring.add(chain))
        driver.ring.notify()
        assert driver.ring.wait_used()
        assert huge_page.memory[: len(BLOCK)] == BLOCK
