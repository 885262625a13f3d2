# SPDX-License-Identifier: Apache-2.0
"""A back end dies in the middle of its work, and the next one does the rest."""

import fcntl
import os
import signal
import struct
from dataclasses import dataclass

import pytest

from harness.daemon import image
from harness.frontend import FLUSH, IN, INFLIGHT, OK, OUT, FrontEnd, Request

pytestmark = pytest.mark.usefixtures("each_engine")

SIZE = 1 << 20
SLOW = "delay=1000s@any+0-64K"  # what touches the first 16 blocks is never done in a test's time
VERSION_AT, HEAD = 8, struct.Struct("=HH")  # version and entries of a ring's part

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@dataclass
class BackEnds:
    """Serves the same image by one back end after another."""

    serve: object
    path: object
    rules: str = SLOW

    def first(self, *options):
        self.daemon, self.front_end = self.serve(f"faulty:{self.rules}:{self.path}", *options)
        return self.front_end

    def next(self, *options, rules=None):
        """Kill the present back end and start the next, with other faults or none."""
        self.daemon.end(signal.SIGKILL)
        path = f"faulty:{rules}:{self.path}" if rules else self.path
        self.daemon, spare = self.serve(path, *options)
        spare.close()
        self.front_end.resume(self.daemon.socket)
        return self.daemon


@pytest.fixture
def backends(serve, tmp_path):
    return BackEnds(serve, image(tmp_path / "a.img", SIZE))


def recorded(front_end, *, packed, rings=1, size=128):
    """Drivers on rings whose requests are recorded."""
    front_end.prepare(packed=packed)
    front_end.track_inflight(rings, size)
    return [front_end.make_disk(index, size) for index in range(rings)]


@both
def test_what_was_overtaken_when_the_back_end_died_is_done_by_the_next(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    slow, after = [], []
    for n in range(12):
        slow.append(disk.submit(OUT, n * 8, bytes([n + 1]) * 4096))
        after.append(disk.submit(OUT, (16 + n) * 8, bytes([n + 101]) * 4096))
    assert all(done.status == OK for done in disk.wait(*after))
    backends.next()
    assert all((done.status, done.written) == (OK, 1) for done in disk.wait(*slow))
    assert disk.write(8 * 40, b"n" * 4096) == OK
    found = backends.path.read_bytes()
    assert [found[n * 4096] for n in range(12)] == list(range(1, 13))
    assert [found[(16 + n) * 4096] for n in range(12)] == list(range(101, 113))


@both
def test_how_much_was_recovered_is_in_the_log(backends, packed):
    disks = recorded(backends.first("--queues", 2), packed=packed, rings=2)
    assert all(disk.write(256, bytes(512)) == OK for disk in disks)
    heads = [
        [disk.submit(OUT, n, b"r" * 512) for n in range(3 + i)] for i, disk in enumerate(disks)
    ]
    backends.daemon.wait_for("in_flight", 7)
    daemon = backends.next("--queues", 2)
    for disk, some in zip(disks, heads, strict=True):
        assert all(done.status == OK for done in disk.wait(*some))
    for ring, count in enumerate((3, 4)):
        daemon.wait_for_log("requests recovered", ring=ring, requests=count)
    daemon.end()
    assert daemon.errors().count("requests recovered") == 2


@both
def test_reads_are_answered_with_what_the_disk_holds_then(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    backends.path.write_bytes(b"".join(bytes([n]) * 4096 for n in range(256)))
    slow = [disk.submit(IN, n * 8, size=4096) for n in range(3, 16)]
    assert disk.read(20 * 8, 4096) == (OK, bytes([20]) * 4096)
    backends.next()
    for n, done in enumerate(disk.wait(*slow), 3):
        assert (done.status, done.data, done.written) == (OK, bytes([n]) * 4096, 4097)


@both
def test_a_request_is_carried_from_one_death_to_the_next(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    oldest = disk.submit(OUT, 0, b"o" * 4096)
    for n in range(5):
        assert disk.write(8 * (20 + n), bytes([n]) * 4096) == OK
        backends.next(rules=SLOW)
    newest = disk.submit(OUT, 8, b"n" * 4096)
    backends.daemon.wait_for("in_flight", 2)
    backends.next()
    assert [done.status for done in disk.wait(oldest, newest)] == [OK, OK]
    assert backends.path.read_bytes()[:8192] == b"o" * 4096 + b"n" * 4096


@both
def test_rings_go_round_with_an_old_request_in_flight(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed, size=16)
    oldest = disk.submit(OUT, 0, b"o" * 4096)
    for n in range(40):  # several rounds: of a packed ring, its descriptors are written over
        assert disk.write(8 * (20 + n % 8), bytes([n]) * 4096) == OK
    backends.next()
    assert disk.wait(oldest)[0].status == OK
    assert backends.path.read_bytes()[:4096] == b"o" * 4096
    for _ in range(40):
        assert disk.flush() == OK


@both
def test_every_ring_has_its_own_record(backends, packed):
    disks = recorded(backends.first("--queues", 3, "--workers", 2), packed=packed, rings=3)
    slow = [disk.submit(OUT, 8 * n, bytes([n + 1]) * 4096) for n, disk in enumerate(disks)]
    for n, disk in enumerate(disks):
        assert disk.write(8 * (20 + n), b"f" * 4096) == OK
    backends.next("--queues", 3)
    for disk, head in zip(disks, slow, strict=True):
        assert disk.wait(head)[0].status == OK
    assert [backends.path.read_bytes()[4096 * n] for n in range(3)] == [1, 2, 3]


@both
def test_a_flush_waits_for_what_its_driver_waited_for(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    heads = [disk.submit(OUT, 0, b"w" * 4096), disk.submit(FLUSH)]
    backends.next()
    assert [done.status for done in disk.wait(*heads)] == [OK, OK]


@both
@pytest.mark.parametrize("image_name", ["null:1M", "memory"])
def test_what_is_answered_at_once_is_recorded_as_well(tmpfs, serve, image_name, packed):
    path = image_name if image_name.startswith("null") else image(tmpfs / "a.img", SIZE)
    backends = BackEnds(serve, path)
    (disk,) = recorded(backends.first(), packed=packed)
    slow = disk.submit(OUT, 0, b"s" * 4096)
    for n in range(300):
        assert disk.write(8 * (20 + n % 50), bytes([n % 256]) * 4096) == OK
    backends.next()
    assert disk.wait(slow)[0].status == OK
    assert disk.get_id()[0] == OK


@both
def test_a_back_end_that_ends_in_good_order_leaves_behind_what_does_not_end(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    slow = disk.submit(OUT, 0, b"s" * 4096)
    assert disk.write(8 * 20, b"f" * 4096) == OK
    assert backends.daemon.end(signal.SIGTERM, timeout=10) == 0
    backends.daemon, spare = backends.serve(backends.path)
    spare.close()
    backends.front_end.resume(backends.daemon.socket)
    assert disk.wait(slow)[0].status == OK


@both
def test_a_pause_that_runs_out_leaves_the_rest_recorded(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    slow = disk.submit(OUT, 0, b"s" * 4096)
    backends.daemon.wait_for("in_flight", 1)
    assert backends.daemon.pause(0.1) == 1
    waiting = disk.submit(OUT, 8 * 20, b"w" * 4096)
    backends.next()
    assert [done.status for done in disk.wait(slow, waiting)] == [OK, OK]


@pytest.mark.parametrize("cache", ["none", "writethrough"])
def test_write_through_that_a_driver_chose_outlives_the_back_end(backends, cache):
    recorded(backends.first("--cache", cache), packed=False)
    backends.front_end.write_config(32, b"\0")
    for _ in range(2):
        backends.next("--cache", "none")
        assert backends.front_end.config(32, 1) == b"\0"


@pytest.mark.parametrize("chosen", [None, b"\1"], ids=["nothing", "write-back"])
def test_write_through_that_is_configured_outweighs_write_back_that_was_chosen(backends, chosen):
    recorded(backends.first("--cache", "none"), packed=False)
    if chosen:
        backends.front_end.write_config(32, chosen)
    backends.next("--cache", "writethrough")
    assert backends.front_end.config(32, 1) == b"\0"


def test_a_file_that_takes_no_note_ends_nobody(backends):
    front_end = backends.first()
    front_end.prepare()
    front_end.get_inflight(1, 128)
    payload, ours = front_end.inflight
    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
    os.write(fd, os.pread(ours, 1 << 15, 0))
    front_end.set(Request.SET_INFLIGHT_FD, payload, [fd])
    fcntl.fcntl(fd, 1033, 0x10)  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
    front_end.write_config(32, b"\0")
    assert front_end.make_disk().flush() == OK
    os.close(fd)


def test_a_region_in_huge_pages_is_taken_or_refused_and_ends_nobody(backends):
    front_end = backends.first()
    front_end.prepare()
    try:
        fd = os.memfd_create("region", os.MFD_HUGETLB)
        os.ftruncate(fd, 2 << 20)
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")
    front_end.ack(Request.SET_INFLIGHT_FD, INFLIGHT.pack(2112, 0, 1, 128), [fd])
    front_end.write_config(32, b"\0")
    assert front_end.capacity() == SIZE // 512
    os.close(fd)


def test_what_lies_behind_a_region_of_others_is_left_alone(backends):
    front_end = backends.first()
    front_end.prepare()
    fd = os.memfd_create("region")
    os.ftruncate(fd, 8192)
    os.pwrite(fd, b"theirs, not ours", 2112)
    front_end.set(Request.SET_INFLIGHT_FD, INFLIGHT.pack(2112, 0, 1, 128), [fd])
    front_end.write_config(32, b"\0")
    assert os.pread(fd, 16, 2112) == b"theirs, not ours"
    os.close(fd)


def test_a_region_of_another_back_end_is_not_made_longer(backends):
    front_end = backends.first()
    front_end.prepare()
    fd = os.memfd_create("region")
    os.ftruncate(fd, 2112)
    front_end.set(Request.SET_INFLIGHT_FD, INFLIGHT.pack(2112, 0, 1, 128), [fd])
    front_end.write_config(32, b"\0")
    assert os.fstat(fd).st_size == 2112
    os.close(fd)


@both
def test_what_is_left_is_done_before_a_ring_stops_though_it_is_paused(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    slow = [disk.submit(OUT, 8 * n, b"s" * 4096) for n in range(3)]
    assert disk.write(8 * 20, b"f" * 4096) == OK
    backends.daemon.end(signal.SIGKILL)
    backends.daemon, spare = backends.serve(backends.path)
    spare.close()
    backends.daemon.call("pause")
    backends.front_end.resume(backends.daemon.socket)
    waiting = disk.submit(FLUSH)
    base = backends.front_end.stop_ring()
    assert all(done.status == OK for done in disk.wait(*slow))
    if not packed:
        assert base == 4
    backends.daemon.call("resume")
    backends.front_end.start_ring(0, ring=disk.ring, base=base)
    assert disk.wait(waiting)[0].status == OK


def test_requests_given_back_after_the_front_end_looked_are_not_done_again(backends):
    backends.rules = "delay=1s@write"
    (disk,) = recorded(backends.first(), packed=False)
    heads = [disk.submit(OUT, 8 * n, bytes([n + 1]) * 4096) for n in range(4)]
    assert disk.read(0, 512)[0] == OK  # what came before it has been fetched
    early = disk.ring.used_idx
    backends.front_end.sock.close()
    backends.daemon.wait_for("front_end", None)
    assert all(done.status == OK for done in disk.wait(*heads))
    backends.front_end.resume(backends.daemon.socket, base=early)
    assert disk.write(8 * 20, b"n" * 4096) == OK
    assert disk.ring.used_idx == 6
    assert backends.daemon.call("stats")["total"]["writes"] == 5


@both
def test_a_ring_that_its_driver_broke_serves_again_after_stop_and_start(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    slow = disk.submit(OUT, 8 * 20, b"s" * 4096)
    assert disk.wait(slow)[0].status == OK
    disk.ring.publish(disk.ring.add([(b"no header", 9, 0)]))
    disk.ring.kick()
    assert disk.ring.broken()
    base = backends.front_end.stop_ring()
    backends.front_end.start_ring(0, ring=disk.ring, base=base)
    assert disk.write(8 * 21, b"n" * 4096) == OK


def test_the_region_is_sealed_and_ours_alone_to_size(backends):
    front_end = backends.first()
    front_end.negotiate()
    front_end.get_inflight(2, 128)
    payload, fd = front_end.inflight
    size, offset, queues, queue_size = INFLIGHT.unpack(payload[: INFLIGHT.size])
    assert (size, offset, queues, queue_size) == (2 * 16448, 0, 2, 128)
    assert os.fstat(fd).st_size >= size
    assert os.pread(fd, size, 0) == bytes(size)
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK
    assert seals & fcntl.F_SEAL_GROW
    assert not seals & fcntl.F_SEAL_WRITE


@pytest.mark.parametrize("padding", [0, 4])
def test_the_answer_is_as_long_as_the_question(backends, padding):
    front_end = backends.first()
    front_end.negotiate()
    front_end.get_inflight(1, 64, padding)
    assert front_end.inflight


def region(front_end, *, change=None, length=None, kind="memfd", negotiate=True):
    """Send a region of two rings: the answer."""
    if negotiate:
        front_end.negotiate()
    front_end.get_inflight(2, 128)
    payload, ours = front_end.inflight
    content = bytearray(os.pread(ours, 2 * 16448, 0))
    for at, new in (change or {}).items():
        content[at : at + len(new)] = new
    fd = os.memfd_create("region") if kind == "memfd" else os.eventfd(0)
    try:
        if kind == "memfd":
            os.write(fd, content[: len(content) if length is None else length])
        return front_end.ack(Request.SET_INFLIGHT_FD, payload, [fd])
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "part",
    [{"length": 2 * 16448 - 1}, {"length": 0}, {"kind": "eventfd"}],
    ids=["short file", "no file", "no memory"],
)
def test_a_region_that_is_no_memory_is_refused(backends, part):
    front_end = backends.first()
    assert region(front_end, **part) != 0
    assert front_end.capacity() == SIZE // 512  # the connection goes on


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({VERSION_AT: HEAD.pack(1, 1024)}, True),
        ({VERSION_AT: HEAD.pack(2, 1024)}, False),
        ({VERSION_AT: HEAD.pack(1, 1023)}, False),
        ({16448 + VERSION_AT: HEAD.pack(1, 0)}, False),
        ({0: b"\1", VERSION_AT: HEAD.pack(1, 1024)}, False),
    ],
    ids=["ours", "version", "entries", "second ring", "features"],
)
def test_a_region_of_another_kind_of_back_end_costs_no_guest_its_disk(backends, change, known):
    front_end = backends.first()
    front_end.prepare()
    assert region(front_end, change=change, negotiate=False) == 0
    assert front_end.make_disk().flush() == OK
    assert ("requests in flight not recorded" not in backends.daemon.errors()) is known


@both
def test_rings_that_are_larger_than_the_front_end_says_are_recorded(backends, packed, each_engine):
    front_end = backends.first()  # as QEMU 10, whose rings are of 1024 descriptors whatever it asks
    front_end.prepare(packed=packed)
    front_end.track_inflight(1, 64)
    disk = front_end.make_disk(0, 1024)
    slow = [disk.submit(OUT, 0, bytes([n]) * 4096) for n in range(100)]
    assert disk.write(8 * 20, b"f" * 4096) == OK
    backends.next()
    assert all(done.status == OK for done in disk.wait(*slow))
    last = [99] if each_engine == "kernel" else range(100)  # the late one begins any first
    assert backends.path.read_bytes()[:4096] in [bytes([n]) * 4096 for n in last]
    assert "not recorded" not in backends.daemon.errors()


@both
def test_a_region_of_an_older_blkd_is_recovered(backends, packed):
    front_end = backends.first()
    front_end.prepare(packed=packed)
    front_end.track_inflight_as_of_old(packed=packed)
    disk = front_end.make_disk(1, 128)
    slow = disk.submit(OUT, 0, b"s" * 4096)
    assert disk.write(8 * 20, b"f" * 4096) == OK
    backends.next()
    assert disk.wait(slow)[0].status == OK
    assert HEAD.unpack(os.pread(front_end.inflight[1], 4, VERSION_AT)) in {(0, 0), (1, 128)}


def test_a_ring_that_the_region_has_no_room_for_is_served_and_that_is_said_once(backends):
    front_end = backends.first()
    front_end.prepare()
    front_end.track_inflight_as_of_old(packed=False)
    disks = [front_end.make_disk(index, 256) for index in range(2)]
    base = front_end.stop_ring(0)
    front_end.start_ring(0, ring=disks[0].ring, base=base)
    assert [disk.write(8 * 20, b"w" * 4096) for disk in disks] == [OK, OK]
    assert backends.daemon.errors().count("requests in flight not recorded") == 1


@both
def test_a_small_ring_is_recorded_beside_one_that_has_no_room(backends, packed):
    front_end = backends.first()
    front_end.prepare(packed=packed)
    front_end.track_inflight_as_of_old(packed=packed)
    large, small = front_end.make_disk(0, 256), front_end.make_disk(1, 64)
    slow = small.submit(OUT, 0, b"s" * 4096)
    assert large.write(8 * 20, b"f" * 4096) == OK
    backends.daemon.wait_for("in_flight", 1)
    backends.next()
    assert small.wait(slow)[0].status == OK


def test_a_damaged_record_breaks_its_own_ring_only(backends):
    disks = recorded(backends.first("--queues", 2), packed=True, rings=2)
    assert [disk.write(8 * 20, b"f" * 4096) for disk in disks] == [OK, OK]
    _, fd = backends.front_end.inflight
    os.pwrite(fd, b"\xff" * 64, 12)  # heads and positions of ring 0
    backends.next("--queues", 2)
    assert disks[0].ring.broken()
    assert disks[1].write(8 * 21, b"g" * 4096) == OK
    assert "in-flight region damaged" in backends.daemon.errors()


def test_a_region_whose_file_shrinks_ends_the_connection_and_not_the_process(backends):
    front_end = backends.first("--queues", 1)
    front_end.prepare()
    fd = os.memfd_create("region")
    os.ftruncate(fd, 2112)
    payload = INFLIGHT.pack(2112, 0, 1, 128)
    front_end.set(Request.SET_INFLIGHT_FD, payload, [fd])
    disk = front_end.make_disk(0, 128)
    assert disk.flush() == OK
    os.ftruncate(fd, 0)
    disk.submit(FLUSH)
    assert front_end.wait_closed()
    os.close(fd)
    with FrontEnd.connect(backends.daemon.socket) as other:
        assert other.disk().flush() == OK


@both
def test_a_region_that_says_nonsense_while_it_is_used_does_no_harm(backends, packed):
    (disk,) = recorded(backends.first(), packed=packed)
    _, fd = backends.front_end.inflight
    size = os.fstat(fd).st_size
    for n in range(50):
        os.pwrite(fd, bytes([n * 37 % 256]) * size, 0)
        assert disk.write(8 * (20 + n), bytes([n]) * 4096) == OK
