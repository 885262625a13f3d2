# SPDX-License-Identifier: Apache-2.0
"""Guests and front ends that break the rules of a running ring; others must not notice."""

import os
import resource
import struct
import time
from pathlib import Path

import pytest

from harness.daemon import Daemon, image
from harness.frontend import IN, OUT, Disk, FrontEnd, Request
from harness.vring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from tests.hostile_chains import EITHER_LAYOUT, HEADER

pytestmark = pytest.mark.usefixtures("each_engine")

OK = 0
SIZE = 128


@pytest.fixture
def daemon(tmp_path):
    with Daemon(image(tmp_path / "disk.img", 1 << 20), tmp_path, "--queues", 2) as started:
        started.ready()
        yield started


@pytest.fixture
def disks(daemon):
    """Two rings of one front end: one to break, one that must go on."""
    with FrontEnd.connect(daemon.socket) as front_end:
        yield list(front_end.disks(2, SIZE))


def wild_index(ring):
    ring.avail_idx = SIZE + 2


def wild_index_after_wrap(ring):
    ring.avail_idx = 0x8000


def head_outside(ring):
    ring.publish(SIZE)


def self_loop(ring):
    ring.put_desc(0, ring.memory.alloc(16), 16, DESC_NEXT, 0)
    ring.publish(0)


def next_outside(ring):
    ring.put_desc(0, ring.memory.alloc(16), 16, DESC_NEXT, SIZE)
    ring.publish(0)


def nested_indirect(ring):
    table = ring.memory.alloc(16)
    ring.memory.write(table, struct.pack("<QIHH", table, 16, DESC_INDIRECT, 0))
    ring.put_desc(0, table, 16, DESC_INDIRECT)
    ring.publish(0)


SAID = {
    wild_index: "avail index 130 is 129 ahead of what was fetched, in a ring of 128",
    wild_index_after_wrap: "avail index 32768 is 32767 ahead of what was fetched, in a ring of 128",
    head_outside: "avail entry 1: descriptor 128 is past the ring's 128",
    self_loop: "the chain at descriptor 0 loops: it has more than the ring's 128",
    next_outside: "descriptor 0: next 128 is past the ring's 128",
    nested_indirect: "descriptor 0 of an indirect table is indirect itself",
}
"""What the log and `show` say of each, and of the rest something."""


@pytest.mark.parametrize("break_ring", [*EITHER_LAYOUT, *SAID], ids=lambda f: f.__name__)
def test_a_broken_ring_is_reported_and_the_other_goes_on(daemon, disks, break_ring):
    broken, healthy = disks
    assert broken.write(0, b"a" * 512) == OK
    break_ring(broken.ring)
    broken.ring.kick()
    assert broken.ring.broken()
    assert broken.ring.used_idx == 1
    assert healthy.read(0, 512) == (OK, b"a" * 512)
    shown = daemon.call("show")
    assert shown["broken_rings"] == [0]
    [reason] = shown["broken_reasons"]
    assert SAID.get(break_ring, "") in reason
    assert "ring broken by its driver" in daemon.errors()
    assert reason in daemon.errors()


def test_a_broken_ring_can_be_stopped_and_started_again(disks):
    broken, _ = disks
    self_loop(broken.ring)
    broken.ring.kick()
    assert broken.ring.broken()
    front_end = broken.front_end
    front_end.stop_ring(0)
    fresh = Disk(front_end, front_end.start_ring(0, SIZE, base=0))
    assert fresh.read(0, 512)[0] == OK


def test_the_same_chain_offered_twice_is_served_twice_and_harms_nobody(disks):
    twice, other = disks
    head = twice.ring.add([(HEADER, 16, 0), (bytes(513), 513, DESC_WRITE)])
    twice.ring.publish(head, head, head)
    twice.ring.kick()
    while twice.ring.used_idx < 3:
        assert twice.ring.wait_used()
    assert other.read(0, 512)[0] == OK


def test_a_guest_that_rewrites_its_descriptors_all_the_time_stays_in_its_memory(daemon, disks):
    racy, other = disks
    ring, memory = racy.ring, racy.memory
    header, data, status = memory.alloc(16), memory.alloc(512, 512), memory.alloc(1)
    memory.write(header, struct.pack("<IIQ", OUT, 0, 0))
    for turn in range(2000):
        ring.put_desc(0, header, 16, DESC_NEXT, 1)
        ring.put_desc(1, data, 512, DESC_NEXT, 2)
        ring.put_desc(2, status, 1, DESC_WRITE)
        ring.publish(0)
        ring.kick()
        ring.put_desc(1, 2**50 + turn, 2**31, DESC_NEXT | DESC_WRITE, turn % SIZE)
        if ring.broken(0):
            break
    assert other.read(0, 512)[0] == OK
    assert daemon.process.poll() is None


def test_a_ring_whose_memory_is_taken_away_breaks_and_the_other_goes_on(daemon):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        front_end.share_memory()
        healthy = Disk(front_end, front_end.start_ring(1, SIZE))
        region = front_end.memory.grow(1 << 20)
        front_end.add_region(region)
        lost = front_end.start_ring(0, SIZE)
        front_end.stop_ring(0)
        for part in ("desc", "avail", "used"):
            setattr(lost, part, region.gpa + (getattr(lost, part) & 0xFFFF))
        front_end.start_ring(0, ring=lost, base=0)
        front_end.remove_region(region)
        lost.kick()
        assert lost.broken()
        assert healthy.read(0, 512)[0] == OK


def test_a_ring_goes_on_when_its_memory_comes_back(daemon, disks):
    """QEMU removes a region and adds it again when the memory layout changes around it."""
    disk, _ = disks
    region = disk.memory.regions[0]
    disk.front_end.remove_region(region)
    assert daemon.call("show")["broken_rings"] == [0, 1]
    disk.front_end.add_region(region)
    assert disk.read(0, 512)[0] == OK
    assert daemon.call("show")["broken_rings"] == []


def test_a_ring_that_starts_again_calls_its_driver_once(disks):
    """Whoever served it before may have died between the used index and the call."""
    disk, _ = disks
    front_end, ring = disk.front_end, disk.ring
    assert ring.called(5)  # as it is at every start
    front_end.ring_fd(Request.SET_VRING_CALL, 0, None)
    disk.submit(IN, 0, size=512)
    while ring.used_idx < 1:
        os.sched_yield()
    front_end.stop_ring(0)
    assert not ring.called(0)
    front_end.start_ring(0, ring=ring)
    assert ring.called(5)


def test_huge_pages_are_given_back_when_the_front_end_leaves(daemon):
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    pool.write_text("4")
    try:
        with FrontEnd.connect(daemon.socket) as front_end:
            front_end.negotiate()
            memory = os.memfd_create("huge", os.MFD_HUGETLB)
            os.ftruncate(memory, 4 << 20)
            for start, end in ((0, 0xA0000), (0xC0000, 4 << 20)):  # as QEMU cuts low memory
                region = struct.pack("=QQQQQ", 0, start, end - start, 1 << 40 | start, start)
                assert front_end.ack(Request.ADD_MEM_REG, region, [memory]) == 0
            os.close(memory)
            assert daemon.mapped_memory() == 2
        daemon.wait_for("front_end", None)
        assert daemon.mapped_memory() == 0
    finally:
        pool.write_text(before)


def test_a_kill_ends_it_at_once_whatever_the_front_end_still_sends(daemon):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        call = os.eventfd(0)
        for index in [0, 1] * 200:
            payload = struct.pack("=Q", index)
            front_end.send(Request.SET_VRING_CALL, payload, [call])
        daemon.call("kill")
        os.close(call)
        assert daemon.end(None) == 0


@pytest.mark.parametrize("region", [0, 1], ids=["of-the-rings", "of-a-request"])
def test_memory_that_shrinks_ends_the_connection_not_the_process(daemon, region):
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        memory, ring = front_end.memory, disk.ring
        header = memory.alloc(16, region=1)
        status = memory.alloc(1, region=1)
        ring.put_desc(0, header, 16, DESC_NEXT, 1)
        ring.put_desc(1, status, 1, DESC_WRITE)
        if region == 1:
            ring.publish(0)
        os.ftruncate(memory.regions[region].fd, 0)
        ring.kick()
        assert front_end.wait_closed()
    assert "memory shrank" in daemon.errors()
    with FrontEnd.connect(daemon.socket) as front_end:
        assert front_end.disk().read(0, 512)[0] == OK


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK], ids=["blocking", "non-blocking"])
def test_a_full_call_eventfd_never_blocks_a_worker(daemon, disks, flags):
    full, _ = disks
    call = os.eventfd(0, os.EFD_CLOEXEC | flags)
    os.eventfd_write(call, 2**64 - 2)
    full.front_end.ring_fd(Request.SET_VRING_CALL, 0, call)
    heads = []
    for sector in range(20):
        heads.append(full.submit(OUT, sector, bytes([sector]) * 512))
        while full.ring.used_idx < sector + 1:
            os.sched_yield()
    assert full.front_end.stop_ring(0) == 20
    os.close(call)
    assert daemon.end() == 0


def test_a_blocking_call_eventfd_is_called_like_any_other(daemon):
    with FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        os.set_blocking(disk.ring.call_fd, True)
        for sector in range(50):
            assert disk.write(sector, bytes(512)) == OK


@pytest.mark.parametrize("request_id", [Request.SET_VRING_KICK, Request.SET_VRING_CALL])
@pytest.mark.parametrize("kind", ["directory", "path", "pipe", "file", "device", "memfd"])
def test_a_descriptor_that_is_no_eventfd_is_refused(daemon, request_id, kind, tmp_path):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        valid = os.eventfd(0)
        front_end.ring_fd(request_id, 0, valid)  # the ring's worker runs from here on
        os.close(valid)
        before = open_fds(daemon)
        with opened(kind, tmp_path) as fd:
            assert front_end.ack(request_id, struct.pack("=Q", 0), [fd]) != 0
        wait_for_fds(daemon, before)
        assert front_end.disk().read(0, 512)[0] == OK


@pytest.mark.parametrize("kind", ["directory", "path", "pipe", "device", "memfd", "eventfd"])
def test_memory_that_is_no_memory_is_refused(daemon, kind, tmp_path):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        region = struct.pack("=QQQQQ", 0, 0, 4096, 0x7F00_0000_0000, 0)
        with opened(kind, tmp_path) as fd:
            assert front_end.ack(Request.ADD_MEM_REG, region, [fd]) != 0
        assert front_end.disk().read(0, 512)[0] == OK


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        pytest.param(8192, 0, id="longer-than-the-file"),
        pytest.param(4096, 4096, id="behind-its-end"),
        pytest.param(4096, 2**64 - 4096, id="offset-wraps"),
        pytest.param(2**63, 0, id="enormous"),
        pytest.param(0, 0, id="nothing"),
    ],
)
def test_a_mapping_beyond_its_file_is_refused(daemon, size, offset):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.negotiate()
        memory = os.memfd_create("small")
        os.ftruncate(memory, 4096)
        region = struct.pack("=QQQQQ", 0, 0, size, 0x7F00_0000_0000, offset)
        try:
            refused = front_end.ack(Request.ADD_MEM_REG, region, [memory])
        except ConnectionError:
            refused = 1
        os.close(memory)
        assert refused
    with FrontEnd.connect(daemon.socket) as front_end:
        assert front_end.disk().read(0, 512)[0] == OK


def test_front_ends_come_and_go_for_ever_and_leave_nothing_behind(daemon):
    counts = []
    for turn in range(12):
        with FrontEnd.connect(daemon.socket) as front_end:
            for disk in front_end.disks(2, SIZE):
                disk.submit(OUT, turn, bytes(512))
        daemon.wait_for("front_end", None)
        counts.append((open_fds(daemon), daemon.mapped_memory()))
    assert len(set(counts[4:])) == 1, counts


def test_a_disk_goes_on_while_no_other_front_end_can_be_accepted(daemon, disks):
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (open_fds(daemon), limits[1]))
    with FrontEnd.connect(daemon.socket):
        while "no front end accepted" not in daemon.errors():
            assert daemon.process.poll() is None
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
    assert disks[0].read(0, 512)[0] == OK
    disks[0].front_end.close()
    daemon.wait_for("front_end", None)
    with FrontEnd.connect(daemon.socket) as front_end:
        assert front_end.disk().read(0, 512)[0] == OK


def test_a_second_front_end_is_turned_away_and_the_first_keeps_its_disk(daemon, disks):
    with FrontEnd.connect(daemon.socket) as second:
        assert second.wait_closed()
    assert disks[0].read(0, 512)[0] == OK
    assert "second front end refused" in daemon.errors()


def open_fds(daemon):
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def wait_for_fds(daemon, count, limit=5):
    """Wait until it has so many: some are closed by a thread of their own."""
    deadline = time.monotonic() + limit
    while (found := open_fds(daemon)) != count:
        assert time.monotonic() < deadline, f"{found} descriptors, not {count}"
        time.sleep(0.005)


class opened:  # noqa: N801 - reads as a verb
    """A descriptor of a certain kind, closed at the end."""

    def __init__(self, kind, directory):
        self.others = []
        match kind:
            case "directory":
                self.fd = os.open(directory, os.O_RDONLY)
            case "path":
                self.fd = os.open(directory / "disk.img", os.O_PATH)
            case "file":
                self.fd = os.open(directory / "disk.img", os.O_RDWR)
            case "pipe":
                other, self.fd = os.pipe()
                self.others.append(other)
            case "device":
                self.fd = os.open("/dev/null", os.O_RDWR)
            case "memfd":
                self.fd = os.memfd_create("empty")
            case "eventfd":
                self.fd = os.eventfd(0)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        for fd in (self.fd, *self.others):
            os.close(fd)
