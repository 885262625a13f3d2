# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.cli import size_arguments

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("1k", KIB),
        ("512M", 512 * MIB),
        ("10G", 10 * GIB),
        ("10GiB", 10 * GIB),
        ("10 gib", 10 * GIB),
        (" 10G ", 10 * GIB),
        ("1.5G", 3 * GIB // 2),
        ("0.5K", 512),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert size_arguments.parse(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "+1G", "1,5G", "1e3", "0x10", "1 0", "ten", "1.G", "\u0661"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="no size"):
        size_arguments.parse(text)


@pytest.mark.parametrize("text", ["10GB", "1.5mb", "1 TB", "..KB"])
def test_units_that_some_take_for_decimal_are_explained(text):
    with pytest.raises(ValueError, match="units of 1024") as refused:
        size_arguments.parse(text)
    assert repr(text) in str(refused.value)


def test_more_than_a_file_can_have_is_refused():
    assert size_arguments.parse("7E") < 2**63
    with pytest.raises(ValueError, match="more than a file"):
        size_arguments.parse("8E")


def test_parts_of_a_byte_are_refused():
    with pytest.raises(ValueError, match="whole number"):
        size_arguments.parse("0.3K")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (10 * GIB, "10 GiB"),
        (10 * GIB + 1, "10 GiB"),
        ((1 << 63) - 1, "8 EiB"),
    ],
)
def test_sizes_are_shown_short(size, text):
    assert size_arguments.show(size) == text


@given(st.integers(0, (1 << 63) - 1))
def test_what_is_shown_is_read_back_nearly_alike(size):
    assert (
        abs(round(float(size_arguments.show(size).split()[0]) * unit(size)) - size) <= size * 0.01
    )


def unit(size):
    return size_arguments.parse("1" + size_arguments.show(size).split()[1])
