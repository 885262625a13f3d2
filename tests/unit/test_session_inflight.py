# SPDX-License-Identifier: Apache-2.0
"""The in-flight region, as a front end asks for it and hands it over."""

from dataclasses import replace

import pytest

from blkd.errors import ProtocolError
from blkd.vhost_user.commands import OfferInflight, StopVring, UseInflight
from blkd.vhost_user.inflight import Inflight, part_bytes, part_entries
from blkd.vhost_user.wire import U64, Request, VirtioFeature, VringState
from tests.conversation import BIT_30, VERSION_1, Conversation

PACKED = BIT_30 | VERSION_1 | VirtioFeature.RING_PACKED
LARGEST = 256  # descriptors: what the toy device serves
REGION = Inflight(2 * 4160, 0, 2, 128)  # 16 bytes and 16 an entry, in whole cache lines
OLD = Inflight(2 * 2112, 0, 2, 128)  # as blkd made it once: for rings as they were asked for


@pytest.fixture
def talk():
    return Conversation()


def test_each_part_begins_on_a_cache_line_of_its_own():
    assert part_bytes(128, packed=False) == 16 + 16 * 128 + 48
    assert part_bytes(3, packed=False) == 64
    assert part_bytes(128, packed=True) == 32 + 32 * 128 + 32


@pytest.mark.parametrize("padded", [False, True], ids=["20 bytes", "24 bytes"])
def test_a_region_is_made_for_the_largest_rings_whatever_is_asked(talk, padded):
    wanted = Inflight(0, 0, 2, 128, padded)
    reply = talk.say(Request.GET_INFLIGHT_FD, wanted)
    assert reply == replace(REGION, padded=padded).encode()
    assert talk.commands == [OfferInflight(replace(REGION, padded=padded))]
    assert len(reply) == (24 if padded else 20)


def test_a_region_for_packed_rings_is_larger():
    talk = Conversation(features=None)
    talk.device.features |= VirtioFeature.RING_PACKED
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(talk.number(Request.GET_PROTOCOL_FEATURES)))
    talk.say(Request.SET_FEATURES, U64(PACKED))
    reply = talk.say(Request.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128))
    assert Inflight.decode(reply) == Inflight(8256, 0, 1, 128)
    talk.say(Request.SET_INFLIGHT_FD, Inflight(8256, 0, 1, 128), fds=1)
    assert talk.commands == [UseInflight(Inflight(8256, 0, 1, 128), packed=True)]


@pytest.mark.parametrize(
    ("queues", "size"), [(0, 128), (5, 128), (65535, 128), (1, 0), (1, 257), (1, 65535)], ids=str
)
def test_a_region_for_rings_that_we_do_not_have_is_not_made(talk, queues, size):
    reply = talk.say(Request.GET_INFLIGHT_FD, Inflight(0, 0, queues, size, padded=True))
    assert reply == bytes(24)
    assert talk.commands == []


@pytest.mark.parametrize("region", [REGION, OLD, replace(REGION, mmap_size=64)], ids=str)
def test_a_region_is_taken_whoever_made_it(talk, region):
    assert talk.say(Request.SET_INFLIGHT_FD, region, fds=1, need_reply=True) == bytes(8)
    assert talk.commands == [UseInflight(region, packed=False)]


@pytest.mark.parametrize(
    ("region", "entries"),
    [
        (REGION, 256),
        (OLD, 128),
        (replace(REGION, queue_size=256), 256),
        (replace(REGION, queues=1), 0),
        (replace(REGION, queues=3), 0),
        (replace(REGION, mmap_size=REGION.mmap_size - 64), 0),
        (replace(REGION, mmap_size=REGION.mmap_size + 64), 0),
        (replace(OLD, mmap_size=1), 0),
    ],
    ids=str,
)
def test_the_size_of_a_region_tells_how_large_its_rings_may_be(region, entries):
    assert part_entries(region, LARGEST, packed=False) == entries


@pytest.mark.parametrize(
    "region",
    [
        replace(REGION, mmap_size=0),
        replace(REGION, mmap_size=2**64 - 1),
        replace(REGION, mmap_offset=4),
        replace(REGION, mmap_offset=2**63),
        replace(REGION, mmap_offset=2**64 - 64),
        replace(REGION, queues=0),
        replace(REGION, queues=5),
        replace(REGION, queue_size=257),
    ],
    ids=str,
)
def test_a_region_that_cannot_be_is_refused(talk, region):
    assert talk.say(Request.SET_INFLIGHT_FD, region, fds=1, need_reply=True) != bytes(8)
    assert talk.commands == []


@pytest.mark.parametrize("fds", [0, 2])
def test_a_region_comes_with_one_descriptor(talk, fds):
    with pytest.raises(ProtocolError):
        talk.say(Request.SET_INFLIGHT_FD, REGION, fds=fds)


@pytest.mark.parametrize("length", [0, 19, 21, 23, 25])
def test_a_description_of_another_length_is_malformed(talk, length):
    with pytest.raises(ProtocolError):
        talk.say(Request.GET_INFLIGHT_FD, bytes(length))


def test_a_region_cannot_be_replaced_under_a_running_ring(talk):
    talk.start_ring()
    assert talk.say(Request.SET_INFLIGHT_FD, REGION, fds=1, need_reply=True) != bytes(8)
    assert talk.commands == []


def test_a_disabled_ring_makes_room_for_a_region(talk):
    talk.start_ring()
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 0))
    assert talk.say(Request.SET_INFLIGHT_FD, REGION, fds=1, need_reply=True) == bytes(8)
    assert talk.commands == [StopVring(0), UseInflight(REGION, packed=False)]


def test_without_the_feature_there_is_no_region():
    talk = Conversation(features=None)
    assert talk.say(Request.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128)) == bytes(24)
