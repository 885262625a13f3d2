# SPDX-License-Identifier: Apache-2.0
"""Requests that an image fails are held until it takes them, where the error policy says so."""

import os
import signal
import struct
import time

import pytest

from harness.daemon import Taker, image, run
from harness.dirtylog import DirtyLog
from harness.frontend import DESC_WRITE, DISCARD, FLUSH, IN, IOERR, OK, OUT, WRITE_ZEROES, FrontEnd
from harness.host import HostDaemon
from harness.iommu import OFFSET
from harness.paged_driver import PagedDriver

MIB = 1 << 20
BLOCK = 4096
RANGE = struct.Struct("<QII")

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
recorded = pytest.mark.parametrize("is_lent", [False, True], ids=["no-region", "region"])


def blocks(n):
    return bytes([n + 1]) * BLOCK


def driver(front_end, *, packed=False, is_lent=True, size=128):
    front_end.prepare(packed=packed)
    if is_lent:
        front_end.track_inflight(1, size)
    return front_end.make_disk(0, size)


def faulty(path, rules):
    return f"faulty:{rules}:{path}"


def is_waiting(disk, *heads):
    """Whether none of these requests is answered for a moment."""
    try:
        disk.wait(*heads, timeout=0.1)
    except TimeoutError:
        return True
    return False


@pytest.fixture
def full(tmpfs):
    """An image in a file system that has no space left, and what takes it."""
    filler = tmpfs / "filler"
    path = image(tmpfs / "disk.img", 16 * MIB)
    filler.touch()
    with filler.open("r+b") as file:
        free = os.fstatvfs(file.fileno())
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    return path, filler


def failing(path, serve, *, rules="fail@write", policy="hold", **how):
    daemon, front_end = serve(faulty(path, rules), "--on-error", policy)
    return daemon, front_end, driver(front_end, **how)


@pytest.mark.parametrize("cache", ["none", "writeback"])
@both
@recorded
def test_a_guest_writes_on_once_there_is_space(full, serve, packed, is_lent, cache):
    path, filler = full
    daemon, front_end = serve(path, "--on-enospc", "hold", "--cache", cache)
    disk = driver(front_end, packed=packed, is_lent=is_lent)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(40)]
    daemon.wait_for("held", 40)
    shown = daemon.call("show")
    assert (shown["state"], shown["in_flight"]) == ("held", 0)
    assert shown["held_reason"] == "No space left on device"
    daemon.wait_for_log("requests held", request="write", reason="No space left on device")
    assert disk.read(4096 * 3, BLOCK) == (OK, bytes(BLOCK)), "others are served"
    assert is_waiting(disk, heads[0])
    filler.unlink()
    assert all((done.status, done.written) == (OK, 1) for done in disk.wait(*heads))
    assert path.read_bytes()[: 40 * BLOCK] == b"".join(map(blocks, range(40)))
    daemon.wait_for_log("held requests have ended")
    assert daemon.call("show")["state"] == "serving"
    total = daemon.call("stats")["total"]
    assert (total["writes"], total["errors"], total["in_flight"]) == (40, 0, 0)


@both
def test_requests_of_each_kind_are_done_whole_by_a_retry(path, serve, packed):
    rules = "fail@read*1,fail@write*1,fail@discard*2,fail@zeroes*2"
    daemon, _, disk = failing(path, serve, rules=rules, packed=packed)
    path.write_bytes(b"x" * MIB)
    ranges = RANGE.pack(0, 8, 0) + RANGE.pack(16, 8, 0)
    heads = [
        disk.submit(IN, 512, size=8 * BLOCK),
        disk.submit(OUT, 1024, b"new " * BLOCK),
        disk.submit(DISCARD, 0, ranges),
        disk.submit(WRITE_ZEROES, 0, RANGE.pack(64, 8, 0) + RANGE.pack(80, 8, 0)),
    ]
    daemon.wait_for("held", 4)
    daemon.call("retry")
    read, *others = disk.wait(*heads)
    assert (read.status, read.data) == (OK, b"x" * 8 * BLOCK)
    assert all(done.status == OK for done in others)
    content = path.read_bytes()
    assert content[1024 * 512 :][: 4 * BLOCK] == b"new " * BLOCK
    for sector, size in ((0, 8), (16, 8), (64, 8), (80, 8)):
        assert not any(content[sector * 512 :][: size * 512])
    assert content[8 * 512 : 16 * 512] == b"x" * BLOCK


def test_a_request_that_was_done_in_part_is_done_again_from_its_beginning(serve, tmp_path):
    path = image(tmp_path / "disk.img", 4 * MIB)
    daemon, front_end = serve(path, "--on-error", "hold", "--cache", "writeback")
    disk = driver(front_end)
    path.write_bytes(bytes(range(256)) * 16 * 1024)
    os.truncate(path, 2 * MIB)
    head = disk.submit(IN, (2 * MIB - BLOCK) // 512, size=4 * BLOCK)
    daemon.wait_for("held", 1)
    assert daemon.call("show")["held_reason"] == "the image ends before the disk does"
    os.truncate(path, 4 * MIB)
    daemon.call("retry")
    (done,) = disk.wait(head)
    assert (done.status, done.data) == (OK, bytes(range(256)) * 16 + bytes(3 * BLOCK))


def test_a_retry_that_comes_to_nothing_says_why(path, serve):
    daemon, _, disk = failing(path, serve)
    head = disk.submit(OUT, 0, blocks(1))
    daemon.wait_for("held", 1)
    refused = run("retry", "--control", daemon.control)
    assert refused.returncode == 1
    assert "still held: Input/output error" in refused.stderr
    assert is_waiting(disk, head)


def test_without_a_held_request_there_is_nothing_to_retry(path, serve):
    daemon, *_ = failing(path, serve)
    assert daemon.call("retry") == {"retried": 0, "held": 0, "reason": None}


@pytest.mark.parametrize(
    ("rules", "options", "status"),
    [
        pytest.param("fail@write*1", ("--on-enospc", "hold"), IOERR, id="not-of-this-kind"),
        pytest.param("fail=ENOSPC@write*1", ("--on-error", "hold"), IOERR, id="not-for-space"),
        pytest.param("fail=EDQUOT@write*1", ("--on-enospc", "hold"), OK, id="a-quota-is-space"),
        pytest.param("fail=EROFS@write*1", ("--on-error", "hold"), OK, id="read-only-file-system"),
        pytest.param("fail@write*1", (), IOERR, id="by-default"),
    ],
)
def test_only_errors_of_the_kind_are_held(path, serve, rules, options, status):
    _, front_end = serve(faulty(path, rules), *options)
    assert driver(front_end).write(0, blocks(1)) == status


def test_a_failed_flush_of_the_page_cache_is_reported(path, serve):
    rules, options = faulty(path, "fail@flush*1"), ("--on-error", "hold")
    _, front_end = serve(rules, *options, "--cache", "writeback")
    assert driver(front_end).flush() == IOERR


def test_a_flush_past_the_page_cache_is_held(path, serve):
    daemon, _, disk = failing(path, serve, rules="fail@flush*1")
    head = disk.submit(FLUSH)
    daemon.wait_for("held", 1)
    daemon.call("retry")
    assert [done.status for done in disk.wait(head)] == [OK]


def test_an_error_is_reported_after_the_seconds_that_it_may_be_held(path, serve):
    daemon, _, disk = failing(path, serve, policy="hold:2")
    began = time.monotonic()
    head = disk.submit(OUT, 0, blocks(1))
    daemon.wait_for("state", "held")
    (done,) = disk.wait(head, timeout=20)
    assert done.status == IOERR
    assert time.monotonic() - began >= 2
    daemon.wait_for_log("image failed a request", request="write")
    daemon.wait_for("state", "serving")


@both
def test_what_a_killed_process_held_is_done_by_the_next(path, serve, packed):
    daemon, front_end, disk = failing(path, serve, packed=packed)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(40)]
    daemon.wait_for("held", 40)
    for rules in ("fail@write", "delay=1ms@write"):
        daemon.end(signal.SIGKILL)
        daemon, spare = serve(faulty(path, rules), "--on-error", "hold")
        spare.close()
        front_end.resume(daemon.socket)
        if rules == "fail@write":
            daemon.wait_for("held", 40)
    assert all(done.status == OK for done in disk.wait(*heads))
    assert path.read_bytes()[: 40 * BLOCK] == b"".join(map(blocks, range(40)))


@both
@recorded
def test_a_live_upgrade_carries_held_requests_over(full, serve, packed, is_lent):
    path, filler = full
    daemon, front_end = serve(path, "--on-enospc", "hold")
    disk = driver(front_end, packed=packed, is_lent=is_lent)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(40)]
    daemon.wait_for("held", 40)
    with Taker(daemon) as taker:
        taker.ready()
        assert daemon.end(None) == 0
        taker.wait_for("held", 40)
        with Taker(taker) as another:
            another.ready()
            another.wait_for("held", 40)
            filler.unlink()
            assert all(done.status == OK for done in disk.wait(*heads))
            assert disk.write(8 * 50, blocks(50)) == OK
            assert path.read_bytes()[: 40 * BLOCK] == b"".join(map(blocks, range(40)))
            assert another.call("stats")["total"]["errors"] == 0
            assert another.end() == 0


def test_nothing_that_is_held_is_tried_during_a_pause(full, serve):
    path, filler = full
    daemon, front_end = serve(path, "--on-enospc", "hold")
    disk = driver(front_end)
    head = disk.submit(OUT, 0, blocks(0))
    daemon.wait_for("held", 1)
    assert daemon.pause(5) == 0
    assert daemon.call("show")["state"] == "paused"
    filler.unlink()
    assert run("retry", "--control", daemon.control).returncode == 1
    assert is_waiting(disk, head)
    assert not any(path.read_bytes())
    daemon.call("resume")
    assert [done.status for done in disk.wait(head)] == [OK]


def test_held_requests_beyond_the_end_of_a_disk_that_shrinks_are_answered(path, serve):
    daemon, _, disk = failing(path, serve, rules="fail@write*3")
    beyond = disk.submit(OUT, 3 * MIB // 512, blocks(1))
    across = disk.submit(OUT, (2 * MIB - BLOCK) // 512, 2 * blocks(1))
    within = disk.submit(OUT, 0, blocks(1))
    daemon.wait_for("held", 3)
    daemon.call("resize", 2 * MIB, "--force")
    daemon.call("retry")
    assert [done.status for done in disk.wait(beyond, across, within)] == [IOERR, IOERR, OK]
    assert path.stat().st_size == 2 * MIB


@both
@recorded
def test_a_vring_that_stops_leaves_held_requests_to_the_region_or_reports_them(
    path, serve, packed, is_lent
):
    daemon, front_end, disk = failing(path, serve, packed=packed, is_lent=is_lent)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(5)]
    daemon.wait_for("held", 5)
    base = front_end.stop_ring()
    assert daemon.call("show")["held"] == 0
    if is_lent:
        assert is_waiting(disk, heads[0])
        front_end.start_ring(0, ring=disk.ring, base=base)
        daemon.wait_for("held", 5)
    else:
        assert all(done.status == IOERR for done in disk.wait(*heads))
        assert base == disk.ring.base


def test_a_vring_that_stops_has_its_held_requests_tried_once_more(full, serve):
    path, filler = full
    daemon, front_end = serve(path, "--on-enospc", "hold")
    disk = driver(front_end, is_lent=False)
    head = disk.submit(OUT, 0, blocks(0))
    daemon.wait_for("held", 1)
    filler.unlink()
    front_end.stop_ring()
    assert [done.status for done in disk.wait(head)] == [OK]


def test_a_guest_that_is_migrated_away_is_told_of_its_errors(path, serve):
    daemon, front_end, disk = failing(path, serve)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(5)]
    daemon.wait_for("held", 5)
    with DirtyLog(front_end) as log:
        log.start()
        front_end.stop_ring()
        assert all(done.status == IOERR for done in disk.wait(*heads))


@both
def test_the_end_of_blkd_does_not_wait_for_what_it_holds(path, serve, packed):
    daemon, front_end, disk = failing(path, serve, packed=packed)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(5)]
    daemon.wait_for("held", 5)
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < 3, "less than it gives requests that have begun"
    daemon, spare = serve(path)
    spare.close()
    front_end.resume(daemon.socket)
    assert all(done.status == OK for done in disk.wait(*heads))


def test_a_front_end_without_a_region_has_its_answers_before_blkd_ends(path, serve):
    daemon, _, disk = failing(path, serve, is_lent=False)
    heads = [disk.submit(OUT, n * 8, blocks(n)) for n in range(5)]
    daemon.wait_for("held", 5)
    assert daemon.end() == 0
    assert all(done.status == IOERR for done in disk.wait(*heads))


@both
def test_memory_that_moves_meanwhile_is_found_at_its_new_place(path, serve, packed):
    daemon, front_end, disk = failing(path, serve, rules="fail@read*1,fail@write*1", packed=packed)
    path.write_bytes(b"r" * MIB)
    region = front_end.memory.grow(1 << 16)
    front_end.add_region(region)
    region.memory[:BLOCK] = blocks(1)
    status = disk.memory.alloc(16, region=0)
    heads = []
    for n, kind in enumerate((OUT, IN)):
        header = struct.pack("<IIQ", kind, 0, n * 8)
        flags = DESC_WRITE if kind == IN else 0
        buffer = (region.gpa + n * BLOCK, BLOCK, flags)
        heads.append(disk.ring.add([(header, 16, 0), buffer, (status + n, 1, DESC_WRITE)]))
        disk.ring.publish(heads[-1])
    disk.ring.notify()
    daemon.wait_for("held", 2)
    front_end.remove_region(region)
    assert run("retry", "--control", daemon.control).returncode == 1
    assert daemon.call("show")["held"] == 2, "there is no memory for them"
    front_end.add_region(region)
    daemon.call("retry")
    found = set()
    while found != set(heads):
        found |= {head for head, _ in disk.ring.wait_used()}
    assert disk.memory.read(status, 2) == bytes([OK, OK])
    assert path.read_bytes()[:BLOCK] == blocks(1)
    assert region.memory[BLOCK : 2 * BLOCK] == b"r" * BLOCK


def test_a_vring_that_loses_its_memory_leaves_its_held_requests_alone(path, serve):
    daemon, front_end, disk = failing(path, serve, rules="fail@write*1")
    head = disk.submit(OUT, 0, blocks(0))
    daemon.wait_for("held", 1)
    regions = list(front_end.memory.regions)
    for region in regions:
        front_end.remove_region(region)
    assert run("retry", "--control", daemon.control).returncode == 1
    assert daemon.call("show")["held"] == 1
    for region in regions:
        front_end.add_region(region)
    daemon.call("retry")
    assert [done.status for done in disk.wait(head)] == [OK]


@both
def test_what_an_iommu_takes_away_is_not_touched_by_a_retry(path, serve, packed):
    daemon, front_end = serve(faulty(path, "fail@write*2"), "--on-error", "hold")
    guest = PagedDriver.start(front_end, packed=packed)
    kept, taken = guest.page(blocks(1)), guest.page(blocks(2))
    sent = [guest.submit(OUT, 0, kept), guest.submit(OUT, 8, taken)]
    daemon.wait_for("held", 2)
    assert guest.iommu.invalidate(OFFSET + taken) == 0
    miss = guest.iommu.next_miss()
    assert miss.iova == OFFSET + taken
    guest.iommu.acknowledge(1)
    assert guest.wait(sent[1]) == [IOERR]
    daemon.call("retry")
    assert guest.wait(sent[0]) == [OK]
    assert path.read_bytes()[: 2 * BLOCK] == blocks(1) + bytes(BLOCK)


def test_of_many_that_are_held_only_some_are_tried_at_a_time(path, serve):
    daemon, _, disk = failing(path, serve, rules="fail@write*200", size=1024)
    heads = [disk.submit(OUT, n * 8, blocks(n % 250)) for n in range(190)]
    daemon.wait_for("held", 190)
    daemon.wait_for_log("requests held")
    # 10 strikes are left: two tries of eight use them up, one of all would at once.
    assert all(done.status == OK for done in disk.wait(*heads, timeout=20))
    held = daemon.wait_for_log("held requests have ended")
    assert held["seconds"] >= 2, "they were tried once, and once more after a while"


def test_a_daemon_lists_what_holds_requests_and_retries_by_name(tmp_path):
    with HostDaemon(tmp_path) as host:
        host.ready()
        name = f"faulty:fail@write*1:{host.image('disk.img', MIB)}"
        shown = host.add("disk", name, on_error="hold")
        with FrontEnd.connect(shown["sockets"][0]) as front_end:
            disk = driver(front_end)
            head = disk.submit(OUT, 0, blocks(0))
            deadline = time.monotonic() + 10
            while host.call("GET", "/v1/exports/disk")["state"] != "held":
                assert time.monotonic() < deadline
            (listed,) = host.call("GET", "/v1/exports")["exports"]
            assert listed["state"] == "held"
            assert host.call("POST", "/v1/exports/disk/retry")["retried"] == 1
            assert [done.status for done in disk.wait(head)] == [OK]
            assert host.call("GET", "/v1/exports/disk")["state"] == "serving"
