# SPDX-License-Identifier: Apache-2.0
"""Which bits of a dirty log are set for which bytes of guest memory."""

import struct

import pytest
from blkd.probes import Guest, Log
from hypothesis import given
from hypothesis import strategies as st

PAGE = 4096
NEXT, WRITE = 1, 2
DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000
DATA, FAR, MEMORY = 0x10000, 2**20, 0x4000
BYTES = 64  # of a log: 512 pages


def pages(bits):
    """The numbers of the pages marked, in the specification's order of bits."""
    return [n for n in range(8 * len(bits)) if bits[n // 8] >> n % 8 & 1]


@given(st.integers(0, 8 * BYTES * PAGE - 1), st.integers(1, 200 * PAGE))
def test_the_pages_of_every_byte_and_no_others_are_marked(address, length):
    bits = bytearray(BYTES)
    touched = list(range(address // PAGE, (address + length - 1) // PAGE + 1))
    fits = touched[-1] < 8 * BYTES
    assert Log(bits).mark(address, length) == fits
    assert pages(bits) == (touched if fits else [])


@pytest.mark.parametrize("page", range(8 * BYTES))
def test_each_page_has_its_own_bit(page):
    for first in (0, 1, PAGE - 1):
        bits = bytearray(BYTES)
        assert Log(bits).mark(page * PAGE + first, 1)
        assert pages(bits) == [page]


def test_marks_add_to_those_that_are_there():
    bits = bytearray(b"\x81" * BYTES)
    log = Log(bits)
    assert log.mark(3 * PAGE, PAGE)
    assert bits == b"\x89" + b"\x81" * (BYTES - 1)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param(8 * BYTES * PAGE, 1, id="first-byte-behind"),
        pytest.param(8 * BYTES * PAGE - 1, 2, id="last-byte-behind"),
        pytest.param(0, 2**64 - 1, id="all-there-is"),
        pytest.param(2**64 - 1, 1, id="last-address"),
        pytest.param(2**64 - 4, 8, id="wraps"),
        pytest.param(PAGE, 2**64 - 1, id="wraps-to-before"),
    ],
)
def test_what_is_beyond_the_log_marks_nothing(address, length):
    bits = bytearray(BYTES)
    assert not Log(bits).mark(address, length)
    assert not any(bits)


def test_no_bytes_are_no_page():
    bits = bytearray(BYTES)
    assert Log(bits).mark(2**64 - 1, 0)
    assert not any(bits)


class Ring:
    """A ring, whose data lies in two regions that adjoin for the guest and in a distant one."""

    def __init__(self, size=8, **options):
        self.low = bytearray(0x8000)
        regions = [(a, bytearray(MEMORY)) for a in (DATA, DATA + MEMORY, FAR)]
        regions.append((0, self.low))
        self.guest = Guest(regions, size=size, desc=DESC, avail=AVAIL, used=USED, **options)

    def describe(self, *descriptors):
        struct.pack_into("<" + "QIHH" * len(descriptors), self.low, DESC, *sum(descriptors, ()))


@pytest.mark.parametrize(
    ("buffers", "touched"),
    [
        pytest.param([(DATA, PAGE)], [16], id="a-page"),
        pytest.param([(DATA + 10, 1)], [16], id="a-byte"),
        pytest.param([(DATA + PAGE - 1, 2)], [16, 17], id="two-pages"),
        pytest.param([(DATA + MEMORY - 1, 2)], [19, 20], id="two-regions"),
        pytest.param([(DATA, 2 * MEMORY)], list(range(16, 24)), id="regions-whole"),
        pytest.param([(FAR, 1), (DATA, 1)], [16, 256], id="any-order"),
        pytest.param([(FAR + MEMORY - 1, 1)], [259], id="last-byte-of-a-region"),
    ],
)
def test_buffers_are_marked_by_where_they_are_mapped(buffers, touched):
    ring, bits = Ring(), bytearray(BYTES)
    chain = [(address, length, WRITE | NEXT, n + 1) for n, (address, length) in enumerate(buffers)]
    ring.describe(*chain, (0, 1, WRITE, 0))
    assert ring.guest.log_chain(0, Log(bits))
    assert pages(bits) == [0, *touched]


def test_a_buffer_beyond_the_log_is_reported_and_the_others_are_marked():
    ring, bits = Ring(), bytearray(4)
    ring.describe((FAR, 1, WRITE | NEXT, 1), (DATA, 1, WRITE, 0))
    assert not ring.guest.log_chain(0, Log(bits))
    assert pages(bits) == [16]


@pytest.mark.parametrize(("size", "touched"), [(8, [3]), (512, [3, 4]), (1024, [3, 4, 5])])
def test_the_used_ring_is_marked_from_its_flags_to_its_event(size, touched):
    bits = bytearray(BYTES)
    assert Ring(size).guest.log_areas([(3 * PAGE, 6 + 8 * size)], Log(bits))
    assert pages(bits) == touched


def test_descriptors_and_device_area_of_a_packed_ring_are_marked():
    bits = bytearray(BYTES)
    ring = Ring(512, packed=True)
    assert ring.guest.log_areas([(7 * PAGE, 512 * 16), (100 * PAGE + 4092, 4)], Log(bits))
    assert pages(bits) == [7, 8, 100]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_areas_beyond_the_log_are_reported(packed):
    bits = bytearray(BYTES)
    areas = [(0, 16), (8 * BYTES * PAGE - 2, 4)]
    assert not Ring(packed=packed).guest.log_areas(areas, Log(bits))
