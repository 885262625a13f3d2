# SPDX-License-Identifier: Apache-2.0
"""A disk behind an IOMMU, through a whole blkd: translations that come, go, lack and lie."""

import os
import random
import signal

import pytest

from harness.daemon import Taker, image
from harness.dirtylog import DirtyLog, areas, pages
from harness.disk import Disk
from harness.frontend import IN, IOERR, OK, OUT, FrontEnd, Request
from harness.iommu import BOTH, EVERYTHING, OFFSET, PAGE, READ, WRITE, Iommu, Kind
from harness.paged_driver import UNANSWERED, PagedDriver
from harness.vring import MIB, GuestMemory
from tests.hostile_chains import EITHER_LAYOUT

SIZE = 16 * MIB
END = 1 << 64
SOON = 0.2  # seconds in which nothing may come
SLOW = "delay=1000s@any+0-64K"  # what touches the first 16 blocks is never done in a test's time
LATE = "delay=500ms@any+0-64K"


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "disk.img", SIZE)


# Carrying data


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("inflight", [True, False], ids=["recorded", "unrecorded"])
def test_data_is_carried_by_translations_alone(front_end, path, packed, indirect, inflight):
    iommu = Iommu(front_end)
    front_end.prepare(packed=packed)
    if inflight:
        front_end.track_inflight(2)
    with iommu.serving():
        disks = [front_end.make_disk(index) for index in range(2)]
        chance = random.Random(1)
        for turn in range(10):
            for disk in disks:
                disk.indirect = indirect
                sectors = chance.sample(range(0, SIZE // 512, 64), 12)
                blocks = {
                    sector: os.urandom(chance.choice([512, 4096, 32768])) for sector in sectors
                }
                heads = [disk.submit(OUT, sector, data) for sector, data in blocks.items()]
                assert [done.status for done in disk.wait(*heads)] == [OK] * 12
                heads = [disk.submit(IN, at, size=len(data)) for at, data in blocks.items()]
                assert [done.data for done in disk.wait(*heads)] == list(blocks.values()), turn
    assert iommu.misses
    assert path.stat().st_size == SIZE


def test_what_is_translated_is_not_asked_for_again(front_end, packed):
    iommu = PagedDriver.prepare(front_end, packed=packed)
    with iommu.serving():
        disk = front_end.make_disk()
        for turn in range(20):
            if turn == 10:
                known = len(iommu.misses)
            heads = [disk.submit(OUT, n * 8, bytes(PAGE)) for n in range(20)]
            assert all(done.status == OK for done in disk.wait(*heads))
        assert len(iommu.misses) == known


def test_neighbours_in_large_and_small_pieces_are_one_buffer(front_end, path, packed):
    """A buffer whose pages lie in the opposite order in guest memory, and in two sizes."""
    host = PagedDriver.start(front_end, packed=packed)
    gpas = [host.page(bytes([n]) * PAGE) for n in range(16)]
    for n, gpa in enumerate(reversed(gpas)):
        host.iommu.map(OFFSET * 2 + n * PAGE, gpa)
    with host.iommu.serving():
        assert host.do(OUT, 0, OFFSET * 2, size=16 * PAGE) == OK
        found = path.read_bytes()[: 16 * PAGE]
        assert found == b"".join(bytes([n]) * PAGE for n in reversed(range(16)))
        assert host.do(IN, 0, OFFSET * 2 + 512, size=15 * PAGE) == OK
    assert host.memory.read(gpas[15], PAGE) == bytes([15]) * 512 + bytes([15]) * (PAGE - 512)
    assert host.memory.read(gpas[14] + 512, PAGE - 512) == bytes([14]) * (PAGE - 512)


# What lacks a translation waits, and nobody else


def test_a_ring_is_started_and_stopped_before_its_areas_are_translated(front_end, packed):
    iommu = PagedDriver.prepare(front_end, packed=packed)
    ring = front_end.start_ring()
    assert iommu.is_asked(5)
    base = front_end.stop_ring()
    assert base == ring.base
    front_end.start_ring(ring=ring)
    with iommu.serving():
        assert Disk(front_end, ring).write(0, bytes(512)) == OK


def test_a_request_that_waits_holds_no_other_up(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page(b"waits")
    assert host.iommu.invalidate(OFFSET + data) == 0
    waiting = host.submit(OUT, 0, data)
    miss = host.iommu.next_miss()
    assert (miss.page, miss.access) == (OFFSET + data, READ)
    for n in range(1, 20):
        assert host.do(OUT, 8 * n, host.page()) == OK
    assert host.status(waiting) == UNANSWERED
    host.iommu.answer(miss)
    assert host.wait(waiting) == [OK]


@pytest.mark.parametrize("end", ["answered", "denied", "stopped"])
def test_many_may_wait_at_once(front_end, packed, end):
    host = PagedDriver.start(front_end, packed=packed)
    buffers = [host.page(bytes([n + 1]) * PAGE) for n in range(40)]
    for data in buffers:
        assert host.iommu.invalidate(OFFSET + data) == 0
    waiting = [host.submit(OUT, 8 * n, data) for n, data in enumerate(buffers)]
    misses = [host.iommu.next_miss() for _ in buffers]
    assert {miss.page - OFFSET for miss in misses} == set(buffers)
    if end == "denied":
        for data in buffers:
            host.iommu.unmap(OFFSET + data)
    if end == "stopped":
        front_end.stop_ring()
        front_end.start_ring(ring=host.ring)
        for _ in misses:
            host.iommu.acknowledge(1)
        with host.iommu.serving():
            assert host.wait(*waiting) == [OK] * 40
        return
    if end == "denied":
        for miss in misses:
            assert not host.iommu.answer(miss)
        assert host.wait(*waiting) == [IOERR] * 40
        return
    for miss in reversed(misses):  # answers have no order but that of the misses
        assert host.iommu.update(miss.page, miss.page - OFFSET) == 0
    for _ in misses:
        host.iommu.acknowledge()
    assert host.wait(*waiting) == [OK] * 40


def test_a_miss_that_is_never_answered_leaves_its_ring_stoppable(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page(b"x" * PAGE)
    host.iommu.invalidate(OFFSET + data)
    waiting = host.submit(OUT, 0, data)
    host.iommu.next_miss()
    front_end.stop_ring()
    assert host.status(waiting) == UNANSWERED
    front_end.start_ring(ring=host.ring)
    host.iommu.acknowledge(1)  # nobody waits for that any more
    with host.iommu.serving():
        assert host.wait(waiting) == [OK]


@pytest.mark.parametrize("way", ["pause", "disable", "memory", "vanish"])
def test_nobody_waits_for_who_misses(daemon, front_end, packed, way):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page()
    host.iommu.invalidate(OFFSET + data)
    waiting = host.submit(OUT, 0, data)
    miss = host.iommu.next_miss()
    if way == "pause":
        daemon.call("pause")
        daemon.call("resume")
    elif way == "disable":
        front_end.enable(0, on=False)
        front_end.enable(0, on=True)
    elif way == "memory":
        front_end.add_region(front_end.memory.grow(MIB))
    else:
        front_end.close()
        with FrontEnd.connect(daemon.socket) as other:
            assert other.disk().write(0, bytes(512)) == OK
        return
    host.iommu.answer(miss)
    with host.iommu.serving():
        assert host.wait(waiting) == [OK]


def test_a_ring_that_misses_holds_no_other_up(front_end, packed):
    iommu = PagedDriver.prepare(front_end, packed=packed, rings=2)
    front_end.start_ring(0)
    asked = iommu.next_miss()
    other = front_end.make_disk(1)
    for region in front_end.memory.regions:
        assert iommu.update(OFFSET + region.gpa, region.gpa, region.size) == 0
    assert iommu.invalidate(asked.page) == 0
    assert other.write(0, bytes(512)) == OK


# Denials


@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_buffer_without_a_translation_fails_its_request_alone(front_end, packed, kind):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page()
    host.iommu.unmap(OFFSET + data)
    host.iommu.invalidate(OFFSET + data)
    with host.iommu.serving():
        assert host.do(kind, 0, data) == IOERR
        assert host.do(kind, 0, host.page()) == OK
    assert not host.ring.broken(0)


def test_memory_that_may_only_be_read_is_not_written(front_end, path, packed):
    path.write_bytes(b"D" * SIZE)
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page(b"G" * PAGE)
    host.iommu.map(OFFSET * 2, data, access=READ)
    with host.iommu.serving():
        assert host.do(IN, 0, OFFSET * 2) == IOERR
        assert host.memory.read(data, PAGE) == b"G" * PAGE
        assert host.do(OUT, 0, OFFSET * 2) == OK
    assert path.read_bytes()[:PAGE] == b"G" * PAGE


def test_memory_that_may_only_be_written_is_not_read(front_end, path, packed):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page(b"S" * PAGE)
    host.iommu.map(OFFSET * 2, data, access=WRITE)
    with host.iommu.serving():
        assert host.do(OUT, 0, OFFSET * 2) == IOERR
        assert host.do(IN, 8, OFFSET * 2) == OK
    assert path.read_bytes()[:PAGE] == bytes(PAGE)
    assert host.memory.read(data, PAGE) == bytes(PAGE)


def test_a_header_without_a_translation_fails_its_request_alone(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    header = host.page()
    host.iommu.unmap(OFFSET + header)
    host.iommu.invalidate(OFFSET + header)
    with host.iommu.serving():
        assert host.do(OUT, 0, host.page(), header=header) == IOERR
        assert host.do(OUT, 0, host.page()) == OK


def test_a_status_byte_without_a_translation_breaks_its_ring_alone(front_end, packed):
    iommu = PagedDriver.prepare(front_end, packed=packed, rings=2)
    with iommu.serving():
        host, other = PagedDriver(front_end, front_end.start_ring(0)), front_end.make_disk(1)
        status = host.page()
        iommu.unmap(OFFSET + status)
        host.submit(OUT, 0, host.page(), status=status)
        assert host.ring.broken()
        assert other.write(0, bytes(512)) == OK


@pytest.mark.parametrize("hostile", EITHER_LAYOUT, ids=lambda f: f.__name__)
def test_a_hostile_chain_costs_its_ring_at_most(front_end, packed, hostile):
    iommu = PagedDriver.prepare(front_end, packed=packed, rings=2)
    with iommu.serving():
        ring, other = front_end.start_ring(0), front_end.make_disk(1)
        hostile(ring)
        ring.kick()
        assert ring.broken()
        assert other.write(0, bytes(512)) == OK
        front_end.stop_ring(0)


# Translations that cannot be


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(lambda _: (0, PAGE, 0x1000, BOTH), id="memory-of-nobody"),
        pytest.param(lambda m: (0, m.size + 1, m.uva, BOTH), id="beyond-a-region"),
        pytest.param(lambda m: (0, PAGE, m.uva - 1, BOTH), id="before-a-region"),
        pytest.param(lambda m: (0, 0, m.uva, BOTH), id="nothing"),
        pytest.param(lambda m: (0, PAGE, m.uva, 0), id="for-nothing"),
        pytest.param(lambda m: (END - PAGE, 2 * PAGE, m.uva, BOTH), id="iova-wraps"),
        pytest.param(lambda _: (0, 2 * PAGE, END - PAGE, BOTH), id="user-address-wraps"),
        pytest.param(lambda m: (0, END - 1, m.uva, BOTH), id="of-everything"),
    ],
)
def test_a_translation_that_cannot_be_is_refused(front_end, packed, update):
    host = PagedDriver.start(front_end, packed=packed)
    assert host.iommu.say(Kind.UPDATE, *update(host.memory.regions[0])) != 0
    assert host.do(OUT, 0, host.page()) == OK


def test_the_last_page_of_all_can_be_translated(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page()
    assert host.iommu.update(END - PAGE, data) == 0
    assert host.do(OUT, 0, END - PAGE) == OK
    assert host.iommu.invalidate(END - 1, 2) == 0
    waiting = host.submit(OUT, 0, END - PAGE)
    assert host.iommu.next_miss().page == END - PAGE
    host.iommu.acknowledge(1)
    assert host.wait(waiting) == [IOERR]


def test_of_translations_that_overlap_the_later_counts(front_end, path, packed):
    host = PagedDriver.start(front_end, packed=packed)
    base = host.memory.alloc(8 * PAGE, PAGE)
    for n in range(8):
        host.memory.write(base + n * PAGE, bytes([n + 1]) * PAGE)
    iova = OFFSET * 2
    assert host.iommu.update(iova, base, 4 * PAGE) == 0  # 1 2 3 4
    assert host.iommu.update(iova + PAGE, base + 4 * PAGE, 2 * PAGE) == 0  # 1 5 6 4
    assert host.iommu.update(iova + 2 * PAGE, base + 7 * PAGE) == 0  # 1 5 8 4
    assert host.do(OUT, 0, iova, size=4 * PAGE) == OK
    assert [path.read_bytes()[n * PAGE] for n in range(4)] == [1, 5, 8, 4]


def test_a_flood_of_translations_takes_no_memory(daemon, front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    pages_of_file = [host.page() for _ in range(2)]

    def flood(count):
        for n in range(count):
            assert host.iommu.update(OFFSET * 4 + n * 2 * PAGE, pages_of_file[n % 2]) == 0

    flood(2000)
    before = resident(daemon.process.pid)
    flood(10000)
    assert resident(daemon.process.pid) - before < 4 * MIB
    with host.iommu.serving():
        assert host.do(OUT, 0, OFFSET * 4) in (OK, IOERR)  # known, or forgotten and not mapped
        assert host.do(OUT, 0, host.page()) == OK


def resident(pid):
    """Bytes of memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123 - a line of the kernel's
        return int(file.read().split()[1]) * PAGE


def test_nothing_is_known_where_nothing_was(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    for _ in range(1000):
        assert host.iommu.invalidate(OFFSET * 8, PAGE) == 0
    assert host.do(OUT, 0, host.page()) == OK


# What is taken back


@pytest.mark.parametrize("part", ["data", "status", "everything"])
def test_an_invalidation_waits_for_what_touches_its_range(serve, path, packed, part):
    _, front_end = serve(f"faulty:{LATE}:{path}")
    host = PagedDriver.start(front_end, packed=packed)
    data, status = host.page(), host.page()
    host.submit(IN, 0, data, status=status)
    wait_for_fetched(host)
    where = {"data": (OFFSET + data, 1), "status": (OFFSET + status, 1), "everything": EVERYTHING}
    assert host.status(status) == UNANSWERED
    assert host.iommu.invalidate(*where[part]) == 0
    assert host.status(status) == OK


def wait_for_fetched(host):
    """Wait until a request that was sent before is begun: one behind it is answered."""
    assert host.do(OUT, 1024, host.page()) == OK


def test_an_invalidation_waits_for_nothing_else(serve, path, packed):
    _, front_end = serve(f"faulty:{SLOW}:{path}")
    host = PagedDriver.start(front_end, packed=packed)
    slow = host.submit(IN, 0, host.page())
    wait_for_fetched(host)
    before = host.page()
    assert host.do(OUT, 1024, before) == OK
    assert host.iommu.invalidate(OFFSET + before) == 0
    assert host.iommu.invalidate(OFFSET * 2, OFFSET) == 0
    assert host.status(slow) == UNANSWERED


def test_an_invalidation_does_not_wait_for_a_miss(front_end, packed):
    """A request that has one buffer and waits for the other has not begun."""
    host = PagedDriver.start(front_end, packed=packed)
    data, status = host.page(), host.page()
    host.iommu.invalidate(OFFSET + data)
    host.submit(OUT, 0, data, status=status)
    miss = host.iommu.next_miss()
    assert host.iommu.invalidate(OFFSET + status) == 0
    assert host.iommu.invalidate(*EVERYTHING) == 0
    host.iommu.answer(miss)
    with host.iommu.serving():
        assert host.wait(status) == [OK]


def test_what_was_taken_back_is_asked_for_anew(front_end, path, packed):
    host = PagedDriver.start(front_end, packed=packed)
    old, new = host.page(b"o" * PAGE), host.page(b"n" * PAGE)
    assert host.do(OUT, 0, old) == OK
    assert host.iommu.invalidate(OFFSET + old) == 0
    host.iommu.map(OFFSET + old, new)
    with host.iommu.serving():
        assert host.do(OUT, 0, OFFSET + old) == OK
    assert path.read_bytes()[:PAGE] == b"n" * PAGE


@pytest.mark.parametrize("where", ["desc", "avail", "used"])
def test_a_ring_whose_area_is_taken_back_asks_for_it_and_goes_on(front_end, packed, where):
    host = PagedDriver.start(front_end, packed=packed)
    assert host.do(OUT, 0, host.page()) == OK
    assert host.iommu.invalidate(OFFSET + (getattr(host.ring, where) & -PAGE)) == 0
    waiting = host.submit(OUT, 8, host.page())
    with host.iommu.serving():
        assert host.wait(waiting) == [OK]
    assert host.iommu.misses


def test_after_everything_is_taken_back_everything_is_asked_for(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    with host.iommu.serving():
        for _ in range(10):
            assert host.do(OUT, 0, host.page()) == OK
            assert host.iommu.invalidate(*EVERYTHING) == 0


def test_memory_that_is_taken_away_is_not_touched_by_its_translations(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    extra = front_end.memory.grow(MIB)
    front_end.add_region(extra)
    assert host.iommu.update(OFFSET + extra.gpa, extra.gpa, extra.size) == 0
    with host.iommu.serving():
        assert host.do(OUT, 0, extra.gpa) == OK
        front_end.remove_region(extra)
        host.iommu.unmap(OFFSET + extra.gpa)
        assert host.do(OUT, 0, extra.gpa) == IOERR
        assert host.do(OUT, 0, host.page()) == OK


# Rings that are scattered in memory


class Scattered(GuestMemory):
    """Memory whose driver sees it in another order of pages than the back end."""

    def __init__(self):
        super().__init__()
        self.elsewhere = {}  # page of the driver's: page of guest memory

    def scatter(self, gpa, size):
        """Move whole pages to others."""
        for at in range(gpa, gpa + size, PAGE):
            to = self.alloc(2 * PAGE, PAGE)  # with a gap behind it
            GuestMemory.write(self, to, GuestMemory.read(self, at, PAGE))
            self.elsewhere[at] = to

    def _pieces(self, gpa, size):
        at = gpa
        while at < gpa + size:
            count = min(PAGE - at % PAGE, gpa + size - at)
            yield self.elsewhere.get(at & -PAGE, at & -PAGE) + at % PAGE, at - gpa, count
            at += count

    def read(self, gpa, size):
        pieces = self._pieces(gpa, size)
        return b"".join(GuestMemory.read(self, at, count) for at, _, count in pieces)

    def write(self, gpa, data):
        for at, skip, count in self._pieces(gpa, len(data)):
            GuestMemory.write(self, at, data[skip : skip + count])


def test_a_ring_of_scattered_pages_is_served(front_end, path, packed):
    front_end.memory = memory = Scattered()
    iommu = PagedDriver.prepare(front_end, packed=packed, size=1024)
    with iommu.serving():
        ring = front_end.start_ring(0, 1024, enable=False)
        front_end.stop_ring()
        span = 16 * 1024 + 3 * PAGE if packed else 10 * PAGE
        start = ring.desc & -PAGE
        memory.scatter(start, span)
        for at, to in list(memory.elsewhere.items()):
            iommu.map(OFFSET + at, to)
        iommu.invalidate(*EVERYTHING)
        front_end.start_ring(ring=ring)
        disk = Disk(front_end, ring)
        for turn in range(5):
            heads = [disk.submit(OUT, n * 8, bytes([turn * 40 + n]) * 512) for n in range(40)]
            assert all(done.status == OK for done in disk.wait(*heads))
        for _ in range(4):
            heads = [disk.submit(OUT, n, b"z" * 512) for n in range(300)]
            assert all(done.status == OK for done in disk.wait(*heads))
    found = path.read_bytes()
    assert found[: 300 * 512] == b"z" * 300 * 512
    assert found[39 * 8 * 512] == 4 * 40 + 39


# Lives of a disk


def test_what_was_in_flight_or_waiting_is_done_by_the_next_back_end(serve, path, packed):
    daemon, front_end = serve(f"faulty:{SLOW}:{path}")
    host = PagedDriver.start(front_end, packed=packed)
    slow = [host.submit(OUT, 8 * n, host.page(bytes([n + 1]) * PAGE)) for n in range(4)]
    buffers = [host.page(bytes([n + 101]) * PAGE) for n in range(4)]
    for data in buffers:
        host.iommu.invalidate(OFFSET + data)
    waiting = [host.submit(OUT, 8 * (100 + n), data) for n, data in enumerate(buffers)]
    for _ in buffers:
        host.iommu.next_miss()
    daemon.wait_for("in_flight", 4)
    daemon.end(signal.SIGKILL)
    again, spare = serve(path)
    spare.close()
    with host.iommu.serving():
        front_end.resume(again.socket)
        assert host.wait(*slow, *waiting) == [OK] * 8
    found = path.read_bytes()
    assert [found[n * PAGE] for n in range(4)] == [1, 2, 3, 4]
    assert [found[(100 + n) * PAGE] for n in range(4)] == [101, 102, 103, 104]


def test_an_upgrade_goes_on_with_what_waits(daemon, front_end, path, packed):
    host = PagedDriver.start(front_end, packed=packed)
    data = host.page(b"u" * PAGE)
    host.iommu.invalidate(OFFSET + data)
    waiting = host.submit(OUT, 0, data)
    miss = host.iommu.next_miss()
    with Taker(daemon) as new:
        new.ready()
        assert daemon.end(None) == 0
        host.iommu.answer(miss)
        with host.iommu.serving():
            assert host.wait(waiting) == [OK]
            for n in range(20):
                assert host.do(OUT, 8 * n, host.page(bytes([n]) * PAGE)) == OK
        found = path.read_bytes()
        assert [found[n * PAGE] for n in range(20)] == list(range(20))
        assert new.end() == 0


def test_a_ring_that_waits_for_its_areas_is_upgraded(daemon, front_end, packed):
    iommu = PagedDriver.prepare(front_end, packed=packed)
    ring = front_end.start_ring()
    assert iommu.is_asked(5)
    with Taker(daemon) as new:
        new.ready()
        assert daemon.end(None) == 0
        with iommu.serving():
            assert Disk(front_end, ring).write(0, bytes(512)) == OK


def test_what_is_written_is_marked_by_guest_addresses(front_end, path, packed):
    path.write_bytes(os.urandom(SIZE))
    host = PagedDriver.start(front_end, packed=packed)
    with DirtyLog(front_end) as log, host.iommu.serving():
        log.start()
        data, status = host.page(), host.page()
        host.iommu.map(OFFSET * 2, data)
        assert host.do(IN, 0, OFFSET * 2, status=status) == OK
        written = pages(data, PAGE) | pages(status, 1)
        marked = log.take()
        assert written <= marked
        assert marked <= written | areas(host.ring) | pages(host.ring.used, 1)
        assert marked & areas(host.ring)
        log.stop()
        assert host.do(IN, 0, host.page()) == OK


def test_a_disk_grows_while_its_misses_are_answered(daemon, front_end, packed, background):
    host = PagedDriver.start(front_end, packed=packed)
    front_end.config(0, 60)
    resizing = background.submit(daemon.call, "resize", SIZE + MIB)
    front_end.answer_backend()
    assert resizing.result(10)["announced"] == "fetched"
    with host.iommu.serving():
        assert host.do(OUT, SIZE // 512, host.page()) == OK


def test_a_reset_device_takes_addresses_as_they_are(front_end, packed):
    host = PagedDriver.start(front_end, packed=packed)
    assert host.do(OUT, 0, host.page()) == OK
    front_end.set(Request.RESET_DEVICE)
    front_end.iommu = None
    front_end.memory.device_address = lambda gpa: gpa
    front_end.features &= ~(1 << 33)
    front_end.set_features()
    host.ring.rewind()
    disk = Disk(front_end, front_end.start_ring(ring=host.ring))
    assert disk.write(0, bytes(512)) == OK
