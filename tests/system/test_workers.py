# SPDX-License-Identifier: Apache-2.0
"""Several queues on one worker, and where workers run."""

import re
import struct
from pathlib import Path

import pytest

from harness.daemon import PROGRAMS, Process, image, run
from harness.frontend import DESC_WRITE, IN, OK, OUT, Disk, GuestMemory

pytestmark = pytest.mark.usefixtures("each_engine")

MIB = 1 << 20
SIZE = 4 * MIB
FLOOD = 1000
"""Writes of 1 MiB: some tenths of a second on any machine."""


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "a.img", SIZE)


def workers(daemon):
    """The CPUs that each worker thread may run on, by its name."""
    found = {}
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        status = (task / "status").read_text()
        name = re.search(r"^Name:\t(.*)$", status, re.MULTILINE)[1]
        if name.startswith("blkd-io-"):
            found[name] = re.search(r"^Cpus_allowed_list:\t(.*)$", status, re.MULTILINE)[1]
    return found


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (3, 3), (8, 4)])
def test_queues_share_as_many_workers_as_configured(serve, path, count, threads):
    daemon, front_end = serve(path, "--workers", count)
    disks = list(front_end.disks(4, 16))
    assert len(workers(daemon)) == threads
    assert daemon.call("show")["workers"] == threads
    for turn in range(8):
        heads = [d.submit(OUT, n * 8, bytes([turn, n]) * 2048) for n, d in enumerate(disks)]
        for disk, head in zip(disks, heads, strict=True):
            assert disk.wait(head)[0].status == OK
    for n, disk in enumerate(disks):
        assert disk.read(n * 8, 4096) == (OK, bytes([7, n]) * 2048)
    assert [ring["writes"] for ring in daemon.call("stats")["rings"]] == [8] * 4


@pytest.mark.usefixtures("kernel_only")
def test_a_queue_that_floods_does_not_starve_its_neighbour(tmpfs, serve):
    """Requests beside a full ring wait for a turn of that ring each, not for its end."""
    path = image(tmpfs / "a.img", SIZE)
    daemon, front_end = serve(path, "--workers", 1, "--queues", 2)
    front_end.memory = GuestMemory([16 * MIB])
    flood, quiet = front_end.disks(2, 1024)
    memory, ring = front_end.memory, flood.ring
    data = memory.alloc(MIB, 4096)
    daemon.call("pause")
    header = struct.pack("<IIQ", OUT, 0, 0)
    chain = [(header, 16, 0), (data, MIB, 0), (memory.alloc(16), 1, DESC_WRITE)]
    ring.publish(*(ring.add_indirect(chain) for _ in range(FLOOD)))
    first = quiet.submit(IN, 0, size=4096)
    daemon.call("resume")
    assert quiet.wait(first)[0].status == OK
    for sector in range(5):
        assert quiet.read(sector, 512)[0] == OK
    assert 0 < ring.used_idx < FLOOD
    taken = 0
    while taken < FLOOD:
        taken += len(ring.wait_used())
    assert quiet.read(0, 512)[0] == OK


def test_workers_are_pinned_in_turn(serve, path):
    daemon, front_end = serve(path, "--workers", 3, "--cpus", "1,0")
    list(front_end.disks(4, 16))
    assert workers(daemon) == {"blkd-io-0": "1", "blkd-io-1": "0", "blkd-io-2": "1"}
    assert daemon.call("show")["cpus"] == [1, 0]


def test_without_cpus_nothing_is_pinned(serve, path):
    daemon, front_end = serve(path, "--workers", 2)
    list(front_end.disks(2, 16))
    own = re.search(
        r"^Cpus_allowed_list:\t(.*)$", Path("/proc/self/status").read_text(), re.MULTILINE
    )[1]
    assert set(workers(daemon).values()) == {own}


def test_cpus_that_cannot_be_used_are_refused(path, tmp_path):
    done = run("serve", path, "--socket", tmp_path / "s", "--cpus", "4095")
    assert done.returncode == 1
    assert "CPU 4095 cannot be used" in done.stderr
    assert "hint: this process may run on" in done.stderr


@pytest.mark.parametrize("cpus", ["x", "1-", "-1", "3-1", "1,,x"])
def test_what_is_no_list_of_cpus_is_wrong_usage(path, tmp_path, cpus):
    done = run("serve", path, "--socket", tmp_path / "s", f"--cpus={cpus}")
    assert done.returncode == 2
    assert "--cpus" in done.stderr


def test_one_cpu_gets_one_worker(path, tmp_path):
    socket = tmp_path / "disk.sock"
    program = ["blkd", "serve", path, "--socket", socket, "--queues", 8, "--json"]
    pinned = ["/usr/bin/taskset", "-c", "0", PROGRAMS / program[0]]
    with Process([*pinned, *program[1:]], tmp_path / "log") as daemon:
        assert '"workers":1' in daemon.line()


def test_rings_of_one_worker_pause_stop_and_start_alone_or_together(serve, path):
    daemon, front_end = serve(path, "--workers", 1)
    disks = list(front_end.disks(3, 16))
    daemon.call("pause")
    heads = [disk.submit(OUT, n * 8, bytes([n]) * 512) for n, disk in enumerate(disks)]
    assert daemon.call("stats")["total"]["writes"] == 0
    daemon.call("resume")
    for disk, head in zip(disks, heads, strict=True):
        assert disk.wait(head)[0].status == OK
    base = front_end.stop_ring(1)
    assert base == 1
    assert all(disks[n].write(0, bytes(512)) == OK for n in (0, 2))
    front_end.start_ring(1, ring=disks[1].ring)
    assert disks[1].read(8, 512) == (OK, bytes([1]) * 512)


def test_memory_changes_under_all_rings_of_a_worker(serve, path):
    _, front_end = serve(path, "--workers", 1)
    disks = list(front_end.disks(3, 16))
    for _ in range(4):
        heads = [[disk.submit(OUT, n, bytes(512)) for n in range(4)] for disk in disks]
        region = front_end.memory.grow(MIB)
        front_end.add_region(region)
        for disk, of_disk in zip(disks, heads, strict=True):
            assert all(done.status == OK for done in disk.wait(*of_disk))


def test_a_broken_ring_leaves_its_worker_s_other_rings_alone(serve, path):
    daemon, front_end = serve(path, "--workers", 1)
    bad, good = front_end.disks(2, 16)
    bad.ring.avail_idx = 1000
    bad.ring.kick()
    assert bad.ring.broken()
    assert good.write(0, b"g" * 512) == OK
    assert daemon.call("show")["broken_rings"] == [0]
    front_end.stop_ring(0)
    bad.ring.rewind()
    front_end.start_ring(0, ring=bad.ring)
    assert Disk(front_end, bad.ring).read(0, 512) == (OK, b"g" * 512)
