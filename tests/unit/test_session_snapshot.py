# SPDX-License-Identifier: Apache-2.0
"""A session that goes to another process and is restored there is the same session."""

import contextlib
import os
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import ProtocolError, RequestRefused, UpgradeError
from blkd.upgrade import describe, messages, restore
from blkd.upgrade.descriptors import IncomingFds, OutgoingFds
from blkd.vhost_user.connection import ConnectionSnapshot
from blkd.vhost_user.data_path import VringSnapshot
from blkd.vhost_user.session import Session
from blkd.vhost_user.session_snapshot import restore_session, session_snapshot
from blkd.vhost_user.wire import (
    U64,
    LogBase,
    MemoryRegion,
    Request,
    SingleRegion,
    VirtioFeature,
    VringFd,
    VringState,
)
from tests.conversation import ADDRESSES, BIT_30, REGION, VERSION_1, Conversation
from tests.doubles import ToyDevice

PACKED = 1 << 34


class SessionDataPath:
    """Plays the data path of a session: each ring is served up to `base`."""

    def __init__(self, session, base=7, **ring):
        self.session, self.base, self.ring = session, base, ring

    def vring_snapshots(self):
        return [
            VringSnapshot(r.index, self.base, fds={"kick": 100 + r.index}, **self.ring)
            for r in self.session.vrings
            if r.has_kick
        ]

    @property
    def log_fd(self):
        return 77 if self.session.log else None

    @property
    def inflight_file(self):
        return None

    @property
    def memory_fds(self):
        return {region: 50 + n for n, region in enumerate(self.session.regions)}


def written(session, **vring):
    """The messages that describe a session, and the descriptors that are sent with them."""
    out, plane = OutgoingFds(), SessionDataPath(session, **vring)
    snapshot = ConnectionSnapshot(9, session_snapshot(session), None, None)
    front_end = describe.front_end(snapshot, plane, out)
    return front_end, describe.rings(snapshot, plane, out), out.fds


def restored(front_end, rings, device=None):
    session = Session(device or ToyDevice())
    snapshot = restore.connection(front_end, rings, IncomingFds(range(100)))
    restore_session(session, snapshot.session)
    return session


def known(session):
    """All that a session knows, but where running rings once began."""
    return (
        session.features,
        session.based_on,
        session.protocol_features,
        session.status,
        session.regions,
        session.log,
        session.fetched,
        session.device.accepted,
        [repr(r).replace(f"base={r.base}", "") if r.started else repr(r) for r in session.vrings],
    )


STEPS = {
    "share": lambda c: c.say(Request.ADD_MEM_REG, SingleRegion(REGION), 1),
    "unshare": lambda c: c.say(Request.REM_MEM_REG, SingleRegion(REGION)),
    "start": lambda c: c.start_ring(0),
    "start another": lambda c: c.start_ring(2),
    "place": lambda c: c.place_ring(1, 5),
    "stop": lambda c: c.say(Request.GET_VRING_BASE, VringState(0, 0)),
    "disable": lambda c: c.say(Request.SET_VRING_ENABLE, VringState(0, 0)),
    "kick": lambda c: c.say(Request.SET_VRING_KICK, VringFd(1, has_fd=True), 1),
    "status": lambda c: c.say(Request.SET_STATUS, U64(15)),
    "read config": lambda c: c.say(Request.GET_CONFIG, struct.pack("=III", 0, 60, 0) + bytes(60)),
    "log": lambda c: c.say(Request.SET_LOG_BASE, LogBase(1 << 20, 4096), 1),
    "log data": lambda c: c.say(
        Request.SET_FEATURES, U64(c.session.features | VirtioFeature.LOG_ALL)
    ),
    "log a ring": lambda c: c.say(Request.SET_VRING_ADDR, replace(ADDRESSES, flags=1, log=0x3000)),
    "log no data": lambda c: c.say(
        Request.SET_FEATURES, U64(c.session.features & ~int(VirtioFeature.LOG_ALL))
    ),
    "reset": lambda c: c.say(Request.RESET_DEVICE),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=12))
def test_a_session_at_any_time_survives(steps):
    conversation = Conversation()
    for step in steps:
        with contextlib.suppress(ProtocolError):  # refused
            STEPS[step](conversation)
    session = conversation.session
    front_end, rings, _ = written(session)
    assert known(restored(front_end, rings)) == known(session)


def test_a_running_ring_goes_on_where_the_data_path_is():
    conversation = Conversation()
    conversation.say(Request.ADD_MEM_REG, SingleRegion(REGION), 1)
    conversation.start_ring(2)
    front_end, rings, fds = written(conversation.session, base=99, broken=True)
    assert fds == [9, 50, 102]
    again = restored(front_end, rings)
    (ring,) = restore.rings(again.setups(), rings, IncomingFds([os.dup(0) for _ in fds]))
    os.close(ring.fds["kick"])
    assert (ring.index, ring.setup.base, ring.setup.size) == (2, 99, 128)
    assert (ring.enabled, ring.broken) == (True, True)


def test_rings_that_nobody_has_touched_are_left_out():
    _, rings, _ = written(Conversation().session)
    assert rings == ()


def test_a_ring_that_lies_in_no_memory_is_not_given_away():
    conversation = Conversation()
    conversation.start_ring()
    with pytest.raises(UpgradeError, match="ring 0 lies in no memory"):
        written(conversation.session, lost=True)


@pytest.mark.parametrize(
    ("ring", "reason"),
    [
        ({"index": 4}, "ring 4 of 4"),
        ({"index": 0, "size": 3}, "power of two"),
        ({"index": 0, "base": 1 << 16}, "from 0x10000"),
        ({"index": 0, "started": True}, "without all that a ring needs"),
        (
            {"index": 0, "addresses": messages.Addresses(flags=2, desc=0, used=0, avail=0)},
            "with flags 0x2",
        ),
        ({"index": 0, "addresses": messages.Addresses(desc=8, used=0, avail=0)}, "not aligned"),
    ],
)
def test_a_ring_that_cannot_be_is_refused(ring, reason):
    front_end, _, _ = written(Conversation().session)
    with pytest.raises(RequestRefused, match=reason):
        restored(front_end, (messages.Ring(**ring),))


def test_a_packed_ring_keeps_both_its_positions():
    conversation = Conversation()
    conversation.device.features |= PACKED
    conversation.say(Request.SET_FEATURES, U64(BIT_30 | VERSION_1 | PACKED))
    conversation.place_ring(0, 0x80018001)
    front_end, rings, _ = written(conversation.session)
    device = ToyDevice()
    device.features |= PACKED
    session = restored(front_end, rings, device)
    assert session.vrings[0].base == 0x80018001


@pytest.mark.parametrize(
    "regions",
    [
        pytest.param([REGION, REGION], id="twice"),
        pytest.param([MemoryRegion(0, 0, 0, 0)], id="empty"),
        pytest.param([MemoryRegion(2**64 - 1, 2, 0, 0)], id="wraps"),
        pytest.param([MemoryRegion(n * 4096, 4096, 0, 0) for n in range(510)], id="too-many"),
    ],
)
def test_memory_that_cannot_be_is_refused(regions):
    conversation = Conversation()
    conversation.session.regions = tuple(regions)
    front_end, rings, _ = written(conversation.session)
    with pytest.raises((RequestRefused, ProtocolError), match="memory region"):
        restored(front_end, rings)
