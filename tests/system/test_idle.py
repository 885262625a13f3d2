# SPDX-License-Identifier: Apache-2.0
"""A disk that nobody uses costs no CPU and little memory, and yet its growth is noticed."""

import os
import re
import time
from pathlib import Path

import pytest

from harness.daemon import Daemon, image
from harness.frontend import FrontEnd, GuestMemory
from harness.storage import loop_device, mounted, run

MIB = 1 << 20
RINGS = 4
WINDOW = 3.0  # seconds in which wake-ups are counted
QUIET = 1.2  # seconds without a wake-up that end what was begun: a look may be due in one
LIMIT = 10.0  # seconds for that, and for a new size to be seen
MEMORY_LIMIT = 40 * MIB
MEMORY_NOISE = MIB  # between two processes that do the same
BY_THE_CLOCK = "size looked at by the clock"


@pytest.fixture
def disk(tmp_path):
    return image(tmp_path / "a.img", 64 * MIB)


def start(front_end):
    """Bring up a guest that has read its disk's configuration: one driver for each ring."""
    disks = list(front_end.disks(RINGS))
    front_end.config(0, 60)
    return disks


def switches(pid):
    """How often each thread of `pid` has slept and has been preempted.

    The kernel's own threads in it are left out: io_uring keeps one for each ring that had to
    wait in the file system, and that one looks around every five seconds.
    """
    counts = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        if not status.startswith("Name:\tiou-wrk-"):
            counts[task.name] = [int(n) for n in re.findall(r"ctxt_switches:\t(\d+)", status)]
    return counts


def memory(pid):
    """The bytes of memory that `pid` takes itself: the guest's own, shared pages left out."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * sum(int(n) for n in re.findall(r"Rss(?:Anon|File):\s*(\d+) kB", status))


def settle(pid):
    """Wait until what was begun has ended: nobody woke up for a while."""
    deadline = time.monotonic() + LIMIT
    last = None
    while last != (last := switches(pid)):
        assert time.monotonic() < deadline, "never at rest"
        time.sleep(QUIET)


def see(front_end, size):
    """Wait until the disk has `size`."""
    deadline = time.monotonic() + LIMIT
    while front_end.capacity() != size // 512:
        assert time.monotonic() < deadline, f"{size} bytes were not noticed"
        time.sleep(0.05)


def assert_at_rest(pid):
    settle(pid)
    before = switches(pid)
    time.sleep(WINDOW)
    assert switches(pid) == before
    assert len(before) >= RINGS + 1


@pytest.mark.parametrize("kind", ["file", "device", "null"])
def test_an_idle_disk_wakes_nobody(serve, disk, device, kind):
    image = {"file": disk, "device": device, "null": "null:64M"}[kind]
    daemon, front_end = serve(image, "--workers", RINGS)
    disks = start(front_end)
    assert_at_rest(daemon.process.pid)
    for each in disks:
        assert each.write(0, bytes(4096)) == 0
    daemon.call("show")
    assert_at_rest(daemon.process.pid)


def test_an_idle_disk_takes_little_memory(serve, disk):
    daemon, front_end = serve(disk)
    for each in start(front_end):
        assert each.write(0, bytes(4096)) == 0
    daemon.call("show")
    daemon.call("stats")
    assert memory(daemon.process.pid) < MEMORY_LIMIT


def test_neither_image_nor_guest_decides_how_much_memory_it_takes(tmp_path):
    taken = []
    for image_size, guest_size in ((64 * MIB, 64 * MIB), (64 << 30, 1 << 30)):
        path = image(tmp_path / "a.img", image_size)
        with Daemon(path, tmp_path) as daemon:
            daemon.ready()
            with FrontEnd.connect(daemon.socket) as front_end:
                front_end.memory = GuestMemory([guest_size])
                for each in start(front_end):
                    last = image_size // 512 - 8
                    assert each.write(last, bytes(4096)) == 0
                taken.append(memory(daemon.process.pid))
    assert abs(taken[1] - taken[0]) < MEMORY_NOISE


def test_a_disk_at_work_is_looked_at_once_a_second(serve, disk):
    daemon, front_end = serve(disk)
    guest = start(front_end)[0]
    main = str(daemon.process.pid)
    settle(main)
    before, end = switches(main), time.monotonic() + WINDOW
    writes = 0
    while time.monotonic() < end:
        assert guest.write(0, bytes(4096)) == 0
        writes += 1
    assert writes > 100
    # Each look is two wake-ups: a write was noticed, and the second is over.
    assert switches(main)[main][0] - before[main][0] <= 2 * (WINDOW + 1)


def test_growth_of_a_file_is_noticed_during_writes(serve, disk):
    _, front_end = serve(disk)
    guest = start(front_end)[0]
    for size in (65 * MIB, 66 * MIB):
        assert guest.write(0, bytes(4096)) == 0
        os.truncate(disk, size)
        deadline = time.monotonic() + LIMIT
        while front_end.capacity() != size // 512:
            assert guest.write(0, bytes(4096)) == 0
            assert time.monotonic() < deadline


def test_growth_of_a_device_is_noticed(serve, device, backing):
    daemon, front_end = serve(device)
    start(front_end)
    settle(daemon.process.pid)
    for size in (401 * MIB, 402 * MIB):
        os.truncate(backing, size)
        run("losetup", "--set-capacity", device)
        see(front_end, size)
    assert BY_THE_CLOCK not in daemon.errors()


def test_growth_of_a_partition_is_noticed_by_the_clock(serve, tmp_path):
    with loop_device(image(tmp_path / "disk.img", 64 * MIB), "--partscan") as disk:
        run("sfdisk", "--quiet", disk, text="label: dos\n2048,16M\n")
        run("partx", "--update", disk)
        daemon, front_end = serve(Path(f"{disk}p1"))
        start(front_end)
        assert BY_THE_CLOCK in daemon.errors()
        run("resizepart", disk, "1", str(32 * MIB // 512))
        see(front_end, 32 * MIB)
        daemon.end()


def test_a_file_that_others_may_change_unheard_is_looked_at_by_the_clock(serve, tmp_path):
    with mounted("none", tmp_path / "ramfs", "-t", "ramfs") as place:
        path = image(place / "a.img", MIB)
        daemon, front_end = serve(path, "--cache", "writeback")
        start(front_end)
        assert BY_THE_CLOCK in daemon.errors()
        os.truncate(path, 2 * MIB)
        see(front_end, 2 * MIB)
        daemon.end()
