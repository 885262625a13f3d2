# SPDX-License-Identifier: Apache-2.0
"""Requests of a scripted guest through a whole blkd to the image and back."""

import functools
import os
import random
import struct

import pytest

from harness.daemon import image
from harness.frontend import DISCARD, FLUSH, IN, OUT, WRITE_ZEROES, Disk, Feature
from harness.vring import DESC_WRITE

pytestmark = pytest.mark.usefixtures("each_engine")

MIB = 1 << 20
SIZE = 16 * MIB
OK, IOERR, UNSUPP = 0, 1, 2


@pytest.fixture
def path(tmp_path):
    return image(tmp_path / "disk.img", SIZE)


@pytest.fixture
def serve(serve, path):
    """Serves that image with options and connects: the daemon and a front end."""
    return functools.partial(serve, path)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    """The layout of the rings."""
    return request.param


def pattern(seed, length):
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("size", [4, 8, 64, 256, 1024])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
def test_rings_of_every_size_carry_many_times_their_length(serve, path, size, event_idx):
    _, front_end = serve()
    offered = front_end.offered()
    features = None if event_idx else Feature(offered & ~Feature.EVENT_IDX)
    disk = front_end.disk(size=size, features=features)
    at_once = size // 3
    for turn in range(0, size * 3, at_once):
        sectors = [(turn + n) % (SIZE // 512) for n in range(at_once)]
        heads = [disk.submit(OUT, s, s.to_bytes(4, "little") * 128) for s in sectors]
        assert all(done.status == OK and done.written == 1 for done in disk.wait(*heads))
    written = path.read_bytes()
    for sector in range(turn):
        assert written[sector * 512 : sector * 512 + 4] == sector.to_bytes(4, "little")


def test_all_of_64_queues_serve_side_by_side(serve, packed):
    daemon, front_end = serve("--queues", 64)
    disks = list(front_end.disks(64, 16, packed=packed))
    heads = [disk.submit(OUT, n * 8, bytes([n]) * 4096) for n, disk in enumerate(disks)]
    for disk, head in zip(disks, heads, strict=True):
        assert disk.wait(head)[0].status == OK
    for n, disk in enumerate(disks):
        assert disk.read(n * 8, 4096) == (OK, bytes([n]) * 4096)
    assert [ring["writes"] for ring in daemon.call("stats")["rings"]] == [1] * 64


def test_indirect_and_direct_chains_carry_the_same(serve, packed):
    _, front_end = serve()
    disk = front_end.disk(packed=packed)
    indirect = Disk(front_end, disk.ring, indirect=True)
    data = pattern(1, 8192)
    assert indirect.write(8, data) == OK
    assert disk.read(8, 8192) == (OK, data)
    assert indirect.read(8, 8192) == (OK, data)


def test_a_mebibyte_in_pages_goes_in_one_request_even_on_a_short_ring(serve, path, packed):
    daemon, front_end = serve()
    front_end.prepare(packed=packed)
    ring = front_end.start_ring(0, 128)
    pages, data = 254, pattern(2, 254 * 4096)
    assert struct.unpack("<I", front_end.config(12, 4))[0] == pages
    addresses = [ring.memory.alloc(8192, 4096) for _ in range(pages)]
    for n, address in enumerate(addresses):
        ring.memory.write(address, data[n * 4096 : (n + 1) * 4096])
    status = ring.memory.alloc(1)
    chain = [(struct.pack("<IIQ", OUT, 0, 0), 16, 0)]
    chain += [(address, 4096, 0) for address in addresses]
    ring.publish(ring.add_indirect([*chain, (status, 1, DESC_WRITE)]))
    ring.kick()
    assert len(ring.wait_used()) == 1
    assert ring.memory.read(status, 1) == b"\0"
    assert path.read_bytes()[: len(data)] == data
    assert daemon.call("stats")["rings"][0]["writes"] == 1


@pytest.mark.parametrize("shift", [1, 2, 4, 511])
@pytest.mark.parametrize("length", [512, 4096, 300 * 1024], ids=str)
def test_buffers_that_direct_io_would_refuse_are_bounced(serve, path, shift, length):
    _, front_end = serve()
    disk = front_end.disk()
    data, ring = pattern(shift, length), disk.ring
    buffer = ring.memory.alloc(length + 512, 4096) + shift
    for kind, flags in ((OUT, 0), (IN, DESC_WRITE)):
        status = ring.memory.alloc(1)
        ring.memory.write(buffer, data if kind == OUT else bytes(length))
        chain = [(struct.pack("<IIQ", kind, 0, 16), 16, 0), (buffer, length, flags)]
        ring.publish(ring.add([*chain, (status, 1, DESC_WRITE)]))
        ring.kick()
        assert [written for _, written in ring.wait_used()] == [1 + (length if kind == IN else 0)]
        assert ring.memory.read(status, 1) == b"\0"
        assert ring.memory.read(buffer, length) == data
    assert path.read_bytes()[16 * 512 :][:length] == data


def test_more_bounced_requests_than_bounce_buffers_all_complete(serve, packed):
    _, front_end = serve()
    disk = front_end.disk(size=256, packed=packed)
    ring, heads, buffers = disk.ring, [], []
    for n in range(64):
        buffer = ring.memory.alloc(1024, 4096) + 1
        ring.memory.write(buffer, bytes([n]) * 512)
        chain = [(struct.pack("<IIQ", OUT, 0, n), 16, 0), (buffer, 512, 0)]
        heads.append(ring.add([*chain, (bytes(1), 1, DESC_WRITE)]))
        buffers.append(buffer)
    ring.publish(*heads)
    ring.kick()
    done = 0
    while done < 64:
        used = ring.wait_used()
        assert used
        done += len(used)
    for n in range(64):
        assert disk.read(n, 512) == (OK, bytes([n]) * 512)


def test_data_cut_into_odd_pieces_arrives_whole(serve, packed):
    _, front_end = serve()
    disk = front_end.disk(packed=packed)
    ring, data = disk.ring, pattern(3, 1024)
    cuts = [1, 7, 100, 500, 416]
    chain, at = [(struct.pack("<IIQ", OUT, 0, 0)[:9], 9, 0)], 0
    chain.append((struct.pack("<IIQ", OUT, 0, 0)[9:], 7, 0))
    for cut in cuts:
        chain.append((data[at : at + cut], cut, 0))
        at += cut
    status = ring.memory.alloc(1)
    ring.publish(ring.add([*chain, (status, 1, DESC_WRITE)]))
    ring.kick()
    assert ring.wait_used()
    assert ring.memory.read(status, 1) == b"\0"
    assert disk.read(0, 1024) == (OK, data)


def test_what_was_discarded_is_given_back_to_the_host(serve, path):
    _, front_end = serve()
    disk = front_end.disk()
    assert disk.write(0, b"x" * MIB) == OK
    assert disk.flush() == OK
    before = path.stat().st_blocks
    assert disk.discard([(0, 1024), (1024, 1024)]) == OK
    assert path.stat().st_blocks < before
    assert disk.read(0, 4096) == (OK, bytes(4096))


@pytest.mark.parametrize("unmap", [True, False], ids=["unmap", "keep"])
def test_zeroes_are_written_and_space_kept_unless_unmap_is_asked(serve, path, unmap):
    _, front_end = serve()
    disk = front_end.disk()
    assert disk.write(0, b"x" * MIB) == OK
    assert disk.flush() == OK
    before = path.stat().st_blocks
    assert disk.write_zeroes([(8, 16), (512, 1024)], unmap=unmap) == OK
    zeroed = bytearray(b"x" * MIB)
    zeroed[4096:12288] = bytes(8192)
    zeroed[512 * 512 : 1536 * 512] = bytes(1024 * 512)
    assert disk.read(0, MIB) == (OK, bytes(zeroed))
    assert (path.stat().st_blocks < before) is unmap


def test_discards_can_be_kept_from_the_guest(serve):
    _, front_end = serve("--no-discard")
    disk = front_end.disk()
    assert not front_end.features & (Feature.DISCARD | Feature.WRITE_ZEROES)
    segment = struct.pack("<QII", 0, 8, 0)
    assert disk.request(DISCARD, out=segment).status == UNSUPP
    assert disk.request(WRITE_ZEROES, out=segment).status == UNSUPP


def test_a_read_only_disk_reads_and_refuses_all_else(serve, path):
    path.write_bytes(pattern(4, SIZE))
    _, front_end = serve("--read-only")
    disk = front_end.disk()
    assert front_end.features & Feature.RO
    assert disk.read(0, 4096) == (OK, pattern(4, SIZE)[:4096])
    assert disk.write(0, bytes(512)) == IOERR
    assert disk.flush() == OK
    assert path.read_bytes() == pattern(4, SIZE)


def test_requests_beyond_the_end_touch_nothing(serve, path):
    _, front_end = serve()
    disk = front_end.disk()
    assert disk.write(SIZE // 512, b"x" * 512) == IOERR
    assert disk.write(SIZE // 512 - 1, b"x" * 1024) == IOERR
    assert disk.read(SIZE // 512 - 1, 1024)[0] == IOERR
    assert path.stat().st_size == SIZE
    assert path.read_bytes() == bytes(SIZE)


def test_a_disk_of_4k_blocks_refuses_smaller_requests(serve):
    _, front_end = serve("--logical-block-size", 4096)
    disk = front_end.disk()
    assert struct.unpack("<I", front_end.config(20, 4))[0] == 4096
    assert disk.write(0, bytes(512)) == IOERR
    assert disk.write(1, bytes(4096)) == IOERR
    assert disk.write(8, b"y" * 4096) == OK


def test_the_serial_is_what_was_asked_for(serve):
    _, front_end = serve("--serial", "abc")
    assert front_end.disk().get_id() == (OK, b"abc".ljust(20, b"\0"))


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
def test_every_cache_mode_carries_data(serve, path, cache, packed):
    _, front_end = serve("--cache", cache)
    disk = front_end.disk(packed=packed)
    data = pattern(5, 12288)
    assert disk.write(3, data) == OK
    assert disk.flush() == OK
    assert disk.read(3, 12288) == (OK, data)
    assert path.read_bytes()[3 * 512 :][:12288] == data


def test_a_stopped_ring_goes_on_where_it_was(serve):
    _, front_end = serve()
    disk = front_end.disk()
    for sector in range(5):
        assert disk.write(sector, bytes([sector]) * 512) == OK
    assert front_end.stop_ring(0) == 5
    head = disk.submit(IN, 3, size=512)
    with pytest.raises(TimeoutError):
        disk.wait(head, timeout=0.2)
    front_end.start_ring(0, ring=disk.ring, base=5)
    assert disk.wait(head)[0].data == bytes([3]) * 512


def test_a_kick_before_enable_is_not_lost(serve, packed):
    _, front_end = serve()
    front_end.prepare(packed=packed)
    disk = Disk(front_end, front_end.start_ring(0, enable=False))
    head = disk.submit(IN, 0, size=512)
    with pytest.raises(TimeoutError):
        disk.wait(head, timeout=0.2)
    front_end.enable(0, on=True)
    assert disk.wait(head)[0].status == OK


def test_memory_replaced_while_requests_run_loses_none(serve, packed):
    _, front_end = serve()
    disk = front_end.disk(size=256, packed=packed)
    for turn in range(20):
        heads = [disk.submit(OUT, turn * 32 + n, bytes([n]) * 512) for n in range(32)]
        front_end.share_memory(table=True)
        assert all(done.status == OK for done in disk.wait(*heads))


def test_memory_added_and_removed_while_the_ring_runs(serve, packed):
    _, front_end = serve()
    disk = front_end.disk(packed=packed)
    region = disk.memory.grow(MIB)
    front_end.add_region(region)
    region.memory[:4096] = b"z" * 4096
    ring = disk.ring

    def write():
        status = disk.memory.alloc(1)
        chain = [(struct.pack("<IIQ", OUT, 0, 0), 16, 0), (region.gpa, 4096, 0)]
        ring.publish(ring.add([*chain, (status, 1, DESC_WRITE)]))
        ring.kick()

    write()
    assert ring.wait_used()
    assert disk.read(0, 4096) == (OK, b"z" * 4096)
    front_end.remove_region(region)
    write()
    assert ring.broken()


def test_a_call_eventfd_that_comes_late_is_called_at_once(serve, packed):
    _, front_end = serve()
    disk = front_end.disk(packed=packed)
    front_end.ring_fd(13, 0, None)
    head = disk.submit(FLUSH)
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    front_end.ring_fd(13, 0, fresh)
    os.dup2(fresh, disk.ring.call_fd)
    os.close(fresh)
    assert disk.wait(head)[0].status == OK


def test_a_driver_of_before_virtio_1_is_served(serve):
    _, front_end = serve()
    offered = front_end.offered()
    disk = front_end.disk(features=Feature(offered & ~Feature.VERSION_1))
    assert disk.write(5, b"l" * 512) == OK
    assert disk.read(5, 512) == (OK, b"l" * 512)
