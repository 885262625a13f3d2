# SPDX-License-Identifier: Apache-2.0
"""--register-memory: guest memory pinned once, and what is served if that cannot be."""

import json

import pytest

from harness.daemon import PROGRAMS, Serving, image
from harness.frontend import IN, OK, OUT, FrontEnd, GuestMemory
from harness.vring import DESC_WRITE, MIB

SIZE = 4 * MIB


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "a.img", SIZE)


def registered(daemon):
    return daemon.call("show")["memory_registered"]


def test_memory_is_registered_while_a_front_end_has_it(serve, path):
    daemon, front_end = serve(path, "--register-memory")
    assert not registered(daemon)
    disk = front_end.disk()
    daemon.wait_for("memory_registered", True)
    assert disk.write(8, b"r" * 65536) == OK
    assert path.read_bytes()[4096 : 4096 + 65536] == b"r" * 65536
    assert disk.read(8, 65536) == (OK, b"r" * 65536)
    front_end.close()
    daemon.wait_for("front_end", None)
    assert not registered(daemon)


def test_without_the_option_nothing_is_registered(serve, path):
    daemon, front_end = serve(path)
    assert front_end.disk().write(0, bytes(512)) == OK
    assert not registered(daemon)


def test_every_write_through_cache_mode_serves_registered_memory(serve, path):
    daemon, front_end = serve(path, "--register-memory", "--cache", "writethrough")
    disk = front_end.disk()
    daemon.wait_for("memory_registered", True)
    assert disk.write(0, b"w" * 4096) == OK
    assert path.read_bytes()[:4096] == b"w" * 4096


def test_requests_go_on_while_regions_come_and_go(serve, path):
    daemon, front_end = serve(path, "--register-memory")
    front_end.memory = GuestMemory([8 * MIB, 8 * MIB])
    disk = front_end.disk()
    for turn in range(4):
        heads = [disk.submit(OUT, n * 8, bytes([turn + 1]) * 4096) for n in range(16)]
        region = front_end.memory.grow(MIB)
        front_end.add_region(region)
        assert all(done.status == OK for done in disk.wait(*heads))
        heads = [disk.submit(IN, n * 8, size=4096) for n in range(16)]
        front_end.remove_region(region)
        front_end.memory.regions.remove(region)
        front_end.memory._next.pop()
        assert all(done.data == bytes([turn + 1]) * 4096 for done in disk.wait(*heads))
    daemon.wait_for("memory_registered", True)


def test_transfers_that_go_on_while_regions_come_do_not_fail(serve, path):
    daemon, front_end = serve(f"faulty:short@any:{path}", "--register-memory")
    front_end.memory = GuestMemory([8 * MIB, 8 * MIB])
    disk = front_end.disk()
    for turn in range(40):
        if turn % 4 == 0:
            daemon.wait_for("memory_registered", True)
        heads = [disk.submit(IN, n * 128, size=65536) for n in range(16)]
        region = front_end.memory.grow(MIB)
        front_end.add_region(region)
        assert {done.status for done in disk.wait(*heads)} == {OK}
        heads = [disk.submit(OUT, n * 128, b"w" * 65536) for n in range(16)]
        front_end.remove_region(region)
        front_end.memory.regions.remove(region)
        front_end.memory._next.pop()
        assert {done.status for done in disk.wait(*heads)} == {OK}
    assert daemon.call("show")["front_end"], "the connection stays"


def test_a_request_of_several_buffers_is_served_beside(serve, path):
    daemon, front_end = serve(path, "--register-memory")
    disk = front_end.disk()
    daemon.wait_for("memory_registered", True)
    ring, memory = disk.ring, front_end.memory
    data = [memory.alloc(4096, 4096) for _ in range(3)]
    status = memory.alloc(16)
    head = ring.add(
        [(bytes(16), 16, 0), *((at, 4096, DESC_WRITE) for at in data), (status, 1, DESC_WRITE)]
    )
    ring.publish(head)
    ring.notify()
    assert ring.wait_used() == [(head, 3 * 4096 + 1)]
    assert memory.read(status, 1) == b"\0"


def test_memory_that_may_not_be_locked_is_served_all_the_same(tmp_path, path):
    bounded = ["/usr/bin/setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-all"]
    bounded += ["/usr/bin/prlimit", "--memlock=2097152"]
    socket = tmp_path / "disk.sock"
    command = [PROGRAMS / "blkd", "serve", path, "--socket", socket, "--register-memory", "--json"]
    with Serving([*bounded, *command], tmp_path / "log") as daemon:
        json.loads(daemon.line())
        with FrontEnd.connect(socket) as front_end:
            disk = front_end.disk()
            assert disk.write(0, b"x" * 4096) == OK
            hint = daemon.wait_for_log("guest memory not registered")["hint"]
            assert "ulimit -l" in hint
