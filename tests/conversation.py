# SPDX-License-Identifier: Apache-2.0
"""A session without a socket, and a front end that says one thing after the other to it."""

import struct
from dataclasses import replace

from blkd.errors import RequestRefused
from blkd.vhost_user.admission import accepted, admit, refused
from blkd.vhost_user.commands import StopVring
from blkd.vhost_user.requests import OFFERED_PROTOCOL_FEATURES
from blkd.vhost_user.session import Session
from blkd.vhost_user.wire import (
    NEED_REPLY,
    U64,
    VERSION,
    Header,
    MemoryRegion,
    Request,
    VringAddr,
    VringFd,
    VringState,
)
from tests.doubles import ToyDevice

BIT_30 = 1 << 30
LOG_ALL = 1 << 26
VERSION_1 = 1 << 32
REGION = MemoryRegion(0x1000, 0x10000, 0x7F0000001000, 0)
ADDRESSES = VringAddr(0, 0, 0x7F0000001000, 0x7F0000003000, 0x7F0000002000, 0)


class Conversation:
    """A session, and a front end that says one thing after the other."""

    def __init__(self, features=BIT_30 | VERSION_1, **device):
        self.device = ToyDevice(**device)
        self.session = Session(self.device)
        self.commands = []
        self.base = 7  # what a stopped ring answers
        self.fails = ()  # commands of these types are refused
        if features is not None:
            self.say(Request.SET_PROTOCOL_FEATURES, U64(OFFERED_PROTOCOL_FEATURES))
            self.say(Request.SET_FEATURES, U64(features))

    def say(self, request, payload=b"", fds=0, *, need_reply=False):
        """The reply's payload, or None; the commands carried out are in `commands`."""
        if not isinstance(payload, bytes):
            payload = payload.encode()
        header = Header(request, VERSION | (NEED_REPLY if need_reply else 0), len(payload))
        self.commands = []
        try:
            reply = accepted(self.session, header, self.run(header, payload, fds))
        except RequestRefused as error:
            reply = refused(self.session, header, error)
        if reply is None:
            return None
        assert struct.unpack("=III", reply[:12]) == (request, 0x5, len(reply) - 12)
        return reply[12:]

    def run(self, header, payload, fds):
        plan = admit(self.session, header, payload, fds)
        result = None
        while True:
            try:
                command = plan.send(result)
            except StopIteration as end:
                return end.value
            if isinstance(command, self.fails):
                raise RequestRefused("the rings cannot")
            self.commands.append(command)
            result = self.base if isinstance(command, StopVring) else None

    def number(self, request):
        return struct.unpack("=Q", self.say(request))[0]

    def place_ring(self, index=0, base=0):
        self.say(Request.SET_VRING_NUM, VringState(index, 128))
        self.say(Request.SET_VRING_BASE, VringState(index, base))
        self.say(Request.SET_VRING_ADDR, replace(ADDRESSES, index=index))

    def start_ring(self, index=0):
        self.place_ring(index)
        self.say(Request.SET_VRING_KICK, VringFd(index, has_fd=True), 1)
        self.say(Request.SET_VRING_ENABLE, VringState(index, 1))

    def refuses(self, request, payload=b"", fds=0):
        """Whether a request is declined: by a number that is not 0, and by that alone."""
        before = self.session.features, self.session.regions, repr(self.session.vrings)
        is_refused = self.say(request, payload, fds, need_reply=True) != bytes(8)
        assert not is_refused or not self.commands
        assert not is_refused or before == (
            self.session.features,
            self.session.regions,
            repr(self.session.vrings),
        )
        return is_refused
