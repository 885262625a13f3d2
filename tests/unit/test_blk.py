# SPDX-License-Identifier: Apache-2.0
"""The virtio block device against offsets and bits written down from the specification."""

import dataclasses
import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import ConfigError, RequestRefused
from blkd.virtio.blk import FEATURE_SETS, BlkDevice, BlkParameters, FeatureSet, Shown

# struct virtio_blk_config (virtio 1.3, 5.2.4), counted by hand.
FIELDS = {
    "capacity": (0, "<Q"),
    "size_max": (8, "<I"),
    "seg_max": (12, "<I"),
    "geometry": (16, "<I"),
    "blk_size": (20, "<I"),
    "physical_block_exp": (24, "<B"),
    "alignment_offset": (25, "<B"),
    "min_io_size": (26, "<H"),
    "opt_io_size": (28, "<I"),
    "writeback": (32, "<B"),
    "unused0": (33, "<B"),
    "num_queues": (34, "<H"),
    "max_discard_sectors": (36, "<I"),
    "max_discard_seg": (40, "<I"),
    "discard_sector_alignment": (44, "<I"),
    "max_write_zeroes_sectors": (48, "<I"),
    "max_write_zeroes_seg": (52, "<I"),
    "write_zeroes_may_unmap": (56, "<B"),
}
CONFIG_BYTES = 60

SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES = (
    1 << bit for bit in (1, 2, 5, 6, 9, 10, 11, 12, 13, 14)
)
RING = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 34
ALWAYS = SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE | RING

PLAIN = BlkParameters(
    capacity=2048,
    logical_block_size=512,
    physical_block_size=4096,
    discard_granularity=4096,
    read_only=False,
    write_back=True,
    discard=True,
    max_discard_segments=32,
    queues=1,
    queue_size=256,
    serial="disk-0",
    feature_set="0.1",
)


def device(**changes):
    return BlkDevice(dataclasses.replace(PLAIN, **changes))


def field(blk, name):
    offset, layout = FIELDS[name]
    return struct.unpack(layout, blk.config(offset, struct.calcsize(layout)))[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ALWAYS | DISCARD | WRITE_ZEROES, id="one-queue"),
        pytest.param({"queues": 2}, ALWAYS | DISCARD | WRITE_ZEROES | MQ, id="two-queues"),
        pytest.param({"read_only": True}, ALWAYS | RO, id="read-only"),
        pytest.param({"discard": False}, ALWAYS, id="discard-switched-off"),
        pytest.param({"discard_granularity": 0}, ALWAYS | WRITE_ZEROES, id="cannot-give-back"),
    ],
)
def test_features_offered_are_exactly_those_that_work(changes, expected):
    assert device(**changes).features == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"queues": 4},
            {
                "capacity": 2048,
                "size_max": 1 << 20,
                "seg_max": 254,
                "geometry": 0,
                "blk_size": 512,
                "physical_block_exp": 3,
                "alignment_offset": 0,
                "min_io_size": 8,
                "opt_io_size": 0,
                "writeback": 1,
                "unused0": 0,
                "num_queues": 4,
                "max_discard_sectors": 1 << 21,
                "max_discard_seg": 32,
                "discard_sector_alignment": 8,
                "max_write_zeroes_sectors": 1 << 21,
                "max_write_zeroes_seg": 32,
                "write_zeroes_may_unmap": 1,
            },
            id="all-fields",
        ),
        pytest.param(
            {"logical_block_size": 4096, "optimal_io_size": 1 << 20},
            {"blk_size": 4096, "physical_block_exp": 0, "min_io_size": 1, "opt_io_size": 256},
            id="blocks-of-4096",
        ),
        pytest.param(
            {"discard": False},
            {
                "max_discard_sectors": 0,
                "max_discard_seg": 0,
                "discard_sector_alignment": 0,
                "max_write_zeroes_sectors": 0,
                "max_write_zeroes_seg": 0,
                "write_zeroes_may_unmap": 0,
            },
            id="nothing-of-discard-when-off",
        ),
        pytest.param(
            {"discard_granularity": 0},
            {
                "max_discard_sectors": 0,
                "max_write_zeroes_sectors": 1 << 21,
                "write_zeroes_may_unmap": 0,
            },
            id="zeroes-without-unmap",
        ),
        pytest.param(
            {"zeroes_unmap": False},
            {"max_discard_sectors": 1 << 21, "write_zeroes_may_unmap": 0},
            id="discard-and-zeroes-without-unmap",
        ),
        pytest.param({"write_back": False}, {"writeback": 0}, id="write-through"),
        pytest.param({"queue_size": 4}, {"seg_max": 2}, id="segments-in-the-smallest-ring"),
    ],
)
def test_config_fields_stand_where_the_specification_puts_them(changes, expected):
    blk = device(**changes)
    assert {name: field(blk, name) for name in expected} == expected


@given(st.integers(0, 300), st.integers(0, 300))
def test_config_is_served_at_any_offset_and_length(offset, size):
    blk = device()
    whole = blk.config(0, CONFIG_BYTES).ljust(600, b"\0")
    assert blk.config(offset, size) == whole[offset : offset + size]


@given(st.sampled_from([512, 4096]), st.integers(0, 4), st.integers(0, 8))
def test_topology_gives_back_the_sizes_it_was_made_of(logical, exponent, optimal):
    physical = logical << exponent
    blk = device(
        logical_block_size=logical,
        physical_block_size=physical,
        optimal_io_size=optimal * physical,
    )
    assert field(blk, "blk_size") << field(blk, "physical_block_exp") == physical
    assert field(blk, "min_io_size") * logical == physical
    assert field(blk, "opt_io_size") * logical == optimal * physical


@pytest.mark.parametrize(
    ("starts_write_back", "accepted", "written", "in_force"),
    [
        pytest.param(True, 0, None, False, id="no-driver-yet"),
        pytest.param(True, FLUSH, None, True, id="flush-only"),
        pytest.param(False, FLUSH, None, False, id="flush-only-write-through"),
        pytest.param(True, FLUSH, b"\0", True, id="the-field-is-not-the-driver's"),
        pytest.param(True, FLUSH | CONFIG_WCE, None, True, id="both"),
        pytest.param(True, FLUSH | CONFIG_WCE, b"\0", False, id="switched-to-write-through"),
        pytest.param(False, FLUSH | CONFIG_WCE, b"\1", True, id="switched-to-write-back"),
        pytest.param(True, CONFIG_WCE, None, False, id="cannot-flush"),
        pytest.param(True, CONFIG_WCE, b"\1", False, id="cannot-flush-yet-asks-for-it"),
    ],
)
def test_cache_mode_in_force_follows_what_was_negotiated(
    starts_write_back, accepted, written, in_force
):
    blk = device(write_back=starts_write_back)
    blk.accept(accepted)
    if written is not None:
        blk.write_config(32, written)
    assert blk.write_back is in_force
    if accepted & CONFIG_WCE:
        assert field(blk, "writeback") == in_force


def test_writeback_field_survives_a_reset_as_the_front_end_keeps_a_copy():
    blk = device()
    blk.accept(FLUSH | CONFIG_WCE)
    blk.write_config(32, b"\0")
    blk.reset()
    assert blk.write_back is False
    blk.accept(FLUSH | CONFIG_WCE)
    assert (blk.write_back, field(blk, "writeback")) == (False, 0)


def test_features_are_forgotten_at_reset():
    blk = device()
    blk.accept(FLUSH)
    assert blk.write_back
    blk.reset()
    assert not blk.write_back


@given(st.integers(0, 400), st.binary(max_size=64))
def test_no_byte_but_writeback_can_be_written(offset, data):
    blk = device()
    before = blk.config(0, 400)
    if (offset, len(data)) == (32, 1):
        blk.write_config(offset, data)
        assert field(blk, "writeback") == (data != b"\0")
    else:
        with pytest.raises(RequestRefused):
            blk.write_config(offset, data)
        assert blk.config(0, 400) == before


@given(st.integers(0, 63))
def test_a_feature_bit_is_accepted_only_if_it_was_offered(bit):
    blk = device()
    if blk.features >> bit & 1:
        blk.accept(1 << bit)
    else:
        with pytest.raises(RequestRefused, match=f"{1 << bit:#x}"):
            blk.accept(1 << bit)


def test_a_refused_choice_of_features_leaves_the_former_one():
    blk = device()
    blk.accept(FLUSH)
    with pytest.raises(RequestRefused):
        blk.accept(1 << 40)
    assert blk.write_back


def test_generation_rises_only_with_a_new_capacity():
    blk = device()
    blk.resize(2048)
    assert blk.generation == 0
    blk.resize(4096)
    assert (blk.generation, blk.capacity, field(blk, "capacity")) == (1, 4096, 4096)


def test_serial_is_padded_to_twenty_bytes_and_may_fill_them():
    assert device(serial="abc").serial == b"abc" + bytes(17)
    assert device(serial="x" * 20).serial == b"x" * 20


def test_limits_let_a_driver_send_a_mebibyte_in_one_request():
    blk = device(queue_size=4)
    assert field(blk, "size_max") * field(blk, "seg_max") >= 1 << 20


def test_a_set_of_features_never_changes():
    """A guest that was started with one finds it on the other side of every migration."""
    of_0_1 = ALWAYS | RO | MQ | DISCARD | WRITE_ZEROES
    assert {name: int(features) for name, features in FEATURE_SETS.items()} == {
        "0.1": of_0_1,
        "0.2": of_0_1 | 1 << 33,
    }
    assert device(feature_set="0.1").features & ALWAYS == ALWAYS


def test_each_set_of_features_has_a_name_that_may_be_chosen():
    assert tuple(FEATURE_SETS) == get_args(FeatureSet)


def shown(**changes):
    return dataclasses.replace(Shown.first(PLAIN), **changes)


def test_a_device_that_is_taken_over_goes_on_showing_what_it_showed():
    other = dataclasses.replace(PLAIN, physical_block_size=512, discard_granularity=0, queue_size=8)
    there, here = BlkDevice(PLAIN), BlkDevice(other, Shown.first(PLAIN))
    assert here.features == there.features
    assert here.config(0, CONFIG_BYTES) == there.config(0, CONFIG_BYTES)
    assert here.max_discard_sectors == there.max_discard_sectors > 0
    assert here.max_write_zeroes_segments == there.max_write_zeroes_segments > 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"features": 1 << 40}, id="unknown-feature"),
        pytest.param({"features": 1 << 64}, id="feature-beyond-64-bits"),
        pytest.param({"features": ALWAYS | DISCARD | WRITE_ZEROES | RO}, id="read-only"),
        pytest.param({"features": ALWAYS}, id="limits-of-what-is-not-offered"),
        pytest.param({"physical_block_size": 0}, id="no-physical-block"),
        pytest.param({"physical_block_size": 768}, id="physical-blocks-cut-logical-ones"),
        pytest.param({"physical_block_size": 1 << 31}, id="physical-block-too-large"),
        pytest.param({"optimal_io_size": 1000}, id="optimal-size-cuts-blocks"),
        pytest.param({"discard_granularity": 0}, id="no-granularity"),
        pytest.param({"max_discard_segments": 257}, id="too-many-segments"),
        pytest.param({"max_discard_sectors": 0}, id="nothing-to-discard"),
    ],
)
def test_what_no_device_shows_is_not_taken_over(changes):
    with pytest.raises(ConfigError):
        BlkDevice(PLAIN, shown(**changes))
