# SPDX-License-Identifier: Apache-2.0
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blkd.errors import BlkdError, ProtocolError
from blkd.vhost_user.commands import (
    AddMemory,
    Announce,
    Configure,
    EnableVring,
    MoveVring,
    RemoveMemory,
    SetMemory,
    StartVring,
    StopVring,
)
from blkd.vhost_user.requests import (
    MAX_MEM_SLOTS,
    MAX_PAYLOAD,
    OFFERED_PROTOCOL_FEATURES,
    REQUESTS,
    Support,
)
from blkd.vhost_user.session import Session
from blkd.vhost_user.wire import (
    U64,
    Config,
    Header,
    LogBase,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    Request,
    SingleRegion,
    VringFd,
    VringState,
)
from tests.conversation import ADDRESSES, BIT_30, LOG_ALL, REGION, VERSION_1, Conversation


@pytest.fixture
def talk():
    return Conversation()


# Arbitrary input

reasonable = st.sampled_from(
    [
        U64(OFFERED_PROTOCOL_FEATURES),
        U64(BIT_30 | VERSION_1),
        U64(BIT_30 | LOG_ALL | VERSION_1),
        U64(VERSION_1),
        LogBase(4096, 0),
        replace(ADDRESSES, flags=1, log=2**40),
        MemoryTable((REGION,)),
        SingleRegion(REGION),
        SingleRegion(replace(REGION, guest_address=0x100000)),
        VringState(0, 128),
        VringState(1, 1),
        VringState(0, 0),
        replace(ADDRESSES, index=1),
        ADDRESSES,
        VringFd(0, has_fd=True),
        VringFd(1, has_fd=True),
        VringFd(1, has_fd=False),
        Config(0, 0, bytes(60)),
        Config(32, 0, b"\1"),
    ]
).map(lambda payload: payload.encode())
messages = st.tuples(
    st.sampled_from(Request) | st.integers(0, 2**32 - 1),
    st.just(b"") | reasonable | st.binary(max_size=MAX_PAYLOAD),
    st.integers(0, 8),
    st.booleans(),
)


@settings(max_examples=300)
@given(st.lists(messages, max_size=30))
def test_no_message_raises_anything_but_our_own_errors(said):
    talk = Conversation(features=None)
    for request, payload, fds, need_reply in said:
        try:
            reply = talk.say(request, payload, fds, need_reply=need_reply)
        except BlkdError:
            continue
        assert reply is None or len(reply) <= MAX_PAYLOAD


@settings(max_examples=300)
@given(st.lists(messages, max_size=40))
def test_commands_of_a_ring_alternate(said):
    """Whatever is said, commands alternate: no ring is started twice or stopped when stopped."""
    talk = Conversation(features=None)
    started, enabled = set(), set()
    for request, payload, fds, need_reply in said:
        with contextlib.suppress(BlkdError):
            talk.say(request, payload, fds, need_reply=need_reply)
        for command in talk.commands:
            match command:
                case StartVring(index):
                    assert index not in started
                    started.add(index)
                case StopVring(index):
                    started.remove(index)
                case MoveVring(index):
                    assert index in started
                case EnableVring(index, on):
                    assert (index in enabled) != on
                    (enabled.add if on else enabled.remove)(index)
        assert talk.session.serving == started & enabled


# Declarations

SUPPORTED = {Support.YES, Support.OF_DEVICE}


def test_each_request_of_the_specification_is_declared():
    assert set(REQUESTS) == set(Request)
    assert sorted(Request) == list(range(1, 44))


@pytest.mark.parametrize("request_", Request, ids=lambda request: request.name)
def test_a_request_has_a_handler_exactly_if_it_is_supported(request_):
    supported = REQUESTS[request_].support in SUPPORTED
    assert hasattr(Session, request_.name.lower()) == supported
    assert supported or REQUESTS[request_].note


def test_only_what_works_whole_is_offered(talk):
    assert talk.number(Request.GET_PROTOCOL_FEATURES) == sum(
        1 << bit for bit in (0, 1, 3, 5, 9, 12, 13, 15, 16)
    )


def test_a_device_adds_protocol_features_of_its_own():
    assert Conversation().refuses(Request.SEND_RARP, U64(1))
    talk = Conversation(features=None)
    talk.device.protocol_features = int(ProtocolFeature.RARP)
    offered = talk.number(Request.GET_PROTOCOL_FEATURES)
    assert offered == OFFERED_PROTOCOL_FEATURES | ProtocolFeature.RARP
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(offered))
    talk.say(Request.SET_FEATURES, U64(BIT_30))
    assert talk.say(Request.SEND_RARP, U64(0x0605040302FF), need_reply=True) == bytes(8)
    assert talk.commands == [Announce(b"\xff\2\3\4\5\6")]


declined = [request for request, said in REQUESTS.items() if said.support not in SUPPORTED]


@pytest.mark.parametrize("request_", declined, ids=lambda request: request.name)
def test_a_request_that_is_not_supported_is_refused_in_its_own_way(talk, request_):
    declaration = REQUESTS[request_]
    if declaration.replies and declaration.refusal is None:
        with pytest.raises(ProtocolError, match=request_.name):
            talk.say(request_, b"whatever", need_reply=True)
    else:
        assert talk.refuses(request_, b"whatever", fds=1)


# Acknowledgements and refusals


def test_an_acknowledgement_is_sent_only_if_asked_for(talk):
    assert talk.say(Request.SET_OWNER) is None
    assert talk.say(Request.SET_OWNER, need_reply=True) == bytes(8)


def test_without_reply_ack_nothing_is_acknowledged():
    talk = Conversation(features=None)
    assert talk.say(Request.SET_OWNER, need_reply=True) is None


def test_the_message_that_negotiates_reply_ack_is_acknowledged_itself():
    talk = Conversation(features=None)
    wanted = U64(ProtocolFeature.REPLY_ACK)
    assert talk.say(Request.SET_PROTOCOL_FEATURES, wanted, need_reply=True) == bytes(8)


def test_a_reply_of_its_own_is_not_acknowledged_besides(talk):
    assert talk.say(Request.GET_QUEUE_NUM, need_reply=True) == U64(4).encode()


def test_an_unknown_request_is_refused(talk):
    assert talk.refuses(77)


def test_a_refusal_that_nobody_would_hear_ends_the_connection(talk):
    with pytest.raises(ProtocolError, match="77"):
        talk.say(77)
    with pytest.raises(ProtocolError, match="ring 4 of 4"):
        talk.say(Request.SET_VRING_NUM, VringState(4, 128))


def test_a_reply_to_nothing_ends_the_connection(talk):
    header = Header(Request.GET_FEATURES, 0x5, 0)
    with pytest.raises(ProtocolError, match="nobody sent"):
        talk.run(header, b"", 0)


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        pytest.param(Request.GET_FEATURES, b"", 1, id="one-with-get-features"),
        pytest.param(Request.SET_MEM_TABLE, MemoryTable((REGION,)), 0, id="none-for-a-region"),
        pytest.param(Request.SET_MEM_TABLE, MemoryTable((REGION,)), 2, id="two-for-a-region"),
        pytest.param(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 0, id="no-kick"),
        pytest.param(Request.SET_VRING_CALL, VringFd(0, has_fd=False), 1, id="call-in-spite"),
        pytest.param(Request.ADD_MEM_REG, SingleRegion(REGION), 0, id="no-memory"),
        pytest.param(Request.SET_BACKEND_REQ_FD, b"", 0, id="no-channel"),
        pytest.param(Request.REM_MEM_REG, SingleRegion(REGION), 2, id="two-to-remove"),
    ],
)
def test_a_wrong_number_of_descriptors_ends_the_connection(talk, request_, payload, fds):
    with pytest.raises(ProtocolError, match=f"{request_.name}: {fds} descriptors"):
        talk.say(request_, payload, fds, need_reply=True)


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (Request.SET_BACKEND_REQ_FD, b"", 1),
        (Request.ADD_MEM_REG, SingleRegion(REGION), 1),
        (Request.REM_MEM_REG, SingleRegion(REGION), 0),
        (Request.RESET_DEVICE, b"", 0),
        (Request.SET_STATUS, U64(1), 0),
        (Request.SET_CONFIG, Config(32, 0, b"\1"), 0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_request_needs_its_feature(request_, payload, fds):
    talk = Conversation(features=None)
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK))
    assert talk.refuses(request_, payload, fds)


# Features


def test_the_device_s_features_are_offered_with_bit_30_and_log_all(talk):
    assert talk.number(Request.GET_FEATURES) == talk.device.features | BIT_30 | LOG_ALL


def test_features_come_twice_and_reach_the_device_without_bit_30(talk):
    assert talk.say(Request.SET_FEATURES, U64(BIT_30 | VERSION_1)) is None
    assert talk.device.accepted == VERSION_1
    assert talk.commands == [Configure()]


def test_features_never_offered_are_refused(talk):
    assert talk.refuses(Request.SET_FEATURES, U64(1 << 35 | BIT_30))
    assert talk.refuses(Request.SET_PROTOCOL_FEATURES, U64(1 << 12))


def test_features_do_not_change_under_a_running_ring(talk):
    talk.start_ring()
    assert talk.refuses(Request.SET_FEATURES, U64(BIT_30))
    assert talk.say(Request.SET_FEATURES, U64(BIT_30 | VERSION_1), need_reply=True) == bytes(8)


def test_without_bit_30_all_rings_are_enabled():
    talk = Conversation(features=VERSION_1)
    assert talk.commands == [Configure(), *(EnableVring(index, enabled=True) for index in range(4))]
    talk.place_ring()
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    assert talk.session.serving == {0}
    assert talk.refuses(Request.SET_VRING_ENABLE, VringState(0, 0))


def test_the_number_of_queues_is_known_before_features_are_set():
    assert Conversation(features=None, queues=3).number(Request.GET_QUEUE_NUM) == 3


def test_the_status_is_remembered(talk):
    assert talk.number(Request.GET_STATUS) == 0
    talk.say(Request.SET_STATUS, U64(0x0F))
    assert talk.number(Request.GET_STATUS) == 0x0F
    assert talk.refuses(Request.SET_STATUS, U64(0x100))


# Configuration space


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 57), (0, 64), (8, 4), (60, 200), (5000, 8), (0, 0), (0, 4096)]
)
def test_any_piece_of_the_configuration_can_be_read(talk, offset, size):
    reply = talk.say(Request.GET_CONFIG, Config(offset, 1, bytes(size)))
    answer = Config.decode(reply)
    assert (answer.offset, answer.flags, len(reply)) == (offset, 1, 12 + size)
    at = offset - 0x100 if offset >= 0x100 else offset
    assert answer.data == bytes(range(64))[at : at + size].ljust(size, b"\0")


def test_an_offset_from_0x100_on_is_relative_to_that(talk):
    reply = talk.say(Request.GET_CONFIG, Config(0x108, 0, bytes(4)))
    assert Config.decode(reply) == Config(0x108, 0, bytes([8, 9, 10, 11]))


def test_a_config_read_that_is_refused_has_an_empty_reply():
    assert Conversation(features=None).say(Request.GET_CONFIG, Config(0, 0, bytes(8))) == b""


@pytest.mark.parametrize("offset", [32, 0x120])
def test_a_writable_field_is_written(talk, offset):
    assert talk.say(Request.SET_CONFIG, Config(offset, 0, b"\0"), need_reply=True) == bytes(8)
    assert talk.commands == [Configure()]
    assert talk.device.space[32] == 0


def test_other_fields_are_not_writable(talk):
    assert talk.refuses(Request.SET_CONFIG, Config(0, 0, bytes(8)))


def test_a_config_read_is_what_makes_the_front_end_up_to_date(talk):
    assert talk.session.is_stale
    talk.say(Request.GET_CONFIG, Config(0, 0, bytes(8)))
    assert not talk.session.is_stale
    talk.device.change()
    assert talk.session.is_stale


def test_reading_something_else_does_not_make_the_front_end_up_to_date(talk):
    talk.say(Request.GET_CONFIG, Config(32, 0, bytes(1)))
    talk.say(Request.GET_CONFIG, Config(0, 0, bytes(4)))
    assert talk.session.is_stale


def test_a_config_write_may_have_more_room_than_it_needs(talk):
    """DPDK's front end always sends the whole space."""
    payload = Config(32, 0, b"\0").encode() + bytes(255)
    assert talk.say(Request.SET_CONFIG, payload, need_reply=True) == bytes(8)
    assert talk.device.space[32] == 0


# Memory


def test_a_memory_table_replaces_all_regions(talk):
    other = replace(REGION, guest_address=0x100000)
    talk.say(Request.SET_MEM_TABLE, MemoryTable((REGION,)), 1)
    talk.say(Request.SET_MEM_TABLE, MemoryTable((other, REGION)), 2)
    assert talk.commands == [SetMemory((other, REGION))]
    assert talk.session.regions == (other, REGION)


def test_regions_are_added_and_removed_one_by_one(talk):
    talk.say(Request.ADD_MEM_REG, SingleRegion(REGION), 1)
    assert talk.commands == [AddMemory(REGION)]
    talk.say(Request.REM_MEM_REG, SingleRegion(replace(REGION, mmap_offset=99)), 1)
    assert talk.commands == [RemoveMemory(REGION)]
    assert talk.session.regions == ()


def test_a_region_that_is_not_there_cannot_be_removed(talk):
    talk.say(Request.ADD_MEM_REG, SingleRegion(REGION), 1)
    for change in ({"size": 1}, {"guest_address": 1}, {"user_address": 1}):
        assert talk.refuses(Request.REM_MEM_REG, SingleRegion(replace(REGION, **change)))


def test_a_region_goes_when_it_was_removed_as_often_as_added(talk):
    for _ in range(3):
        talk.say(Request.ADD_MEM_REG, SingleRegion(REGION), 1)
    assert talk.session.regions == (REGION,)
    assert not talk.commands, "only the first is mapped"
    for left in ((REGION,), (REGION,), ()):
        talk.say(Request.REM_MEM_REG, SingleRegion(REGION))
        assert talk.session.regions == left
    assert talk.refuses(Request.REM_MEM_REG, SingleRegion(REGION))


def test_regions_do_not_overlap(talk):
    assert talk.refuses(Request.SET_MEM_TABLE, MemoryTable((REGION, REGION)), 2)
    talk.say(Request.ADD_MEM_REG, SingleRegion(REGION), 1)
    other = replace(REGION, guest_address=REGION.guest_address + 0x1000)
    assert talk.refuses(Request.ADD_MEM_REG, SingleRegion(other), 1)


def test_there_are_as_many_memory_slots_as_announced(talk):
    assert talk.number(Request.GET_MAX_MEM_SLOTS) == MAX_MEM_SLOTS
    for slot in range(MAX_MEM_SLOTS + 1):
        region = SingleRegion(MemoryRegion(slot << 16, 4096, slot << 16, 0))
        assert talk.refuses(Request.ADD_MEM_REG, region, 1) == (slot == MAX_MEM_SLOTS)


def test_memory_that_the_rings_refuse_is_not_there(talk):
    talk.fails = (SetMemory, AddMemory)
    assert talk.refuses(Request.SET_MEM_TABLE, MemoryTable((REGION,)), 1)
    assert talk.refuses(Request.ADD_MEM_REG, SingleRegion(REGION), 1)


@pytest.mark.parametrize("bit", [40, 63])
def test_bits_beyond_all_that_are_known_were_not_offered_either(bit):
    front_end = Conversation()
    assert front_end.refuses(
        Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES | 1 << bit)
    )
    assert front_end.refuses(Request.SET_FEATURES, U64(BIT_30 | VERSION_1 | 1 << bit))
