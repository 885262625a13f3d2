# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from blkd.errors import ProtocolError
from blkd.vhost_user.commands import (
    Configure,
    EnableVring,
    MoveVring,
    OpenBackChannel,
    SetCall,
    SetError,
    SetKick,
    StartVring,
    StopVring,
)
from blkd.vhost_user.requests import OFFERED_PROTOCOL_FEATURES
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import (
    U64,
    Request,
    VirtioFeature,
    VringFd,
    VringState,
)
from tests.conversation import ADDRESSES, BIT_30, VERSION_1, Conversation


@pytest.fixture
def talk():
    return Conversation()


def test_a_ring_starts_with_its_kick_and_is_served_once_enabled(talk):
    talk.place_ring(base=5)
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    setup = VringSetup(128, ADDRESSES.desc, ADDRESSES.avail, ADDRESSES.used, 5, BIT_30 | VERSION_1)
    assert talk.commands == [SetKick(0), StartVring(0, setup)]
    assert not talk.session.serving
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert talk.commands == [EnableVring(0, enabled=True)]
    assert talk.session.serving == {0}


def test_a_ring_that_was_kicked_first_starts_when_it_is_complete(talk):
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    assert talk.commands == [SetKick(0)]
    talk.place_ring()
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert [type(command) for command in talk.commands] == [EnableVring, StartVring]


def test_a_ring_that_is_enabled_already_starts_with_what_comes_last():
    talk = Conversation(features=VERSION_1)
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    talk.say(Request.SET_VRING_ADDR, ADDRESSES)
    talk.say(Request.SET_VRING_NUM, VringState(0, 64))
    assert [type(command) for command in talk.commands] == [StartVring]


def test_call_and_error_come_before_anything_else(talk):
    for has_fd in (True, False):
        talk.say(Request.SET_VRING_CALL, VringFd(3, has_fd=has_fd), int(has_fd))
        assert talk.commands == [SetCall(3)]
        talk.say(Request.SET_VRING_ERR, VringFd(3, has_fd=has_fd), int(has_fd))
        assert talk.commands == [SetError(3)]


def test_a_ring_without_a_kick_is_refused(talk):
    assert talk.refuses(Request.SET_VRING_KICK, VringFd(0, has_fd=False))


def test_stopping_tells_where_and_the_ring_goes_on_from_there(talk):
    talk.start_ring()
    talk.base = 0xFFFE
    assert talk.say(Request.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 0xFFFE).encode()
    assert talk.commands == [StopVring(0)]
    assert not talk.session.serving
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    assert talk.commands[-1].setup.base == 0xFFFE
    assert talk.session.serving == {0}  # enabling outlives stopping


def test_a_stopped_ring_tells_its_base(talk):
    talk.say(Request.SET_VRING_BASE, VringState(2, 9))
    assert talk.say(Request.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 9).encode()
    assert talk.commands == []


@pytest.mark.parametrize("reset", ["status", "device"])
def test_a_reset_does_not_lose_the_base(talk, reset):
    talk.start_ring()
    talk.base = 42
    if reset == "status":
        talk.say(Request.SET_STATUS, U64(0))
    else:
        talk.say(Request.RESET_DEVICE)
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 0))
    assert talk.say(Request.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 42).encode()


def test_a_device_reset_stops_and_disables_everything(talk):
    talk.say(Request.SET_STATUS, U64(0x0F))
    talk.start_ring(0)
    talk.start_ring(2)
    talk.say(Request.RESET_DEVICE)
    assert talk.commands == [
        StopVring(0),
        EnableVring(0, enabled=False),
        StopVring(2),
        EnableVring(2, enabled=False),
        Configure(),
    ]
    assert talk.device.resets == 1
    assert talk.number(Request.GET_STATUS) == 0


def test_reset_owner_disables_and_does_not_stop(talk):
    talk.start_ring(1)
    talk.say(Request.RESET_OWNER)
    assert talk.commands == [EnableVring(1, enabled=False)]
    assert talk.session.vrings[1].started


def test_a_running_ring_moves_with_its_addresses(talk):
    talk.start_ring()
    talk.say(Request.SET_VRING_ADDR, ADDRESSES)
    assert talk.commands == []
    talk.say(Request.SET_VRING_ADDR, replace(ADDRESSES, used=ADDRESSES.used + 0x1000))
    assert [type(command) for command in talk.commands] == [MoveVring]
    assert talk.commands[0].setup.used == ADDRESSES.used + 0x1000


def test_a_ring_that_cannot_move_stays(talk):
    talk.start_ring()
    talk.fails = (MoveVring,)
    assert talk.refuses(Request.SET_VRING_ADDR, replace(ADDRESSES, used=0x4000))
    assert talk.session.vrings[0].addresses == ADDRESSES


def test_a_ring_that_cannot_start_is_not_started(talk):
    talk.place_ring()
    talk.fails = (StartVring,)
    reply = talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1, need_reply=True)
    assert reply != bytes(8)
    assert not talk.session.vrings[0].started


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        pytest.param(Request.SET_VRING_NUM, VringState(0, 0), id="size-0"),
        pytest.param(Request.SET_VRING_NUM, VringState(0, 100), id="size-no-power-of-two"),
        pytest.param(Request.SET_VRING_NUM, VringState(0, 512), id="size-over-limit"),
        pytest.param(Request.SET_VRING_NUM, VringState(0, 2**31), id="size-huge"),
        pytest.param(Request.SET_VRING_NUM, VringState(4, 128), id="num-index"),
        pytest.param(Request.SET_VRING_BASE, VringState(0, 0x10000), id="base-no-split-index"),
        pytest.param(Request.SET_VRING_BASE, VringState(2**32 - 1, 0), id="base-index"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, index=4), id="addr-index"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, flags=2), id="addr-flags"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, desc=8), id="desc-misaligned"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, avail=1), id="avail-misaligned"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, used=2), id="used-misaligned"),
        pytest.param(Request.SET_VRING_ENABLE, VringState(4, 1), id="enable-index"),
        pytest.param(Request.SET_VRING_ENABLE, VringState(0, 2), id="enable-2"),
    ],
)
def test_a_ring_that_cannot_be_is_refused(talk, request_, payload):
    assert talk.refuses(request_, payload)


@pytest.mark.parametrize(
    "request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]
)
def test_an_eventfd_for_no_ring_is_refused(talk, request_):
    assert talk.refuses(request_, VringFd(4, has_fd=True), 1)


def test_a_ring_that_does_not_exist_has_no_base(talk):
    with pytest.raises(ProtocolError, match="ring 4 of 4"):
        talk.say(Request.GET_VRING_BASE, VringState(4, 0))


def test_size_and_base_of_a_running_ring_do_not_change(talk):
    talk.start_ring()
    assert talk.refuses(Request.SET_VRING_NUM, VringState(0, 64))
    assert not talk.refuses(Request.SET_VRING_NUM, VringState(0, 128))
    assert talk.refuses(Request.SET_VRING_BASE, VringState(0, 0))


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.SET_FEATURES, U64(BIT_30)),
        (Request.SET_VRING_NUM, VringState(0, 64)),
        (Request.SET_VRING_BASE, VringState(0, 3)),
    ],
)
def test_a_ring_that_was_only_disabled_can_be_set_up_again(talk, request_, payload):
    """Cloud Hypervisor and others ended a ring so, without GET_VRING_BASE."""
    talk.start_ring()
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 0))
    assert talk.say(request_, payload, need_reply=True) == bytes(8)
    assert talk.commands[0] == StopVring(0)
    assert not talk.session.vrings[0].started


def test_a_kick_does_not_outlive_a_stop_before_the_start(talk):
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    talk.say(Request.GET_VRING_BASE, VringState(0, 0))
    talk.place_ring()
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert [type(command) for command in talk.commands] == [EnableVring]


def test_a_back_end_channel_is_opened(talk):
    talk.say(Request.SET_BACKEND_REQ_FD, fds=1)
    assert talk.commands == [OpenBackChannel()]


# Packed rings

PACKED = BIT_30 | VERSION_1 | VirtioFeature.RING_PACKED


@pytest.fixture
def packed():
    talk = Conversation(features=None)
    talk.device.features |= VirtioFeature.RING_PACKED
    talk.say(Request.SET_FEATURES, U64(PACKED))
    return talk


def where(talk):
    """Where ring 0 would start, as GET_VRING_BASE tells while it is stopped."""
    return VringState.decode(talk.say(Request.GET_VRING_BASE, VringState(0, 0))).num


def test_a_packed_ring_of_any_size_starts_where_its_base_says(packed):
    packed.say(Request.SET_VRING_NUM, VringState(0, 100))
    packed.say(Request.SET_VRING_BASE, VringState(0, 0x80018001))
    packed.say(Request.SET_VRING_ADDR, ADDRESSES)
    packed.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    setup = packed.commands[-1].setup
    assert (setup.size, setup.base, setup.packed) == (100, 0x80018001, True)
    assert setup.parts == (
        (ADDRESSES.desc, 1600, 16),
        (ADDRESSES.avail, 4, 4),
        (ADDRESSES.used, 4, 4),
    )


def test_a_packed_ring_without_a_base_starts_at_its_beginning_with_both_counters_set(packed):
    assert where(packed) == 0x80008000


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        pytest.param(Request.SET_VRING_NUM, VringState(0, 0), id="size-0"),
        pytest.param(Request.SET_VRING_NUM, VringState(0, 257), id="size-over-limit"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, desc=8), id="desc-misaligned"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, avail=2), id="driver-misaligned"),
        pytest.param(Request.SET_VRING_ADDR, replace(ADDRESSES, used=2), id="device-misaligned"),
    ],
)
def test_a_packed_ring_that_cannot_be_is_refused(packed, request_, payload):
    packed.say(Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES))
    assert packed.refuses(request_, payload)


@pytest.mark.parametrize("reset", [False, True], ids=["features", "device-reset"])
def test_another_layout_has_another_base(packed, reset):
    packed.say(Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES))
    packed.say(Request.SET_VRING_BASE, VringState(0, 0x80058005))
    if reset:
        packed.say(Request.RESET_DEVICE)
    packed.say(Request.SET_FEATURES, U64(PACKED))
    assert where(packed) == 0x80058005  # the same layout
    packed.say(Request.SET_FEATURES, U64(BIT_30 | VERSION_1))
    assert where(packed) == 0
    packed.say(Request.SET_VRING_BASE, VringState(0, 7))
    if reset:
        packed.say(Request.RESET_DEVICE)
    packed.say(Request.SET_FEATURES, U64(PACKED))
    assert where(packed) == 0x80008000


def test_a_size_that_only_a_packed_ring_may_have_does_not_start_a_split_one(packed):
    packed.say(Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES))
    packed.say(Request.SET_VRING_NUM, VringState(0, 100))
    packed.say(Request.SET_VRING_ADDR, ADDRESSES)
    packed.say(Request.SET_FEATURES, U64(BIT_30 | VERSION_1))
    kick = VringFd(0, has_fd=True)
    assert packed.say(Request.SET_VRING_KICK, kick, 1, need_reply=True) != bytes(8)
    assert not packed.session.vrings[0].started


def test_rings_are_enabled_before_the_driver_has_chosen_features():
    talk = Conversation(features=None)
    with pytest.raises(ProtocolError, match="PROTOCOL_FEATURES is not negotiated"):
        talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES))
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert talk.commands == [EnableVring(0, enabled=True)]
    talk.say(Request.SET_FEATURES, U64(BIT_30 | VERSION_1))
    talk.place_ring()
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    assert talk.session.serving == {0}
