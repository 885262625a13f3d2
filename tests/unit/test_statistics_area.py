# SPDX-License-Identifier: Apache-2.0
"""The statistics area: made, passed on, refused, and read whatever is in it."""

import fcntl
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import AreaRefused
from blkd.statistics import area_layout as at
from blkd.statistics import limits_page
from blkd.statistics.area import SEALS, Area, make_wake
from blkd.statistics.figures import OPERATIONS, SIZE_CLASSES, Cell, decode, encode
from harness.open_fds import open_fds, wait_for_fds

WORD = at.WORD


@pytest.fixture
def area():
    area = Area.make()
    yield area
    area.close()


def put(area, worker, word, *values):
    """Write words of a worker's slot."""
    area.slot(worker)[word * WORD : (word + len(values)) * WORD] = b"".join(
        value.to_bytes(WORD, "little") for value in values
    )


def test_what_one_process_counts_another_one_reads(area):
    area.use_slots(2)
    other = Area(os.dup(area.fd))
    number = OPERATIONS.index("write") * len(SIZE_CLASSES) + SIZE_CLASSES.index("64K")
    cell = (at.HEAD_BYTES + number * at.CELL_BYTES) // WORD
    for worker in range(2):
        put(area, worker, at.COUNTS + number, 3)
        put(area, worker, at.BYTES + number, 3 * 65536)
        put(area, worker, cell + at.SUMS, 30, 40, 50)
        put(area, worker, cell + at.RING, 3)
        put(area, worker, cell + at.THROTTLE + 5, 1)
        put(area, worker, cell + at.DISK + 1, 2)
    figures = other.figures()
    other.close()
    [found] = figures.cells
    assert found == Cell("write", "64K", found.requests)
    assert (found.requests.count, found.requests.bytes) == (6, 6 * 65536)
    assert found.requests.ring.buckets[:2] == (6, 0)
    assert found.requests.disk.buckets[:3] == (2, 4, 0)
    assert found.requests.throttle.buckets[0] == 4  # those that were not throttled
    assert found.requests.throttle.count == 6
    assert figures.weighted_ns == 2 * (30 + 40 + 50)


def test_slot_of_no_worker_is_not_read(area):
    put(area, 0, at.CPU, 7)
    assert area.figures().cpu_ns == 0
    area.use_slots(1)
    assert area.figures().cpu_ns == 7


def test_age_of_the_oldest_is_counted_up_to_now(area):
    area.use_slots(2)
    now = time.monotonic_ns()
    put(area, 0, at.OLDEST, now - 5_000)
    put(area, 1, at.OLDEST, now - 9_000_000)
    assert 9_000_000 <= area.figures().oldest_ns < 9_000_000 + 10**12


def test_export_that_nobody_serves_is_idle(area):
    area.use_slots(1)
    area.note_front_end(True)
    area.note_size(4096)
    put(area, 0, at.IN_FLIGHT, 3, time.monotonic_ns(), 2, 1)
    served, left = area.figures(), area.figures(is_served=False)
    assert (served.in_flight, served.throttled, served.held, served.connected) == (3, 2, 1, True)
    assert (left.in_flight, left.throttled, left.held, left.oldest_ns) == (0, 0, 0, 0)
    assert not left.connected
    assert left.size == served.size == 4096
    assert left.began_ns == served.began_ns > 0


def test_process_that_has_died_leaves_its_counts_and_nothing_in_flight(area):
    area.use_slots(2)
    area.note_front_end(True)
    put(area, 1, at.IN_FLIGHT, 3, time.monotonic_ns(), 2, 1)
    put(area, 1, at.CPU, 7)
    area.note_start()
    found = area.figures()
    assert (found.in_flight, found.throttled, found.held, found.oldest_ns) == (0, 0, 0, 0)
    assert not found.connected
    assert found.cpu_ns == 7


def test_spoiled_layout_is_restored_and_counts_stay(area):
    area.use_slots(1)
    put(area, 0, at.CPU, 7)
    began = area.figures().began_ns
    os.pwrite(area.fd, b"\xff" * (at.LIMITS_AT - at.SLOTS_IN_USE + 8), 0)
    os.pwrite(area.fd, b"\xff" * limits_page.PAGE_BYTES, at.LIMITS_AT)
    with pytest.raises(AreaRefused, match="layout"):
        Area(os.dup(area.fd))
    area.restore_layout()
    area.use_slots(1)
    other = Area(os.dup(area.fd))
    assert (other.figures().cpu_ns, other.figures().began_ns) == (7, began)
    page = limits_page.LimitsPage(other.limits_page)
    assert page.is_known
    assert page.demand(limits_page.Dimension.IOPS_TOTAL) == limits_page.Demand(0, False, 0)
    page.release()
    other.close()


@given(st.binary(min_size=64, max_size=512), st.integers(0, at.SLOT_BYTES - 512))
def test_whatever_a_hostile_process_writes_can_be_read_and_sent(rubbish, place):
    area = Area.make()
    area.slot(0)[place : place + len(rubbish)] = rubbish
    area.slot(63)[: len(rubbish)] = b"\xff" * len(rubbish)
    area.slot(62)[:] = b"\xff" * at.SLOT_BYTES
    area.use_slots(2**64 - 1)
    figures = area.figures()
    area.close()
    assert decode(encode(figures)) == figures


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL])
def test_memory_that_may_shrink_is_refused(seals):
    before = open_fds()
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, at.AREA_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(AreaRefused, match="seals"):
        Area(fd)
    assert open_fds() == before


@pytest.mark.parametrize(
    ("size", "header"),
    [
        pytest.param(at.AREA_BYTES, b"", id="none"),
        pytest.param(at.AREA_BYTES, at.HEADER.pack(at.MAGIC, at.LAYOUT + 1, 0), id="later"),
        pytest.param(at.AREA_BYTES - 4096, at.HEADER.pack(at.MAGIC, at.LAYOUT, 0), id="too-small"),
    ],
)
def test_another_layout_is_refused(size, header):
    before = open_fds()
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, header, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(AreaRefused, match="statistics area of"):
        Area(fd)
    assert open_fds() == before


def test_what_is_no_memory_is_refused(tmp_path):
    before = open_fds()
    with pytest.raises(AreaRefused, match="no memory"):
        Area(os.open(tmp_path, os.O_RDONLY))
    assert wait_for_fds(before)


def test_area_is_there_for_as_long_as_a_worker_has_its_slot():
    area = Area.make()
    slot = area.slot(0)
    area.close()
    area.close()
    slot[0] = 1
    assert slot[0] == 1


@pytest.mark.parametrize("other", ["/dev/null", "/dev/zero", "/proc/self/status"])
def test_what_is_no_eventfd_is_refused(area, other):
    before = open_fds()
    with pytest.raises(AreaRefused, match="what came as an eventfd is none"):
        Area(os.dup(area.fd), os.open(other, os.O_RDONLY))
    wait_for_fds(before)


def test_an_area_has_one_eventfd_at_a_time(area):
    before = open_fds()
    for _ in range(3):
        area.take_wake(make_wake())
    assert open_fds() == before + 1
    area.close()
    assert open_fds() == before - 2  # that of its mapping is another
