# SPDX-License-Identifier: Apache-2.0
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import ProtocolError
from blkd.vhost_user import wire
from blkd.vhost_user.requests import MAX_PAYLOAD, REQUESTS
from blkd.vhost_user.wire import (
    MAX_REGIONS,
    U64,
    Config,
    Header,
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
# Regions that wrap in no address space.
regions = st.builds(
    MemoryRegion,
    guest_address=st.integers(0, 2**63),
    size=st.integers(1, 2**62),
    user_address=st.integers(0, 2**63),
    mmap_offset=st.integers(0, 2**62),
)
payloads = st.one_of(
    st.builds(U64, u64),
    st.builds(VringState, u32, u32),
    st.builds(VringAddr, u32, u32, u64, u64, u64, u64),
    st.builds(VringFd, st.integers(0, 255), st.booleans()),
    st.builds(SingleRegion, regions),
    st.builds(MemoryTable, st.lists(regions, min_size=1, max_size=MAX_REGIONS).map(tuple)),
    st.builds(Config, u32, u32, st.binary(max_size=wire.MAX_CONFIG)),
)
layouts = sorted({declaration.payload for declaration in REQUESTS.values()}, key=repr)


@given(payloads)
def test_a_payload_survives_the_wire(payload):
    assert type(payload).decode(payload.encode()) == payload


@given(payloads)
def test_a_payload_is_never_longer_than_it_says(payload):
    assert len(payload.encode()) <= payload.LONGEST <= MAX_PAYLOAD


@given(payloads, st.sampled_from([-1, 1]))
def test_a_payload_of_another_length_is_malformed(payload, excess):
    data = payload.encode()
    data = data + b"\0" if excess > 0 else data[:-1]
    with pytest.raises(ProtocolError):
        type(payload).decode(data)


@given(st.sampled_from(layouts), st.binary(max_size=MAX_PAYLOAD))
def test_arbitrary_bytes_are_decoded_or_malformed(layout, data):
    try:
        payload = layout.decode(data)
    except ProtocolError:
        return
    assert isinstance(payload, layout)


@given(st.builds(Header, u32, st.sampled_from([1, 5, 9, 13]), u32))
def test_a_header_survives_the_wire(header):
    assert Header.decode(header.encode()) == header
    assert header.is_reply == (header.flags in {5, 13})
    assert header.needs_reply == (header.flags in {9, 13})


@pytest.mark.parametrize("flags", [0, 2, 3, 0x11, 0x80000001])
def test_a_header_of_another_version_or_with_unknown_flags_is_malformed(flags):
    with pytest.raises(ProtocolError, match=r"version|flags"):
        Header.decode(struct.pack("=III", 1, flags, 0))


def test_a_reply_has_exactly_the_flags_that_qemu_compares_with():
    assert wire.reply(24, b"ab") == struct.pack("=III", 24, 0x5, 2) + b"ab"


@pytest.mark.parametrize(
    "region",
    [
        pytest.param(MemoryRegion(0, 0, 0, 0), id="empty"),
        pytest.param(MemoryRegion(2**64 - 4096, 8192, 0, 0), id="guest-address-wraps"),
        pytest.param(MemoryRegion(0, 8192, 2**64 - 4096, 0), id="user-address-wraps"),
        pytest.param(MemoryRegion(0, 8192, 0, 2**63 - 4096), id="offset-is-no-off_t"),
        pytest.param(MemoryRegion(0, 2**64 - 1, 0, 0), id="longer-than-any-file"),
    ],
)
def test_a_region_that_cannot_be_is_malformed(region):
    with pytest.raises(ProtocolError, match="memory region"):
        MemoryRegion.decode(region.encode())


@pytest.mark.parametrize("count", [0, 9, 2**32 - 1])
def test_a_memory_table_has_one_to_eight_regions(count):
    body = MemoryRegion(0, 4096, 0, 0).encode() * min(count, 9)
    with pytest.raises(ProtocolError, match="memory regions, not 1 to 8"):
        MemoryTable.decode(struct.pack("=II", count, 0) + body)


@given(regions, regions)
def test_regions_overlap_when_they_share_an_address(one, other):
    first, second = sorted((one, other), key=lambda region: region.guest_address)
    shared = second.guest_address < first.guest_address + first.size
    assert one.overlaps(other) == other.overlaps(one) == shared


def test_a_vring_fd_with_unknown_bits_is_malformed():
    with pytest.raises(ProtocolError, match="0x200"):
        VringFd.decode(struct.pack("=Q", 0x200))
