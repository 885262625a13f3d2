# SPDX-License-Identifier: Apache-2.0
"""The dirty log as a session sees it: QEMU's order of messages, and what is refused."""

from dataclasses import replace

import pytest

from blkd.errors import ProtocolError
from blkd.vhost_user.commands import Configure, LogData, MoveVring, SetLog, StartVring
from blkd.vhost_user.wire import (
    U64,
    LogBase,
    ProtocolFeature,
    Request,
    VringFd,
    VringState,
)
from tests.conversation import ADDRESSES, BIT_30, LOG_ALL, VERSION_1, Conversation

DONE = bytes(8)
FEATURES = BIT_30 | VERSION_1
LOG = LogBase(4096, 0)  # covers 128 MiB
END = 128 << 20
USED_BYTES = 6 + 8 * 128  # of a ring of 128
LOGGED = replace(ADDRESSES, flags=1, log=0x3000)


@pytest.fixture
def talk():
    return Conversation()


@pytest.fixture
def migrating(talk):
    """A front end in the midst of a migration, with one ring."""
    talk.start_ring()
    assert talk.say(Request.SET_LOG_BASE, LOG, 1) == DONE
    talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL))
    talk.say(Request.SET_VRING_ADDR, LOGGED)
    return talk


def moved_to(talk):
    (command,) = talk.commands
    assert isinstance(command, MoveVring)
    return command.setup


def test_a_migration_begins_in_the_order_of_qemu(talk):
    talk.start_ring()
    assert talk.say(Request.SET_LOG_BASE, LOG, 1) == DONE
    assert talk.commands == [SetLog(LOG)]
    assert talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL), need_reply=True) == DONE
    assert talk.commands == [LogData(on=True), Configure()]
    assert talk.say(Request.SET_VRING_ADDR, LOGGED, need_reply=True) == DONE
    assert moved_to(talk).logged_at == 0x3000
    assert talk.session.vrings[0].started


def test_its_end_gives_the_log_up_once_nothing_is_marked_any_more(migrating):
    migrating.say(Request.SET_FEATURES, U64(FEATURES))
    assert migrating.commands == [LogData(on=False), Configure()]
    assert migrating.say(Request.SET_VRING_ADDR, ADDRESSES, need_reply=True) == DONE
    move, forget = migrating.commands
    assert isinstance(move, MoveVring)
    assert move.setup.logged_at is None
    assert forget == SetLog(None)
    assert migrating.session.log is None


def test_the_device_is_never_asked_for_log_all(migrating):
    assert migrating.device.accepted == VERSION_1


def test_a_log_is_replaced_while_rings_run(migrating):
    larger = LogBase(8192, 4096)
    assert migrating.say(Request.SET_LOG_BASE, larger, 1) == DONE
    assert migrating.commands == [SetLog(larger)]
    assert migrating.session.log == larger


def test_a_ring_that_starts_during_a_migration_may_have_its_log_later(talk):
    """QEMU starts the rings, gives the log and then enables them."""
    talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL))
    talk.place_ring()
    talk.say(Request.SET_VRING_ADDR, LOGGED)
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    _, started = talk.commands
    assert isinstance(started, StartVring)
    assert started.setup.logged_at == 0x3000
    assert talk.say(Request.SET_LOG_BASE, LOG, 1) == DONE
    assert talk.commands == [SetLog(LOG)]


def test_a_log_given_before_anything_is_logged_is_kept(talk):
    talk.start_ring()
    talk.say(Request.SET_LOG_BASE, LOG, 1)
    talk.say(Request.SET_FEATURES, U64(FEATURES))
    talk.say(Request.SET_VRING_ADDR, ADDRESSES)
    assert talk.session.log == LOG


def test_other_features_do_not_change_along_with_log_all(talk):
    talk.start_ring()
    assert talk.refuses(Request.SET_FEATURES, U64(BIT_30 | LOG_ALL))
    assert not talk.session.features & LOG_ALL


def test_a_disabled_ring_outlives_the_switch(talk):
    talk.start_ring()
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 0))
    talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL))
    assert talk.session.vrings[0].started


def test_a_reset_device_logs_nothing(migrating):
    migrating.say(Request.RESET_DEVICE)
    assert LogData(on=False) in migrating.commands
    assert migrating.commands[-1] == SetLog(None)
    assert not migrating.session.features & LOG_ALL


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(LogBase(0, 0), id="empty"),
        pytest.param(LogBase(4096, 2**63 - 4095), id="ends-beyond-any-file"),
        pytest.param(LogBase(2**64 - 1, 1), id="wraps"),
    ],
)
def test_a_log_that_cannot_be_is_refused(talk, log):
    assert talk.refuses(Request.SET_LOG_BASE, log, 1)


def test_a_log_is_refused_where_shared_ones_are_not_negotiated(talk):
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK))
    assert talk.refuses(Request.SET_LOG_BASE, LOG, 1)


def test_a_log_that_ends_before_a_logged_ring_is_refused(migrating):
    assert migrating.say(Request.SET_LOG_BASE, LogBase(1, 0), 1) == DONE  # 8 pages: 0x8000 bytes
    migrating.say(Request.SET_VRING_ADDR, replace(LOGGED, log=0x8000 - USED_BYTES))
    assert moved_to(migrating).logged_at == 0x8000 - USED_BYTES
    migrating.say(Request.SET_LOG_BASE, LOG, 1)
    migrating.say(Request.SET_VRING_ADDR, replace(LOGGED, log=0x8001 - USED_BYTES))
    assert migrating.refuses(Request.SET_LOG_BASE, LogBase(1, 0), 1)
    assert migrating.session.log == LOG


@pytest.mark.parametrize("at", [END - USED_BYTES + 1, END, 2**64 - 1], ids=hex)
def test_a_ring_logged_beyond_the_log_is_refused(migrating, at):
    assert migrating.refuses(Request.SET_VRING_ADDR, replace(LOGGED, log=at))


def test_a_ring_whose_size_comes_later_does_not_start_beyond_the_log(talk):
    talk.say(Request.SET_LOG_BASE, LOG, 1)
    talk.say(Request.SET_FEATURES, U64(FEATURES | LOG_ALL))
    talk.say(Request.SET_VRING_ADDR, replace(LOGGED, log=END))
    talk.say(Request.SET_VRING_KICK, VringFd(0, has_fd=True), 1)
    assert talk.say(Request.SET_VRING_NUM, VringState(0, 128), need_reply=True) == DONE
    assert talk.say(Request.SET_VRING_ENABLE, VringState(0, 1), need_reply=True) != DONE
    assert not talk.session.vrings[0].started


def test_the_log_s_eventfd_is_taken(talk):
    assert talk.say(Request.SET_LOG_FD, b"", 1, need_reply=True) == DONE
    assert talk.commands == []


@pytest.mark.parametrize(("request_", "payload"), [(Request.SET_LOG_BASE, LOG)])
@pytest.mark.parametrize("fds", [0, 2])
def test_a_log_without_its_one_descriptor_ends_the_connection(talk, request_, payload, fds):
    with pytest.raises(ProtocolError):
        talk.say(request_, payload, fds)
