# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import ProtocolError, RequestRefused
from blkd.vhost_user.commands import (
    Configure,
    InvalidateIotlb,
    StartVring,
    TranslateAddresses,
    UpdateIotlb,
)
from blkd.vhost_user.iotlb import Access, IotlbEntry, IotlbKind, IotlbMessage
from blkd.vhost_user.requests import OFFERED_PROTOCOL_FEATURES
from blkd.vhost_user.session import Session
from blkd.vhost_user.session_snapshot import restore_session, session_snapshot
from blkd.vhost_user.wire import U64, LogBase, ProtocolFeature, Request, VringFd, VringState
from tests.conversation import ADDRESSES, BIT_30, LOG_ALL, VERSION_1, Conversation
from tests.doubles import ToyDevice

ACCESS_PLATFORM = 1 << 33
FEATURES = BIT_30 | VERSION_1 | ACCESS_PLATFORM
BOTH = Access.READ | Access.WRITE
END = 2**64
UPDATE = IotlbMessage(0x10000, 0x1000, 0x7F0000001000, BOTH, IotlbKind.UPDATE)
INVALIDATE = replace(UPDATE, kind=IotlbKind.INVALIDATE)


@pytest.fixture
def talk():
    return Conversation(FEATURES)


# The message

u64 = st.integers(0, END - 1)
messages = st.builds(
    IotlbMessage,
    u64,
    u64,
    u64,
    st.sampled_from(list(map(Access, range(4)))),
    st.sampled_from(IotlbKind),
)


@given(messages)
def test_an_iotlb_message_survives_the_wire(message):
    assert IotlbMessage.decode(message.encode()) == message
    assert IotlbMessage.decode(message.encode()[:26]) == message


@pytest.mark.parametrize("size", [0, 25, 27, 31, 33])
def test_a_message_of_another_length_is_none(size):
    with pytest.raises(ProtocolError):
        IotlbMessage.decode(UPDATE.encode().ljust(40)[:size])


@pytest.mark.parametrize(("at", "value"), [(24, 4), (24, 255), (25, 0), (25, 5), (25, 255)])
def test_unknown_permissions_and_types_are_refused_on_the_wire(at, value):
    payload = bytearray(UPDATE.encode())
    payload[at] = value
    with pytest.raises(ProtocolError):
        IotlbMessage.decode(bytes(payload))


# Negotiation


def test_the_feature_has_addresses_translated(talk):
    talk.say(Request.SET_FEATURES, U64(FEATURES & ~ACCESS_PLATFORM))
    assert talk.commands == [TranslateAddresses(on=False), Configure()]
    talk.say(Request.SET_FEATURES, U64(FEATURES))
    assert talk.commands == [TranslateAddresses(on=True), Configure()]


def test_what_is_known_is_forgotten_when_the_features_are_set_again(talk):
    """QEMU sets them at each start, and does not invalidate what a reset has made void."""
    talk.say(Request.SET_FEATURES, U64(FEATURES))
    assert talk.commands == [TranslateAddresses(on=True), Configure()]
    talk.start_ring()
    talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL))
    assert TranslateAddresses(on=True) not in talk.commands


def test_a_reset_device_takes_addresses_as_they_are(talk):
    talk.say(Request.RESET_DEVICE)
    assert TranslateAddresses(on=False) in talk.commands
    talk.say(Request.RESET_DEVICE)
    assert TranslateAddresses(on=False) not in talk.commands


@pytest.mark.parametrize("lacking", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
def test_without_a_way_to_ask_the_feature_is_refused(lacking):
    talk = Conversation(features=None)
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES & ~lacking))
    with pytest.raises((ProtocolError, RequestRefused), match="have to be negotiated first"):
        talk.say(Request.SET_FEATURES, U64(FEATURES))
    assert not talk.commands
    assert not talk.session.features


def test_the_way_to_ask_cannot_be_given_up_while_it_is_needed(talk):
    fewer = U64(OFFERED_PROTOCOL_FEATURES & ~ProtocolFeature.BACKEND_REQ)
    assert talk.refuses(Request.SET_PROTOCOL_FEATURES, fewer)


# Translations


def test_a_translation_is_taken(talk):
    assert talk.say(Request.IOTLB_MSG, UPDATE) == bytes(8)
    assert talk.commands == [UpdateIotlb(IotlbEntry(0x10000, 0x1000, 0x7F0000001000, BOTH))]


@pytest.mark.parametrize(
    "absurd",
    [
        pytest.param({"size": 0}, id="empty"),
        pytest.param({"access": Access(0)}, id="for-nothing"),
        pytest.param({"iova": END - 0x1000, "size": 0x2000}, id="iova-wraps"),
        pytest.param({"user_address": END - 0x1000, "size": 0x2000}, id="user-address-wraps"),
        pytest.param({"size": END - 0x1000}, id="endless"),
        pytest.param({"iova": 0x10800}, id="iova-in-a-page"),
        pytest.param({"user_address": 0x7F0000001008}, id="user-address-in-a-page"),
        pytest.param({"size": 0x1001}, id="a-page-and-a-byte"),
        pytest.param({"kind": IotlbKind.MISS}, id="a-miss"),
        pytest.param({"kind": IotlbKind.ACCESS_FAIL}, id="an-access-failure"),
    ],
)
def test_an_absurd_translation_is_refused(talk, absurd):
    assert talk.refuses(Request.IOTLB_MSG, replace(UPDATE, **absurd))


@pytest.mark.parametrize(
    ("iova", "size", "expected"),
    [
        pytest.param(0x10000, 0x1000, (0x10000, 0x1000), id="a-page"),
        pytest.param(0, 0, (0, END), id="everything-as-QEMU-says-it"),
        pytest.param(0, END - 1, (0, END - 1), id="all-but-a-byte"),
        pytest.param(0x1000, END - 1, (0x1000, END - 0x1000), id="wraps"),
        pytest.param(END - 1, 1, (END - 1, 1), id="the-last-byte"),
        pytest.param(0x1000, 0, (0x1000, END - 0x1000), id="from-somewhere-on"),
    ],
)
def test_a_range_is_forgotten(talk, iova, size, expected):
    assert talk.say(Request.IOTLB_MSG, replace(INVALIDATE, iova=iova, size=size)) == bytes(8)
    assert talk.commands == [InvalidateIotlb(*expected)]


def test_what_the_data_path_refuses_is_answered_so(talk):
    talk.fails = (UpdateIotlb,)
    assert talk.say(Request.IOTLB_MSG, UPDATE) != bytes(8)
    talk.fails = ()
    assert talk.say(Request.IOTLB_MSG, UPDATE) == bytes(8)


@pytest.mark.parametrize("message", [UPDATE, INVALIDATE])
def test_without_the_feature_there_is_nothing_to_translate(message):
    assert Conversation().refuses(Request.IOTLB_MSG, message)


# Vrings


def test_a_vring_says_that_its_addresses_are_translated(talk):
    talk.place_ring()
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    (start,) = (command for command in talk.commands if isinstance(command, StartVring))
    assert start.setup.translated


def test_iovas_of_a_vring_have_to_be_aligned_too(talk):
    assert talk.refuses(Request.SET_VRING_ADDR, replace(ADDRESSES, desc=0x1008))


def test_an_iova_may_be_beyond_the_dirty_log(talk):
    """QEMU says where the used ring is logged by an IOVA: the log knows nothing of these."""
    logged = replace(ADDRESSES, flags=1, log=2**40)
    talk.say(Request.SET_LOG_BASE, LogBase(4096, 0), 1)
    talk.say(Request.SET_VRING_NUM, VringState(0, 128))
    assert talk.say(Request.SET_VRING_ADDR, logged, need_reply=True) == bytes(8)
    assert talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1, need_reply=True) == bytes(8)
    talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL))
    assert talk.session.vrings[0].started


# Upgrades


def test_a_session_that_translates_is_restored(talk):
    talk.start_ring()
    session = Session(ToyDevice())
    restore_session(session, session_snapshot(talk.session))
    assert session_snapshot(session) == session_snapshot(talk.session)


def test_a_session_that_could_not_ask_is_not_restored(talk):
    snapshot = replace(session_snapshot(talk.session), protocol_features=0)
    with pytest.raises(RequestRefused):
        restore_session(Session(ToyDevice()), snapshot)
