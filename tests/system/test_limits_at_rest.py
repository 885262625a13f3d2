# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for a rate keep nobody waiting, and nobody gets more through by that."""

import time

import pytest

from harness.daemon import Taker, image, run
from harness.dirtylog import DirtyLog, pages, union
from harness.disk import Disk
from harness.frontend import DISCARD, IN, IOERR, OK, OUT, Request
from harness.iommu import OFFSET
from harness.paged_driver import PagedDriver
from harness.vring import DESC_WRITE
from tests.system.test_holding import (
    BLOCK,
    MIB,
    RANGE,
    blocks,
    both,
    driver,
    faulty,
    is_waiting,
    recorded,
)

SLOW = ("--limit", "bps=1")
"""The first block is read or written at once, the next one after an hour."""
LONG = 2.0  # seconds of an attack
IOPS = 50
QUEUE = 64


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "disk.img", 16 * MIB)


def waiting(daemon):
    return sum(each["where"] == "throttle" for each in daemon.call("inflight")["requests"])


def wait_until_waiting(daemon, count):
    deadline = time.monotonic() + 10
    while waiting(daemon) != count:
        assert time.monotonic() < deadline, waiting(daemon)


def lift(daemon):
    done = run("limit", "--control", daemon.control, "none")
    assert done.returncode == 0, done.stderr


def written(path, count):
    return path.read_bytes()[: count * BLOCK] == b"".join(map(blocks, range(count)))


def submit_writes(daemon, disk, count):
    """Send writes of which all but the first wait."""
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(count)]
    wait_until_waiting(daemon, count - 1)
    assert [done.status for done in disk.wait(heads[0])] == [OK]
    return heads[1:]


# ---- who has it stopped over and over ----


def done_by(daemon):
    return daemon.call("stats")["total"]["reads"]


def allowed(seconds):
    """Requests that may get through: the rate, a second that may be owed, and a queue."""
    return IOPS * (seconds + 1 + 0.02) + QUEUE + 1


class Reader:
    """A driver that has a whole queue of equal reads outstanding."""

    def __init__(self, front_end, ring):
        self.front_end, self.ring, self.sent = front_end, ring, 0
        at = front_end.memory.alloc(4096, 4096)
        self._chain = [(at, 16, 0), (at + 1024, 512, DESC_WRITE), (at + 16, 1, DESC_WRITE)]

    def fill(self):
        self.sent -= len(self.ring.take_used())
        for _ in range(QUEUE - self.sent):
            self.ring.publish(self.ring.add(self._chain))
        self.ring.notify()
        self.sent = QUEUE

    def stop(self):
        base = self.front_end.stop_ring(0)
        self.front_end.start_ring(0, ring=self.ring, base=base)

    def reset(self):
        self.front_end.set(Request.RESET_DEVICE)
        self.front_end.set_features()
        self.ring.rewind()
        self.sent = 0
        self.front_end.start_ring(0, ring=self.ring)


@pytest.mark.parametrize("what", [Reader.stop, Reader.reset], ids=["stop", "reset"])
@pytest.mark.parametrize(
    ("packed", "is_lent"),
    [(False, False), (False, True), (True, True)],
    ids=["no-region-split", "region-split", "region-packed"],
)
def test_a_driver_that_begins_anew_over_and_over_keeps_to_the_rate(
    path, serve, packed, is_lent, what
):
    daemon, front_end = serve(path, "--limit", f"iops={IOPS}")
    reader = Reader(front_end, driver(front_end, packed=packed, is_lent=is_lent, size=256).ring)
    began, rounds = time.monotonic(), 0
    while time.monotonic() < began + LONG:
        reader.fill()
        what(reader)
        rounds += 1
    done = done_by(daemon)
    assert rounds * QUEUE > 2 * allowed(LONG)
    assert IOPS < done <= allowed(time.monotonic() - began)


@both
def test_a_driver_that_invalidates_over_and_over_keeps_to_the_rate(path, serve, packed):
    daemon, front_end = serve(path, "--limit", f"iops={IOPS}")
    guest = PagedDriver.start(front_end, packed=packed)
    data, header = guest.page(), guest.page()
    began, rounds = time.monotonic(), 0
    for _ in range(32):
        guest.submit(IN, 0, data, header=header)
    while time.monotonic() < began + LONG:
        guest.iommu.invalidate(OFFSET + data)
        guest.iommu.update(OFFSET + data, data)
        while guest.iommu.is_asked(0):
            guest.iommu.answer_next()
        for status in guest.answered(0):
            guest.submit(IN, 0, data, header=header, status=status)
        rounds += 1
    done = done_by(daemon)
    assert rounds * 32 > 2 * allowed(LONG)
    assert 1 < done <= IOPS * (time.monotonic() - began + 0.02) + 1


@both
def test_what_is_owed_keeps_up_neither_flushes_nor_the_other_direction(path, serve, packed):
    daemon, front_end = serve(path, "--limit", "bps-write=1")
    disk = driver(front_end, packed=packed)
    heads = submit_writes(daemon, disk, 8)
    front_end.start_ring(0, ring=disk.ring, base=front_end.stop_ring(0))
    assert [done.status for done in disk.wait(*heads)] == [OK] * 7
    late = disk.submit(OUT, 0, blocks(1))
    assert disk.flush() == OK
    assert disk.read(8, BLOCK) == (OK, blocks(1))
    assert is_waiting(disk, late)
    front_end.start_ring(0, ring=disk.ring, base=front_end.stop_ring(0))
    assert is_waiting(disk, late), "it stays recorded"
    lift(daemon)
    assert [done.status for done in disk.wait(late)] == [OK]


def test_a_vring_that_is_barred_is_served_once_its_limit_is_lifted(path, serve):
    daemon, front_end = serve(path, "--limit", "bps-write=1")
    disk = driver(front_end, is_lent=False)
    submit_writes(daemon, disk, 8)
    front_end.start_ring(0, ring=disk.ring, base=front_end.stop_ring(0))
    read = disk.submit(IN, 0, size=BLOCK)
    assert is_waiting(disk, read)
    lift(daemon)
    assert [done.status for done in disk.wait(read)] == [OK]


# ---- who has them at rest ----


@both
@recorded
def test_a_pause_begins_what_waits_and_nothing_is_owed_for_it(path, serve, packed, is_lent):
    daemon, front_end = serve(path, "--limit", "bps-write=1")
    disk = driver(front_end, packed=packed, is_lent=is_lent)
    heads = submit_writes(daemon, disk, 8)
    assert daemon.pause(5) == 0
    assert [done.status for done in disk.wait(*heads)] == [OK] * 7
    assert written(path, 8)
    daemon.call("resume")
    late = disk.submit(OUT, 0, blocks(1))
    assert disk.flush() == OK
    assert is_waiting(disk, late)


@both
@recorded
def test_a_live_upgrade_carries_over_what_waits(path, serve, packed, is_lent):
    daemon, front_end = serve(path, *SLOW)
    disk = driver(front_end, packed=packed, is_lent=is_lent)
    heads = submit_writes(daemon, disk, 8)
    with Taker(daemon) as taker:
        taker.ready()
        assert daemon.end(None) == 0
        lift(taker)
        assert [done.status for done in disk.wait(*heads)] == [OK] * 7
        assert written(path, 8)
        assert taker.end() == 0


@both
@recorded
def test_memory_can_be_taken_away_from_what_waits(path, serve, packed, is_lent):
    daemon, front_end = serve(path, *SLOW)
    disk = driver(front_end, packed=packed, is_lent=is_lent)
    region = front_end.memory.grow(1 << 16)
    front_end.add_region(region)
    region.memory[:BLOCK] = blocks(0)
    header = disk.memory.alloc(16, region=0)
    status = disk.memory.alloc(16, region=0)
    disk.memory.write(header, OUT.to_bytes(4, "little") + bytes(12))
    disk.memory.write(status, b"\xff")
    assert disk.write(64, blocks(1)) == OK
    head = disk.ring.add([(header, 16, 0), (region.gpa, BLOCK, 0), (status, 1, 2)])
    disk.ring.publish(head)
    disk.ring.notify()
    wait_until_waiting(daemon, 1)
    front_end.remove_region(region)
    if is_lent:
        lift(daemon)
        assert not disk.ring.wait_used(0.3), "there is no memory for it"
        front_end.add_region(region)
    assert [at for at, _ in disk.ring.wait_used()] == [head]
    assert disk.memory.read(status, 1) == bytes([OK])
    assert written(path, 1)


@both
def test_what_waits_and_has_lost_its_translation_is_walked_again(path, serve, packed):
    daemon, front_end = serve(path, *SLOW)
    guest = PagedDriver.start(front_end, packed=packed)
    kept, taken = guest.page(blocks(1)), guest.page(blocks(2))
    assert guest.do(OUT, 64, kept) == OK
    sent = [guest.submit(OUT, sector, page) for sector, page in ((0, kept), (8, taken))]
    wait_until_waiting(daemon, 2)
    assert guest.iommu.invalidate(OFFSET + taken) == 0
    assert guest.iommu.next_miss().iova == OFFSET + taken
    guest.iommu.acknowledge(1)
    assert guest.wait(sent[1]) == [IOERR]
    lift(daemon)
    assert guest.wait(sent[0]) == [OK]
    assert path.read_bytes()[: 2 * BLOCK] == blocks(1) + bytes(BLOCK)


# ---- migration ----


@both
def test_each_page_of_a_read_that_has_waited_is_logged_once_it_is_done(path, serve, packed):
    daemon, front_end = serve(path, *SLOW)
    disk = driver(front_end, packed=packed)
    with DirtyLog(front_end) as log:
        log.start()
        assert disk.read(0, BLOCK)[0] == OK
        heads = [disk.submit(IN, 0, size=4 * BLOCK) for _ in range(3)]
        wait_until_waiting(daemon, 3)
        log.take()
        buffers = [disk.buffer_of(head) for head in heads]
        expected = union(pages(at, 4 * BLOCK) for at in buffers)
        assert not log.take() & expected
        lift(daemon)
        assert [done.status for done in disk.wait(*heads)] == [OK] * 3
        assert expected <= log.take()
        log.stop()


@both
def test_nothing_waits_in_a_vring_that_is_migrated(path, serve, packed):
    daemon, front_end = serve(path, *SLOW)
    disk = driver(front_end, packed=packed)
    heads = submit_writes(daemon, disk, 8)
    with DirtyLog(front_end) as log:
        log.start()
        front_end.stop_ring(0)
        assert [done.status for done in disk.wait(*heads)] == [OK] * 7
        assert written(path, 8)


# ---- beside the error policy ----

HOLD = ("--on-error", "hold")


@both
def test_what_has_waited_and_is_held_is_done_by_a_retry(path, serve, packed):
    rules = faulty(path, "fail@write*1,fail@discard*1")
    daemon, front_end = serve(rules, "--limit", "iops=100", *HOLD)
    path.write_bytes(b"x" * MIB)
    disk = driver(front_end, packed=packed)
    reads = [disk.submit(IN, 1024, size=BLOCK) for _ in range(10)]
    ranges = RANGE.pack(256, 8, 0) + RANGE.pack(272, 8, 0)
    heads = [disk.submit(OUT, 0, blocks(0)), disk.submit(DISCARD, 0, ranges)]
    daemon.wait_for("held", 2)
    assert all(done.status == OK for done in disk.wait(*reads))
    daemon.call("retry")
    assert [done.status for done in disk.wait(*heads)] == [OK, OK]
    content = path.read_bytes()
    assert content[:BLOCK] == blocks(0)
    for sector, is_kept in ((256, False), (264, True), (272, False)):
        assert any(content[sector * 512 :][:BLOCK]) == is_kept


@both
def test_what_waits_does_not_wait_for_what_is_held(path, serve, packed):
    daemon, front_end = serve(faulty(path, "fail@write*1"), "--limit", "iops=20", *HOLD)
    disk = driver(front_end, packed=packed)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(5)]
    assert [done.status for done in disk.wait(*heads[1:])] == [OK] * 4
    assert daemon.pause(5) == 0
    daemon.call("resume")
    daemon.call("retry")
    assert [done.status for done in disk.wait(heads[0])] == [OK]
    assert written(path, 5)


@both
@recorded
def test_a_device_that_is_reset_forgets_what_is_held_and_what_waits(path, serve, packed, is_lent):
    daemon, front_end = serve(faulty(path, "fail@write"), "--limit", "bps-read=1", *HOLD)
    disk = driver(front_end, packed=packed, is_lent=is_lent)
    for n in range(5):
        disk.submit(OUT, n * 8, blocks(n))
    for _ in range(5):
        disk.submit(IN, 0, size=BLOCK)
    daemon.wait_for("held", 5)
    wait_until_waiting(daemon, 4)
    front_end.set(Request.RESET_DEVICE)
    front_end.set_features()
    disk.ring.rewind()
    disk = Disk(front_end, front_end.start_ring(0, ring=disk.ring))
    if not is_lent:
        lift(daemon)  # what was begun at the reset is owed
    assert disk.flush() == OK
    shown = daemon.call("show")
    assert (shown["held"], shown["in_flight"]) == (0, 0)
    assert not any(path.read_bytes())
