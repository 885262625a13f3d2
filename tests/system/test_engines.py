# SPDX-License-Identifier: Apache-2.0
"""Each way of doing I/O on an image serves the same disk."""

import contextlib
import os
import random
import struct
import subprocess

import pytest

from harness.daemon import image, run
from harness.frontend import (
    DESC_WRITE,
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    UNSUPP,
)

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture(params=["disk", "memory"])
def path(request, tmp_path):
    place = request.getfixturevalue("tmpfs") if request.param == "memory" else tmp_path
    return image(place / "a.img", SIZE)


@pytest.fixture
def in_memory(tmpfs):
    return image(tmpfs / "a.img", SIZE)


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
@pytest.mark.parametrize("engine", ["auto", "uring", "inline"])
def test_what_is_written_is_read_whatever_the_engine(path, serve, engine, cache):
    daemon, front_end = serve(path, "--engine", engine, "--cache", cache)
    disk = front_end.disk()
    chance, mirror = random.Random(engine + cache), bytearray(SIZE)
    for _ in range(60):
        sector, count = chance.randrange(SIZE // 512 - 64), chance.randrange(1, 64)
        data = chance.randbytes(512) * count
        assert disk.write(sector, data) == OK
        mirror[sector * 512 : sector * 512 + len(data)] = data
        sector = chance.randrange(SIZE // 512 - 64)
        assert disk.read(sector, 32768) == (OK, bytes(mirror[sector * 512 :][:32768]))
    assert disk.flush() == OK
    assert path.read_bytes() == mirror
    counts = daemon.call("stats")["total"]
    assert (counts["reads"], counts["writes"], counts["flushes"]) == (60, 60, 1)
    assert counts["bytes_read"] == 60 * 32768
    assert counts["errors"] == counts["in_flight"] == 0


@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [
        pytest.param((), "uring", "waits for a disk", id="direct"),
        pytest.param(("--engine", "inline"), "inline", "as told", id="as-told"),
        pytest.param(("--cache", "writeback"), "inline", "page cache", id="page-cache"),
    ],
)
def test_a_disk_says_how_it_is_served_and_why(serve, tmp_path, options, engine, reason):
    path = image(tmp_path / "a.img", SIZE)
    path.write_bytes(bytes(SIZE))
    state = serve(path, *options)[0].call("show")
    assert state["engine"] == engine
    assert reason in state["engine_reason"]


def test_a_file_in_memory_is_served_at_once(in_memory, serve):
    state = serve(in_memory)[0].call("show")
    assert (state["engine"], "memory" in state["engine_reason"]) == ("inline", True)


def test_a_block_device_is_not_in_memory_because_its_node_is(device, serve):
    assert serve(device)[0].call("show")["engine"] == "uring"


def test_a_write_through_write_is_durable_when_it_is_done_at_once(in_memory, serve, tmp_path):
    daemon, front_end = serve(in_memory, "--cache", "writethrough")
    disk = front_end.disk()
    with traced(daemon, "pwritev2", tmp_path / "calls"):
        assert disk.write(0, b"d" * 4096) == OK
    assert "RWF_DSYNC" in (tmp_path / "calls").read_text()


def test_what_lies_beyond_a_shortened_file_fails(in_memory, serve):
    _, front_end = serve(in_memory)
    disk = front_end.disk()
    os.truncate(in_memory, SIZE // 2)
    assert disk.read(0, 4096)[0] == OK
    assert disk.read(SIZE // 512 - 8, 4096)[0] == IOERR
    assert disk.read(SIZE // 1024 - 4, 4096)[0] == IOERR


def test_a_full_file_system_in_memory_fails_the_write(in_memory, tmpfs, serve):
    _, front_end = serve(in_memory)
    disk = front_end.disk()
    (tmpfs / "filler").write_bytes(bytes(7 * MIB))
    statuses = [disk.write(n * 512, b"b" * 262144) for n in range(8)]
    assert statuses[-1] == IOERR
    (tmpfs / "filler").unlink()
    assert disk.write(3584, b"c" * 262144) == OK


@pytest.mark.parametrize("engine", ["uring", "inline"])
def test_buffers_off_every_alignment_are_served(path, serve, engine):
    _, front_end = serve(path, "--engine", engine)
    disk = front_end.disk()
    memory, ring = front_end.memory, disk.ring
    data = memory.alloc(8192) + 7
    for kind, flags in ((OUT, 0), (IN, DESC_WRITE)):
        memory.write(data, bytes(range(256)) * 16 if kind == OUT else bytes(4096))
        header = struct.pack("<IIQ", kind, 0, 8)
        pieces = [(data, 1000, flags), (data + 1000, 3096, flags)]
        head = ring.add([(header, 16, 0), *pieces, (memory.alloc(16), 1, DESC_WRITE)])
        ring.publish(head)
        ring.notify()
        assert ring.wait_used() == [(head, 4097 if kind == IN else 1)]
    assert memory.read(data, 4096) == bytes(range(256)) * 16
    assert path.read_bytes()[4096:8192] == bytes(range(256)) * 16


@contextlib.contextmanager
def traced(daemon, calls, path):
    """Has the system calls named `calls` of a process written to `path` meanwhile."""
    command = ["strace", "-f", "-e", f"trace={calls}", "-o", path, "-p", daemon.process.pid]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as tracer:
        assert "attached" in tracer.stderr.readline()
        yield
        tracer.terminate()


@pytest.mark.parametrize("cuts", [(4096,), (1000, 3096)], ids=["whole", "in-pieces"])
def test_a_buffer_off_every_alignment_in_memory_is_read_at_once(in_memory, serve, tmp_path, cuts):
    in_memory.write_bytes(bytes(range(256)) * (SIZE // 256))
    daemon, front_end = serve(in_memory)
    disk = front_end.disk()
    memory, ring = front_end.memory, disk.ring
    at = data = memory.alloc(8192) + 7
    chain = [(struct.pack("<IIQ", IN, 0, 8), 16, 0)]
    for length in cuts:
        chain.append((at, length, DESC_WRITE))
        at += length
    with traced(daemon, "pread64,preadv2,preadv", tmp_path / "calls"):
        head = ring.add([*chain, (memory.alloc(16), 1, DESC_WRITE)])
        ring.publish(head)
        ring.notify()
        assert ring.wait_used() == [(head, 4097)]
    assert memory.read(data, 4096) == bytes(range(256)) * 16
    assert "= 4096" in (tmp_path / "calls").read_text()


def test_a_request_of_a_thousand_buffers_is_served(in_memory, serve):
    _, front_end = serve(in_memory, "--queue-size", 1024)
    disk = front_end.disk(size=1024)
    assert disk.write(0, b"m" * (512 * 1000)) == OK
    memory, ring = front_end.memory, disk.ring
    data = memory.alloc(512 * 1000, 4096)
    halves = [(data + n * 256, 256, DESC_WRITE) for n in range(1000)]
    header = struct.pack("<IIQ", IN, 0, 0)
    status = memory.alloc(16)
    head = ring.add_indirect([(header, 16, 0), *halves, (status, 1, DESC_WRITE)])
    ring.publish(head)
    ring.notify()
    assert ring.wait_used() == [(head, 256 * 1000 + 1)]
    assert memory.read(data, 256 * 1000) == b"m" * (256 * 1000)


def test_a_file_in_memory_gives_space_back(in_memory, serve):
    _, front_end = serve(in_memory)
    disk = front_end.disk()
    assert disk.write(0, b"x" * 65536) == OK
    taken = in_memory.stat().st_blocks
    assert disk.discard([(0, 64)]) == OK
    assert in_memory.stat().st_blocks < taken
    assert disk.write_zeroes([(64, 64)]) == OK
    assert in_memory.read_bytes()[:65536] == bytes(65536)


def test_a_null_image_answers_every_request(serve):
    daemon, front_end = serve("null:16M")
    disk = front_end.disk()
    assert front_end.capacity() == 16 * MIB // 512
    done = disk.request(IN, 0, size=4096)
    assert (done.status, done.written, done.data) == (OK, 4097, bytes(4096))
    done = disk.request(OUT, 0, b"n" * 4096)
    assert (done.status, done.written) == (OK, 1)
    assert [disk.request(FLUSH).status, disk.get_id()[0]] == [OK, OK]
    assert disk.discard([(0, 8)]) == disk.write_zeroes([(0, 8)]) == OK
    assert disk.request(77).status == UNSUPP
    assert disk.read(16 * MIB // 512, 512)[0] == IOERR
    counts = daemon.call("stats")["total"]
    kinds = ("reads", "writes", "flushes", "get_ids", "discards", "write_zeroes", "others")
    assert [counts[kind] for kind in kinds] == [2, 1, 1, 1, 1, 1, 1]
    assert (counts["bytes_read"], counts["bytes_written"], counts["errors"]) == (4096, 4096, 2)


def test_a_null_image_has_the_size_that_it_is_given(serve):
    daemon, front_end = serve("null:16M")
    disk = front_end.disk()
    assert daemon.call("resize", "32M")["size"] == 32 * MIB
    assert disk.read(32 * MIB // 512 - 1, 512)[0] == OK
    assert daemon.call("show")["engine"] == "null"


def test_a_read_only_null_image_refuses_writes(serve):
    _, front_end = serve("null:16M", "--read-only")
    assert front_end.disk().write(0, bytes(512)) == IOERR


@pytest.mark.parametrize("name", ["null:", "null:x", "null:0", "null:1000", "null:-5M"])
def test_a_null_image_of_no_size_is_refused_by_name(tmp_path, name):
    done = run("serve", name, "--socket", tmp_path / "s")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {name}: ")
