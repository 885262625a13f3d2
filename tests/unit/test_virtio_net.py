# SPDX-License-Identifier: Apache-2.0
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import ConfigError, RequestRefused
from blkd.export.net_config import NetConfig, fd_list, mac_bytes
from blkd.virtio.flaws import OF_DEVICE
from blkd.virtio.net import FLAWS, GUEST_OFFLOADS, Feature, NetDevice, NetParameters

MAC = b"\x52\x54\0\1\2\3"


def device(**changes):
    parameters = {"pairs": 1, "mac": None, "mtu": 1500, "control_queue": False} | changes
    return NetDevice(NetParameters(**parameters), link_up=True)


def test_the_configuration_space_is_laid_out_as_the_specification_has_it():
    made = device(pairs=3, mac=MAC, mtu=9000)
    assert made.config(0, 12) == MAC + struct.pack("<HHH", 1, 3, 9000)
    assert made.config(10, 4) == struct.pack("<HH", 9000, 0)
    assert made.config(100, 2) == bytes(2)


def test_nothing_can_be_written():
    with pytest.raises(RequestRefused, match="cannot be written"):
        device().write_config(0, MAC)


@pytest.mark.parametrize(
    ("changes", "feature", "is_offered"),
    [
        pytest.param({}, Feature.MAC, False, id="no-mac"),
        pytest.param({"mac": MAC}, Feature.MAC, True, id="mac"),
        pytest.param({"mtu": None}, Feature.MTU, False, id="no-mtu"),
        pytest.param({}, Feature.MTU, True, id="mtu"),
        pytest.param({}, Feature.MQ, False, id="one-pair"),
        pytest.param({"pairs": 2}, Feature.MQ, True, id="two-pairs"),
        pytest.param({}, Feature.CTRL_GUEST_OFFLOADS, False, id="foreign-control-queue"),
        pytest.param({}, Feature.GUEST_ANNOUNCE, True, id="front-end-announces"),
        pytest.param(
            {"control_queue": True}, Feature.CTRL_GUEST_OFFLOADS, True, id="control-queue"
        ),
        pytest.param({"control_queue": True}, Feature.GUEST_ANNOUNCE, False, id="nobody-announces"),
    ],
)
def test_only_what_works_is_offered(changes, feature, is_offered):
    assert bool(device(**changes).features & feature) == is_offered


@given(st.integers(0, 2**64 - 1))
def test_what_was_never_offered_is_refused(features):
    made = device()
    features |= 1 << 63
    with pytest.raises(RequestRefused, match="never offered"):
        made.accept(features)
    assert made.accepted == Feature(0)


@pytest.mark.parametrize(
    "offloads",
    [
        pytest.param(Feature.GUEST_TSO4, id="tso4"),
        pytest.param(Feature.GUEST_TSO6, id="tso6"),
        pytest.param(Feature.GUEST_UFO, id="ufo"),
        pytest.param(Feature.GUEST_CSUM | Feature.GUEST_ECN, id="ecn"),
    ],
)
def test_offloads_that_lack_what_they_need_are_refused(offloads):
    made = device(control_queue=True)
    with pytest.raises(RequestRefused):
        made.accept(int(offloads))
    made.accept(made.features)
    assert not made.choose_offloads(int(offloads))
    assert made.offloads == GUEST_OFFLOADS


@pytest.mark.parametrize(
    ("features", "size"),
    [
        pytest.param(0, 10, id="legacy"),
        pytest.param(Feature.MRG_RXBUF, 12, id="merged"),
        pytest.param(Feature.VERSION_1, 12, id="version-1"),
    ],
)
def test_the_header_is_as_long_as_the_driver_knows_it(features, size):
    made = device()
    made.accept(int(features))
    assert made.header_bytes == size


@pytest.mark.parametrize(
    ("features", "index"),
    [
        pytest.param(0, None, id="no-control-queue"),
        pytest.param(Feature.CTRL_VQ, 2, id="one-pair"),
        pytest.param(Feature.CTRL_VQ | Feature.MQ, 6, id="several"),
    ],
)
def test_the_control_queue_is_behind_the_pairs_agreed_upon(features, index):
    made = device(pairs=3, control_queue=True)
    made.accept(int(features))
    assert made.control_index == index
    assert device(pairs=3).control_index is None


def test_a_change_of_the_link_is_new_once():
    made = device()
    assert not made.show_link(up=True)
    assert made.show_link(up=False)
    assert not made.show_link(up=False)
    assert made.generation == 1
    assert made.config(6, 2) == bytes(2)


def test_a_reset_forgets_what_the_driver_chose():
    made = device(pairs=2, control_queue=True)
    made.accept(made.features)
    assert made.choose_pairs(2)
    assert made.choose_offloads(0)
    made.reset()
    assert (made.pairs, made.offloads, made.accepted) == (1, Feature(0), Feature(0))
    assert not made.choose_pairs(2)
    assert not made.choose_offloads(0)


def test_each_flaw_has_a_sentence():
    assert list(FLAWS) == [OF_DEVICE, OF_DEVICE + 1, OF_DEVICE + 2]


# ---- settings ----


@pytest.mark.parametrize(
    "text", ["", "52:54:00:01:02", "52-54-00-01-02-03", "01:00:00:00:00:00", "00:00:00:00:00:00"]
)
def test_what_is_no_address_of_a_device_is_refused(text):
    with pytest.raises(ConfigError):
        mac_bytes(text)


def test_an_address_is_six_bytes():
    assert mac_bytes("52:54:00:aB:02:03") == b"\x52\x54\0\xab\2\3"


@pytest.mark.parametrize("text", ["", "3,", "a", "-1", "3;4"])
def test_what_is_no_list_of_descriptors_is_refused(text):
    with pytest.raises(ConfigError):
        fd_list(text)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="neither"),
        pytest.param({"tap": "tap0", "tap_fd": (3,)}, id="both"),
        pytest.param({"tap_fd": (3, 4), "queues": 3}, id="other-number"),
        pytest.param({"tap": "tap0", "mac": "01:00:00:00:00:00"}, id="multicast"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given):
    with pytest.raises(ConfigError):
        NetConfig(name="net", socket="/s", **given)


def test_there_are_as_many_pairs_as_descriptors():
    assert NetConfig(name="net", socket="/s", tap_fd=(3, 4)).pairs == 2
    assert NetConfig(name="net", socket="/s", tap="tap0", queues=5).pairs == 5
