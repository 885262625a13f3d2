# SPDX-License-Identifier: Apache-2.0
import itertools
import struct

import pytest
from blkd.probes import Guest
from hypothesis import given
from hypothesis import strategies as st

NEXT, WRITE = 1, 2
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
ANSWER, READ, WRITE_OP, FLUSH_OP, DISCARD_OP, ZERO_OP = range(6)
DESC, AVAIL, USED, BUFFERS = 0, 0x1000, 0x2000, 0x10000
CAPACITY = 1 << 20
SIZE = 64


class Driver:
    """Builds one chain from pieces: bytes for the device to read, a number for it to fill."""

    def __init__(self, *pieces):
        self.ring, self.memory = bytearray(0x4000), bytearray(0x40000)
        self.guest = Guest(
            [(0, self.ring), (BUFFERS, self.memory)], size=SIZE, desc=DESC, avail=AVAIL, used=USED
        )
        at = BUFFERS
        for n, piece in enumerate(pieces):
            readable = isinstance(piece, bytes)
            length = len(piece) if readable else piece
            if readable:
                self.memory[at - BUFFERS : at - BUFFERS + length] = piece
            more = NEXT if n + 1 < len(pieces) else 0
            flags = more | (0 if readable else WRITE)
            struct.pack_into("<QIHH", self.ring, DESC + 16 * n, at, length, flags, n + 1)
            at += length

    def parse(self, **options):
        return self.guest.parse(0, capacity=CAPACITY, **options)


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


def ranges(*segments):
    return b"".join(struct.pack("<QII", *segment) for segment in segments)


def test_a_read_takes_all_writable_bytes_but_the_status():
    op = Driver(header(IN, 8), 1024, 512, 1).parse()
    assert (op["kind"], op["offset"], op["length"]) == (READ, 4096, 1536)
    assert [length for _, length, _ in op["data"]] == [1024, 512]


def test_a_write_takes_all_readable_bytes_but_the_header():
    op = Driver(header(OUT, 2), bytes(512), 1).parse()
    assert (op["kind"], op["offset"], op["length"]) == (WRITE_OP, 1024, 512)


@given(st.lists(st.integers(1, 527), max_size=12), st.lists(st.integers(1, 512), max_size=12))
def test_framing_is_free(readable_cuts, writable_cuts):
    def cut(length, at):
        edges = [0, *sorted({c for c in at if c < length}), length]
        return [b - a for a, b in itertools.pairwise(edges)]

    out, pieces = header(OUT, 4) + bytes(range(256)) * 2, []
    for length in cut(len(out), readable_cuts):
        pieces.append(out[:length])
        out = out[length:]
    op = Driver(*pieces, 1).parse()
    assert (op["kind"], op["offset"], op["length"]) == (WRITE_OP, 2048, 512)
    assert sum(length for _, length, _ in op["data"]) == 512

    op = Driver(header(IN, 4), *cut(513, writable_cuts)).parse()
    assert (op["kind"], op["offset"], op["length"]) == (READ, 2048, 512)
    assert sum(length for _, length, _ in op["data"]) == 512


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([header(IN)], id="no-status"),
        pytest.param([header(OUT), bytes(512)], id="data-but-no-status"),
        pytest.param([header(IN)[:15], 513], id="header-too-short"),
        pytest.param([513], id="no-header"),
        pytest.param([header(IN), 1, bytes(16)], id="readable-after-writable"),
    ],
)
def test_what_cannot_even_be_answered_breaks_the_ring(pieces):
    with pytest.raises(OSError, match="Invalid argument"):
        Driver(*pieces).parse()


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize(
    ("sector", "length", "block"),
    [
        pytest.param(CAPACITY // 512, 512, 512, id="behind-the-end"),
        pytest.param(CAPACITY // 512 - 1, 1024, 512, id="over-the-end"),
        pytest.param(2**64 - 1, 512, 512, id="last-sector-there-is"),
        pytest.param(2**55, 512, 512, id="offset-wraps"),
        pytest.param(0, 511, 512, id="part-of-a-sector"),
        pytest.param(0, 513, 512, id="sector-and-a-byte"),
        pytest.param(1, 4096, 4096, id="offset-inside-a-block"),
        pytest.param(0, 512, 4096, id="part-of-a-block"),
    ],
)
def test_a_transfer_off_the_disk_or_off_its_blocks_is_an_error(kind, sector, length, block):
    data = length if kind == IN else bytes(length)
    op = Driver(header(kind, sector), data, 1).parse(block_size=block)
    assert (op["kind"], op["status"]) == (ANSWER, IOERR)


@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_transfer_of_nothing_is_done_at_once(kind):
    assert Driver(header(kind, 0), 1).parse()["status"] == OK


def test_the_last_block_can_be_read():
    assert Driver(header(IN, CAPACITY // 512 - 1), 512, 1).parse()["kind"] == READ


def test_a_read_only_disk_refuses_writes():
    op = Driver(header(OUT), bytes(512), 1).parse(read_only=True)
    assert (op["kind"], op["status"]) == (ANSWER, IOERR)


def test_the_serial_is_given_as_far_as_there_is_room():
    driver = Driver(header(GET_ID), 8, 20, 1)
    op = driver.parse()
    assert (op["kind"], op["status"], op["written"]) == (ANSWER, OK, 20)
    assert driver.memory[16:36] == b"serial-of-20-letters"
    assert Driver(header(GET_ID), 5, 1).parse()["written"] == 5


@pytest.mark.parametrize("kind", [2, 3, 10, 12, 14, 16, 2**31, 2**32 - 1])
def test_an_unknown_request_is_unsupported(kind):
    op = Driver(header(kind), 512, 1).parse()
    assert (op["kind"], op["status"]) == (ANSWER, UNSUPP)


def test_a_flush_is_a_flush_whatever_its_sector():
    assert Driver(header(FLUSH, 2**60), 1).parse()["kind"] == FLUSH_OP


@pytest.mark.parametrize(("kind", "becomes"), [(DISCARD, DISCARD_OP), (WRITE_ZEROES, ZERO_OP)])
def test_ranges_are_taken_as_many_as_came(kind, becomes):
    op = Driver(header(kind), ranges((0, 8, 0), (16, 8, 0)), 1).parse(max_sectors=64)
    assert (op["kind"], op["ranges"]) == (becomes, 2)


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        pytest.param(DISCARD, ranges((0, 8, 1)), UNSUPP, id="discard-with-unmap"),
        pytest.param(DISCARD, ranges((0, 8, 2)), UNSUPP, id="discard-with-unknown-flag"),
        pytest.param(WRITE_ZEROES, ranges((0, 8, 2)), UNSUPP, id="zeroes-with-unknown-flag"),
        pytest.param(DISCARD, ranges((0, 65, 0)), IOERR, id="longer-than-allowed"),
        pytest.param(DISCARD, ranges((CAPACITY // 512, 1, 0)), IOERR, id="behind-the-end"),
        pytest.param(DISCARD, ranges((CAPACITY // 512 - 1, 2, 0)), IOERR, id="over-the-end"),
        pytest.param(DISCARD, ranges((2**63, 1, 0)), IOERR, id="offset-wraps"),
        pytest.param(DISCARD, ranges((0, 8, 0), (2**40, 1, 0)), IOERR, id="second-is-bad"),
        pytest.param(DISCARD, ranges(*[(0, 1, 0)] * 5), UNSUPP, id="too-many"),
        pytest.param(WRITE_ZEROES, ranges(*[(0, 1, 0)] * 5), UNSUPP, id="too-many-zeroes"),
        pytest.param(DISCARD, ranges(*[(0, 1, 0)] * 5)[:-1], UNSUPP, id="too-many-cut-short"),
        pytest.param(DISCARD, ranges((0, 8, 0))[:-1], IOERR, id="cut-short"),
        pytest.param(DISCARD, b"", IOERR, id="none"),
    ],
)
def test_a_bad_range_refuses_the_whole_request(kind, data, status):
    pieces = [header(kind), data, 1] if data else [header(kind), 1]
    op = Driver(*pieces).parse(max_sectors=64)
    assert (op["kind"], op["status"]) == (ANSWER, status)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_what_is_not_offered_is_unsupported(kind):
    op = Driver(header(kind), ranges((0, 8, 0)), 1).parse(max_sectors=0)
    assert (op["kind"], op["status"]) == (ANSWER, UNSUPP)


@given(st.binary(max_size=64), st.integers(0, 1025), st.integers(0, 600))
def test_no_request_makes_the_device_touch_more_than_it_was_given(out, first, second):
    pieces = [piece for piece in (out, first, second) if piece]
    if not pieces:
        return
    driver = Driver(*pieces)
    before = bytes(driver.memory[len(out) + first + second :])
    try:
        op = driver.parse(max_sectors=64)
    except OSError:
        return
    assert op["kind"] == ANSWER or op["length"] <= CAPACITY
    assert bytes(driver.memory[len(out) + first + second :]) == before
