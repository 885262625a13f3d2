# SPDX-License-Identifier: Apache-2.0
"""Memory that is plugged and unplugged, region by region, while I/O runs in all of it."""

import os
import random
import struct
from dataclasses import replace

import pytest

from harness.daemon import image
from harness.frontend import IN, OK, OUT, Disk, Request
from harness.vring import DESC_WRITE, wait_readable

SLOTS = 509
"""What blkd takes, the regions of the rings and the driver's own buffers among them."""
PAGE = 4096
SIZE = 1 << 20
DELAY = 1.0
"""Seconds that a slow read takes."""


@pytest.fixture
def path(tmp_path):
    """An image whose pages all differ."""
    path = image(tmp_path / "a.img", SIZE)
    path.write_bytes(b"".join(page(n) for n in range(SIZE // PAGE)))
    return path


def page(number):
    return struct.pack("<Q", number) * (PAGE // 8)


def submit(disk, kind, number, region):
    """Read or write a page of the image with a region's first page for a buffer: its chain."""
    header = struct.pack("<IIQ", kind, 0, number * 8)
    status = disk.memory.alloc(16, region=0)
    flags = DESC_WRITE if kind == IN else 0
    chain = [(header, 16, 0), (region.gpa, PAGE, flags), (status, 1, DESC_WRITE)]
    head = disk.ring.add(chain)
    disk.memory.write(status, b"\xff")
    disk.ring.publish(head)
    disk.ring.notify()
    return head, status


def wait(disk, sent):
    """Wait for a chain: its status."""
    head, status = sent
    heads = []
    while head not in heads:
        heads = [each for each, _ in disk.ring.wait_used()]
        assert heads, "nothing comes back"
    return disk.memory.read(status, 1)[0]


def reads(disk, number, region):
    """Whether a page of the image is read into a region."""
    region.memory[:PAGE] = bytes(PAGE)
    return wait(disk, submit(disk, IN, number, region)) == OK and region.memory[:PAGE] == page(
        number
    )


def ask(front_end, request, region):
    """Send a request for a region, the answer to be waited for."""
    fds = [region.fd] if request == Request.ADD_MEM_REG else []
    front_end.send(request, bytes(8) + region.pack(), fds, need_reply=True)


def answered(front_end):
    """The answer to what was asked last."""
    _, _, payload, _ = front_end.receive()
    return int.from_bytes(payload, "little")


@pytest.mark.parametrize("options", [(), ("--register-memory",)], ids=["plain", "registered"])
def test_every_slot_is_filled_and_emptied_under_io(serve, path, options):
    daemon, front_end = serve(path, "--queues", 2, "--workers", 2, *options)
    disks = list(front_end.disks(2))
    first = list(front_end.memory.regions)
    more = [front_end.memory.grow(1 << 16) for _ in range(SLOTS - len(first))]
    for n, region in enumerate(more):
        # A read into the region before is under way while the next one comes.
        sent = submit(disks[n % 2], IN, n % 256, more[n - 1]) if n else None
        front_end.add_region(region)
        assert sent is None or wait(disks[n % 2], sent) == OK
    assert daemon.mapped_memory() == SLOTS
    surplus = front_end.memory.grow(1 << 16)
    assert front_end.ack(Request.ADD_MEM_REG, bytes(8) + surplus.pack(), [surplus.fd]) != 0
    assert all(reads(disks[n % 2], n % 256, region) for n, region in enumerate(more))

    random.Random(7).shuffle(more)
    for n, region in enumerate(more[:-1]):
        sent = submit(disks[n % 2], IN, n % 256, more[-1])
        front_end.remove_region(region)
        assert wait(disks[n % 2], sent) == OK
    assert daemon.mapped_memory() == len(first) + 1
    assert reads(disks[0], 5, more[-1])
    assert daemon.call("show")["broken_rings"] == []


def test_every_slot_can_be_filled(serve, path):
    _, front_end = serve(path)
    disk = front_end.disk()
    more = [front_end.memory.grow(1 << 16) for _ in range(SLOTS - 2)]
    for region in more:
        front_end.add_region(region)
    assert reads(disk, 1, more[-1])


@pytest.fixture
def slow(serve, path):
    """Two rings of a disk whose reads of the first half take a while."""
    rules = f"delay={int(DELAY * 1000)}ms@read+0-512K"
    daemon, front_end = serve(f"faulty:{rules}:{path}", "--queues", 2, "--workers", 2)

    def in_flight(count):
        daemon.wait_for("in_flight", count)

    return *front_end.disks(2), in_flight


def test_a_removal_is_answered_when_the_requests_in_the_region_have_ended(slow):
    disk, other, in_flight = slow
    front_end = disk.front_end
    region = front_end.memory.grow(1 << 16)
    front_end.add_region(region)
    head, status = submit(disk, IN, 9, region)
    in_flight(1)
    ask(front_end, Request.REM_MEM_REG, region)
    # The other ring is served meanwhile, and the removal waits.
    assert other.read(SIZE // 1024, PAGE) == (OK, page(SIZE // 2 // PAGE))
    assert not wait_readable(front_end.sock.fileno(), DELAY / 3)
    assert disk.ring.used_idx == 0
    assert answered(front_end) == 0
    assert disk.ring.used_idx == 1, "the request ended before the answer"
    assert wait(disk, (head, status)) == OK
    assert region.memory[:PAGE] == page(9)


def test_a_removal_waits_for_the_requests_of_every_worker(slow):
    *disks, in_flight = slow
    front_end = disks[0].front_end
    region = front_end.memory.grow(1 << 16)
    front_end.add_region(region)
    sent = [submit(disk, IN, n, region) for n, disk in enumerate(disks)]
    in_flight(2)
    ask(front_end, Request.REM_MEM_REG, region)
    assert answered(front_end) == 0
    assert [disk.ring.used_idx for disk in disks] == [1, 1]
    assert [wait(disk, each) for disk, each in zip(disks, sent, strict=True)] == [OK, OK]


def test_a_ring_whose_region_goes_ends_its_requests_first_and_comes_back_with_it(slow):
    disk, other, in_flight = slow
    front_end = disk.front_end
    front_end.stop_ring(0)
    region = front_end.memory.grow(1 << 20)
    front_end.add_region(region)
    ring = disk.ring
    for n, part in enumerate(("desc", "avail", "used")):
        setattr(ring, part, region.gpa + n * PAGE)
    ring.rewind()
    front_end.start_ring(0, ring=ring)
    moved = Disk(front_end, ring)
    sent = submit(moved, IN, 3, front_end.memory.regions[1])
    in_flight(1)
    ask(front_end, Request.REM_MEM_REG, region)
    assert answered(front_end) == 0
    assert ring.used_idx == 1
    assert wait(moved, sent) == OK
    assert ring.broken()
    assert other.read(SIZE // 1024, PAGE)[0] == OK
    front_end.add_region(region)
    assert moved.read(SIZE // 1024, PAGE) == (OK, page(SIZE // 2 // PAGE))


def test_removals_and_additions_in_one_breath_are_done_in_their_order(serve, path):
    daemon, front_end = serve(path, "--queues", 2, "--workers", 2)
    disks = list(front_end.disks(2))
    region = front_end.memory.grow(1 << 16)
    front_end.add_region(region)
    turns = 100
    for _ in range(turns):
        sent = [(d, d.submit(OUT, n, b"w" * 512)) for d in disks for n in range(8)]
        ask(front_end, Request.REM_MEM_REG, region)
        ask(front_end, Request.ADD_MEM_REG, region)
        ask(front_end, Request.ADD_MEM_REG, replace(region, gpa=region.gpa + PAGE))
        assert [answered(front_end) for _ in range(2)] == [0, 0]
        assert answered(front_end) != 0, "the other is there already"
        assert all(disk.wait(head)[0].status == OK for disk, head in sent)
    assert reads(disks[0], 77, region)
    assert daemon.mapped_memory() == 3


def test_a_request_in_a_region_that_went_breaks_its_ring_alone(serve, path):
    daemon, front_end = serve(path, "--queues", 2)
    disk, other = front_end.disks(2)
    region = front_end.memory.grow(1 << 16)
    front_end.add_region(region)
    front_end.remove_region(region)
    submit(disk, IN, 0, region)
    assert disk.ring.broken()
    assert other.read(0, PAGE)[0] == OK
    assert daemon.call("show")["broken_rings"] == [0]


def test_regions_far_into_one_large_file_take_no_more_room_than_they_are(serve, path):
    """virtio-mem has one file for all that it may ever plug, and a region for each part of it."""
    daemon, front_end = serve(path)
    disk = front_end.disk()
    part, count = 1 << 34, 500  # 8 TiB of file
    file = os.memfd_create("large")
    os.ftruncate(file, part * count)
    base = 1 << 40
    for n in range(count):
        payload = struct.pack("=QQQQQ", 0, base + n * part, part, 1 << 44 | n * part, n * part)
        assert front_end.ack(Request.ADD_MEM_REG, payload, [file]) == 0, n
    os.close(file)
    assert disk.read(0, PAGE)[0] == OK
    assert daemon.mapped_memory() == count + 2
