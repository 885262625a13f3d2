# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a live migration: what blkd writes into guest memory is marked, and when."""

import os
import random
import struct

import pytest

from harness.daemon import image
from harness.dirtylog import PAGE, DirtyLog, areas, log_data, log_ring, pages, union
from harness.frontend import DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, FrontEnd, Request
from harness.vring import DESC_WRITE, MIB

SIZE = 16 * MIB
OK, IOERR = 0, 1
UNANSWERED = 0xFF  # a status byte as its driver leaves it to the device
RANGE = struct.pack("<QII", 0, 8, 0)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    """The layout of the rings."""
    return request.param


ENGINES = {
    "uring": ["--engine", "uring"],
    "inline": ["--cache", "writeback", "--engine", "inline"],
    "bounced": [],
}


@pytest.fixture
def path(tmp_path):
    found = image(tmp_path / "disk.img", SIZE)
    found.write_bytes(os.urandom(SIZE))
    return found


class Requests:
    """Requests whose buffers are known, on one ring."""

    def __init__(self, front_end, ring):
        self.front_end, self.ring, self.memory = front_end, ring, front_end.memory
        self._next = 0

    def submit(self, kind, *buffers, sector=0, flags=DESC_WRITE):
        """Send a request with these (address, length): the address of its status byte."""
        status = self.memory.alloc(1, PAGE)
        self.memory.write(status, bytes([UNANSWERED]))
        header = (struct.pack("<IIQ", kind, 0, sector), 16, 0)
        chain = [header, *((at, size, flags) for at, size in buffers), (status, 1, DESC_WRITE)]
        self.ring.publish(self.ring.add(chain))
        self.ring.kick()
        return status

    def done(self, *arguments, **options):
        """Send one and wait for it: the address of its status byte."""
        status = self.submit(*arguments, **options)
        assert self.ring.wait_used()
        return status

    def status(self, at):
        return self.memory.read(at, 1)[0]

    def buffer(self, size, shift=0):
        return self.memory.alloc(size + shift, PAGE) + shift


@pytest.fixture
def start(serve, path, packed):
    """A ring of a served disk, and a log that is in use."""
    logs = []

    def start(*options, **log):
        _, front_end = serve(path, *options)
        front_end.prepare(packed=packed)
        ring = front_end.start_ring(0, 128)
        logs.append(DirtyLog(front_end, **log))
        logs[-1].start()
        return Requests(front_end, ring), logs[-1]

    yield start
    for log in logs:
        log.__exit__()


def settled(requests, log):
    """Forget what was marked so far, the device's wish to be kicked included."""
    requests.done(FLUSH)
    requests.front_end.enable(0, on=False)
    requests.front_end.enable(0, on=True)
    log.take()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("length", [512, 3 * PAGE + 512, MIB], ids=lambda n: f"{n}-bytes")
def test_a_read_marks_its_data_its_status_and_the_ring(start, engine, length):
    requests, log = start(*ENGINES[engine])
    settled(requests, log)
    data = requests.buffer(length, shift=3 if engine == "bounced" else 0)
    status = requests.done(IN, (data, length), sector=8)
    assert requests.status(status) == OK
    assert log.take() == pages(data, length) | pages(status, 1) | areas(requests.ring)


def test_a_read_of_many_buffers_in_two_regions_marks_them_all(start):
    requests, log = start("--engine", "uring")
    settled(requests, log)
    memory = requests.memory
    buffers = [(memory.alloc(PAGE, PAGE, region=n % 2), PAGE) for n in range(40)]
    buffers += [(memory.alloc(2 * PAGE, PAGE, region=1) + PAGE - 512, 1024)]
    status = requests.done(IN, *buffers)
    assert requests.status(status) == OK
    data = union(pages(*buffer) for buffer in buffers)
    assert log.take() == data | pages(status, 1) | areas(requests.ring)


@pytest.mark.parametrize(
    ("kind", "out"),
    [
        pytest.param(OUT, bytes(8 * 512), id="write"),
        pytest.param(FLUSH, b"", id="flush"),
        pytest.param(DISCARD, RANGE, id="discard"),
        pytest.param(WRITE_ZEROES, RANGE, id="write-zeroes"),
        pytest.param(99, b"", id="unknown"),
    ],
)
@pytest.mark.parametrize("engine", ["uring", "inline"])
def test_what_writes_no_data_marks_its_status_and_the_ring(start, kind, out, engine):
    requests, log = start(*ENGINES[engine])
    settled(requests, log)
    buffers = []
    if out:
        buffers = [(requests.buffer(len(out)), len(out))]
        requests.memory.write(buffers[0][0], out)
    status = requests.done(kind, *buffers, flags=0)
    assert requests.status(status) != UNANSWERED
    assert log.take() == pages(status, 1) | areas(requests.ring)


def test_the_disk_s_serial_is_marked(start):
    requests, log = start()
    settled(requests, log)
    data = requests.buffer(2 * PAGE) + PAGE - 10
    status = requests.done(GET_ID, (data, 20))
    assert requests.memory.read(data, 4) == b"blkd"
    assert log.take() == pages(data, 20) | pages(status, 1) | areas(requests.ring)


def test_a_null_disk_marks_what_it_says_to_have_written(serve, packed):
    _, front_end = serve("null:64M")
    front_end.prepare(packed=packed)
    requests = Requests(front_end, front_end.start_ring(0, 128))
    with DirtyLog(front_end) as log:
        log.start()
        settled(requests, log)
        data = requests.buffer(PAGE)
        status = requests.done(IN, (data, PAGE))
        assert log.take() == pages(data, PAGE) | pages(status, 1) | areas(requests.ring)


def test_a_refused_read_marks_its_status_only(start):
    requests, log = start()
    settled(requests, log)
    status = requests.done(IN, (requests.buffer(PAGE), PAGE), sector=SIZE // 512)
    assert requests.status(status) == IOERR
    assert log.take() == pages(status, 1) | areas(requests.ring)


def test_a_read_that_fails_half_way_marks_all_that_it_may_have_written(start, path):
    requests, log = start("--engine", "uring")
    settled(requests, log)
    os.truncate(path, SIZE // 2)
    data = requests.buffer(16 * PAGE)
    status = requests.done(IN, (data, 16 * PAGE), sector=SIZE // 2 // 512 - 8)
    assert requests.status(status) == IOERR
    assert log.take() == pages(data, 16 * PAGE) | pages(status, 1) | areas(requests.ring)


@pytest.mark.parametrize("engine", ["uring", "inline"])
def test_data_is_marked_before_the_driver_sees_the_answer(start, engine):
    requests, log = start(*ENGINES[engine])
    ring, data = requests.ring, requests.buffer(64 * PAGE)
    for turn in range(200):
        at = data + turn % 64 * PAGE
        status = requests.submit(IN, (at, PAGE), sector=turn * 8)
        while not (answered := ring.take_used()):  # a driver that polls
            pass
        marked = log.has(at // PAGE), log.has(status // PAGE), log.has(ring.used // PAGE)
        assert answered
        assert all(marked), turn
        log.take()


def test_workers_share_a_log(serve, path, packed):
    _, front_end = serve(path, "--queues", 4, "--workers", 4)
    disks = list(front_end.disks(4, 64, packed=packed))
    with DirtyLog(front_end) as log:
        log.start()
        each = [Requests(front_end, disk.ring) for disk in disks]
        wanted = set()
        for turn in range(16):
            for n, requests in enumerate(each):
                data = requests.buffer(PAGE)
                status = requests.submit(IN, (data, PAGE), sector=8 * (4 * turn + n))
                wanted |= pages(data, PAGE) | pages(status, 1)
        for requests in each:
            seen = 0
            while seen < 16:
                answered = requests.ring.wait_used()
                assert answered
                seen += len(answered)
        assert log.take() >= wanted | union(areas(disk.ring) for disk in disks)


# Switched at run time


def test_nothing_is_marked_before_and_after(start):
    requests, log = start()
    log.stop()
    log.take()
    requests.done(IN, (requests.buffer(PAGE), PAGE))
    assert log.take() == set()
    log.start()
    data = requests.buffer(PAGE)
    requests.done(IN, (data, PAGE))
    assert log.take() >= pages(data, PAGE) | areas(requests.ring)
    log.stop()
    log.take()
    requests.done(IN, (requests.buffer(PAGE), PAGE))
    assert log.take() == set()


def test_data_and_rings_are_switched_apart(start):
    requests, log = start()
    log_ring(requests.front_end, requests.ring, on=False)
    log.take()
    data = requests.buffer(PAGE)
    status = requests.done(IN, (data, PAGE))
    assert log.take() == pages(data, PAGE) | pages(status, 1)
    log_ring(requests.front_end, requests.ring, on=True)
    log_data(requests.front_end, on=False)
    log.take()
    requests.done(IN, (requests.buffer(PAGE), PAGE))
    assert log.take() == areas(requests.ring)


def test_a_request_under_way_is_marked_when_it_ends(serve, path, packed):
    _, front_end = serve(f"faulty:delay=300ms@read:{path}")
    front_end.prepare(packed=packed)
    requests = Requests(front_end, front_end.start_ring(0, 128))
    data = requests.buffer(PAGE)
    status = requests.submit(IN, (data, PAGE))
    with DirtyLog(front_end) as log:
        log.start()
        assert requests.status(status) == UNANSWERED, "it is still under way"
        assert requests.ring.wait_used()
        assert log.take() >= pages(data, PAGE) | pages(status, 1) | areas(requests.ring)


def test_a_used_ring_is_logged_where_the_front_end_says(start, packed):
    requests, log = start()
    ring, elsewhere = requests.ring, 31 * MIB
    addresses = requests.front_end.ring_addresses(ring, elsewhere)
    requests.front_end.set(Request.SET_VRING_ADDR, addresses)
    log.take()
    status = requests.done(FLUSH)
    descriptors = pages(ring.desc, 16 * ring.size) if packed else set()
    used = pages(elsewhere, 4 if packed else 6 + 8 * ring.size)
    assert log.take() == pages(status, 1) | used | descriptors


def test_a_log_begins_anywhere_in_its_file(start):
    requests, log = start(offset=12345)
    settled(requests, log)
    data = requests.buffer(PAGE)
    status = requests.done(IN, (data, PAGE))
    assert log.take() == pages(data, PAGE) | pages(status, 1) | areas(requests.ring)


def test_a_log_is_replaced_when_memory_grows(start):
    requests, log = start(covered=18 * MIB)
    front_end = requests.front_end
    with DirtyLog(front_end, covered=64 * MIB) as larger:
        assert larger.use() == 0
        log.take()
        front_end.add_region(front_end.memory.grow(8 * MIB))
        data = front_end.memory.alloc(PAGE, PAGE, region=2)
        assert data > 18 * MIB
        status = requests.done(IN, (data, PAGE))
        assert larger.take() >= pages(data, PAGE) | pages(status, 1) | areas(requests.ring)
        assert log.take() == set()
        assert not requests.ring.broken(timeout=0)


def test_a_front_end_that_comes_next_logs_nothing(start):
    requests, log = start()
    socket = requests.front_end.sock.getpeername()
    requests.front_end.close()
    log.take()
    with FrontEnd.connect(socket) as next_one:
        disk = next_one.disk()
        assert disk.read(0, PAGE)[0] == OK
    assert log.take() == set()


# Hostile logs


def test_a_guest_address_beyond_the_log_breaks_its_ring_alone(serve, path, packed):
    daemon, front_end = serve(path)
    bad, good = front_end.disks(2, packed=packed)
    requests = Requests(front_end, bad.ring)
    with DirtyLog(front_end, covered=8 * MIB) as log:
        log.start()
        data = front_end.memory.alloc(PAGE, PAGE, region=1)
        requests.submit(IN, (data, PAGE))
        assert bad.ring.broken()
        assert bad.ring.take_used() == [], "an answer that is not marked would be lost"
        assert good.read(0, PAGE)[0] == OK
        assert daemon.call("show")["broken_rings"] == [0]
        assert "beyond the dirty log" in daemon.errors()


def test_a_status_byte_beyond_the_log_breaks_its_ring(start):
    requests, _ = start(covered=8 * MIB)
    status = requests.memory.alloc(1, PAGE, region=1)
    header = (struct.pack("<IIQ", FLUSH, 0, 0), 16, 0)
    requests.ring.publish(requests.ring.add([header, (status, 1, DESC_WRITE)]))
    requests.ring.kick()
    assert requests.ring.broken()
    assert requests.ring.take_used() == []


def test_a_front_end_that_accepts_logging_and_gives_no_log_is_served(serve, path, packed):
    _, front_end = serve(path)
    disk = front_end.disk(packed=packed)
    log_data(front_end, on=True)
    log_ring(front_end, disk.ring, on=True)
    assert disk.read(0, PAGE)[0] == OK


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        pytest.param(0, 0, id="empty"),
        pytest.param(PAGE + 1, 0, id="file-too-small"),
        pytest.param(1, PAGE, id="offset-at-the-end"),
        pytest.param(PAGE, 2**63 - PAGE, id="offset-huge"),
        pytest.param(2**64 - 1, 2, id="wraps"),
        pytest.param(8, 0, id="ring-beyond-it"),
    ],
)
def test_a_log_that_cannot_be_is_refused_and_the_old_one_stays(start, size, offset):
    requests, log = start(covered=PAGE * PAGE * 8)
    front_end = requests.front_end
    payload = struct.pack("=QQ", size, offset)
    assert front_end.call(Request.SET_LOG_BASE, payload, [log.fd]) != bytes(8)
    settled(requests, log)
    data = requests.buffer(PAGE)
    requests.done(IN, (data, PAGE))
    assert log.take() >= pages(data, PAGE)


def test_a_log_that_is_no_memory_file_is_refused(start):
    requests, log = start()
    eventfd = os.eventfd(0)
    try:
        answer = requests.front_end.call(Request.SET_LOG_BASE, log.payload, [eventfd])
    finally:
        os.close(eventfd)
    assert answer != bytes(8)


def test_a_ring_logged_beyond_the_log_is_refused_and_goes_on(start):
    requests, _ = start()
    addresses = requests.front_end.ring_addresses(requests.ring, 32 * MIB - 2)
    assert requests.front_end.ack(Request.SET_VRING_ADDR, addresses) != 0
    requests.done(FLUSH)


def test_a_log_that_shrinks_ends_the_connection_and_no_more(serve, path):
    daemon, front_end = serve(path)
    disk = front_end.disk()
    with DirtyLog(front_end) as log:
        log.start()
        os.ftruncate(log.fd, 0)
        disk.submit(FLUSH)
        assert front_end.wait_closed()
    with FrontEnd.connect(daemon.socket) as next_one:
        assert next_one.disk().read(0, PAGE)[0] == OK


# A migration as a whole


class Migrator:
    """Copies memory by what the log says, again and again, as a migration does.

    Its two logs take turns, so that the one that is read is written to by nobody.
    """

    def __init__(self, front_end, logs):
        self.memory = front_end.memory
        self.current, self.other = logs
        self.current.start()
        self.copy = {region.gpa: bytearray(region.memory) for region in self.memory.regions}

    def step(self):
        """Copy what was marked since the last time."""
        assert self.other.use() == 0
        self.current, self.other = self.other, self.current
        self.take(self.other)

    def take(self, log):
        for page in log.take():
            region = self.memory.region(page * PAGE, PAGE)
            at = page * PAGE - region.gpa
            self.copy[region.gpa][at : at + PAGE] = region.memory[at : at + PAGE]

    def same(self, address, length):
        """Whether the copy has these bytes as the memory has them."""
        region = self.memory.region(address, length)
        at = address - region.gpa
        return self.copy[region.gpa][at : at + length] == region.memory[at : at + length]


@pytest.mark.parametrize("engine", [*ENGINES, "registered", "short"])
def test_a_copy_made_by_the_log_has_all_that_was_written(serve, path, packed, engine):
    options = ["--register-memory"] if engine == "registered" else ENGINES.get(engine, ())
    _, front_end = serve(f"faulty:short@any/2:{path}" if engine == "short" else path, *options)
    front_end.prepare(packed=packed)
    requests = Requests(front_end, front_end.start_ring(0, 256))
    choice, shift = random.Random(engine), 3 if engine == "bounced" else 0
    buffers = [requests.buffer(8 * PAGE, shift) for _ in range(64)]
    written = {}
    with DirtyLog(front_end) as one, DirtyLog(front_end) as two:
        migrator = Migrator(front_end, (one, two))
        answered = sent = 0
        while sent < 1000:
            for _ in range(choice.randint(1, 16)):
                at, length = choice.choice(buffers), 512 * choice.randint(1, 64)
                kind = choice.choices((IN, OUT, GET_ID), (8, 1, 1))[0]
                flags = 0 if kind == OUT else DESC_WRITE
                sector = choice.randrange(SIZE // 512 - 64)
                status = requests.submit(kind, (at, length), sector=sector, flags=flags)
                written |= {at: length, status: 1}
                sent += 1
            migrator.step()
            while sent - answered > 48:
                answered += len(requests.ring.wait_used())
        base = front_end.stop_ring()
        migrator.step()
        migrator.take(migrator.current)
    requests.ring.take_used()
    assert base == requests.ring.base  # what was fetched is answered, the rest stays available
    given_back = {at for at in written if at in buffers or requests.status(at) != UNANSWERED}
    assert all(migrator.same(at, 8 * PAGE if at in buffers else 1) for at in given_back)
    assert migrator.same(requests.ring.used, 4 if packed else 6 + 8 * 256)
