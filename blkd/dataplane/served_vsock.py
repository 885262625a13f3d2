# SPDX-License-Identifier: Apache-2.0
"""A socket device and the host's side of it, as worker threads serve them."""

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from blkd import vsock
from blkd.dataplane.plane import DataPlane
from blkd.dataplane.workers import WorkerPlan
from blkd.host import unix_socket
from blkd.host.fds import close_foreign
from blkd.virtio.device import MAX_QUEUE_SIZE
from blkd.virtio.socket_device import VsockDevice

LONGEST_CHAIN: Final = 128
"""Descriptors, where the vring is not longer."""

MOST_PATH: Final = vsock.MOST_PATH_BYTES
"""Bytes of the path of a guest's sockets, which a port follows."""
MOST_CONNECTIONS: Final = vsock.MOST_CONNECTIONS
MOST_FORWARDS: Final = vsock.MOST_FORWARD_COUNT
MOST_GUESTS: Final = vsock.MOST_MEMBERS

Group = vsock.Group
"""Guests that reach each other."""

BACKLOG: Final = 1024
"""Host programs that may wait to be accepted."""

ONE_WORKER: Final = WorkerPlan(1)
"""All vrings of a guest have one worker, whose connections are its alone."""


class Served(Protocol):
    """What the device is served by."""

    @property
    def plane(self) -> DataPlane:
        """Its data path."""


class HostSide:
    """The sockets at which host programs reach a guest; a worker accepts them."""

    def __init__(self, path: str, streams: socket.socket, messages: socket.socket) -> None:
        """Both listen, at `path` and at its `message_path`, and are taken."""
        self.path = path
        self.streams, self.messages = streams, messages
        for listening in (streams, messages):
            listening.setblocking(True)  # io_uring waits in its own way
            listening.listen(BACKLOG)

    def close(self) -> None:
        """Close both sockets and remove their files."""
        for path, listening in (
            (self.path, self.streams),
            (unix_socket.message_path(self.path), self.messages),
        ):
            unix_socket.unlink_if_ours(path, listening.type)
            close_foreign([listening.detach()])  # programs that wait may have sent descriptors


class ServedVsock:
    """A socket device with what its guest reaches; plays `served.ServedDevice`."""

    note: bytes | None = None
    longest_chain = LONGEST_CHAIN

    def __init__(
        self,
        device: VsockDevice,
        host: HostSide | None,
        forwards: Sequence[tuple[int, bytes]] = (),
        group: Group | None = None,
        most: int = vsock.MOST_CONNECTIONS,
    ) -> None:
        """`host` is taken.  `forwards` has ports of the host and where they lead instead.

        The guest has up to `most` connections at a time, each of which takes a descriptor.
        """
        self._most = most
        self.device = device
        self._host = host
        self._forwards = forwards
        self._group = group
        self._part: vsock.VsockPart | None = None
        self._was_reset = asyncio.Event()
        device.on_reset = self._was_reset.set

    @property
    def name(self) -> str:
        """The guest's CID."""
        return f"cid {self.device.cid}"

    def make_part(self, _number: int, vrings: int) -> "VsockWorkerPart":
        """The one worker's connections."""
        host = self._host
        self._part = vsock.VsockPart(
            vrings=vrings,
            largest=MAX_QUEUE_SIZE,
            cid=self.device.cid,
            most=self._most,
            stream_fd=host.streams.fileno() if host else -1,
            message_fd=host.messages.fileno() if host else -1,
            path=os.fsencode(host.path) if host else b"",
            forwards=self._forwards,
            group=self._group,
            looks_ahead=not unix_socket.can_refuse_descriptors(),
        )
        return VsockWorkerPart(self._part)

    @property
    def configuration(self) -> bytes:
        """What the driver has chosen, and whether its connections are to end."""
        return vsock.choices(features=self.device.chosen, epoch=self.device.epoch)

    def recall(self, _note: bytes) -> None:
        """Nothing is left behind."""

    def facts(self) -> Mapping[str, object]:
        """The guest's CID, where host programs reach it, and how many connections there are."""
        return {
            "cid": self.device.cid,
            "uds": self._host.path if self._host else None,
            "connections": self._part.counters(0)["connections"] if self._part else 0,
        }

    async def watch(self, served: Served) -> None:
        """End all connections whenever the front end has left or has reset the device."""
        while True:
            await self._was_reset.wait()
            self._was_reset.clear()
            await served.plane.configure()

    def close(self) -> None:
        """Close the sockets of host programs: the worker has ended."""
        if self._part is not None:
            close_foreign(self._part.left_open())
        if self._host is not None:
            self._host.close()


class VsockWorkerPart:
    """The device's part of its worker; plays `served.DevicePart`."""

    def __init__(self, part: vsock.VsockPart) -> None:
        self.capsule = part.capsule
        self._part = part

    def counters(self, ring: int) -> Mapping[str, int]:
        """Packets and bytes of payload, and what went wrong."""
        return self._part.counters(ring)

    def report(self, code: int) -> None:
        """It reports nothing."""
        raise AssertionError(code)

    def close(self) -> None:
        """There is nothing to end."""
