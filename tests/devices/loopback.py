# SPDX-License-Identifier: Apache-2.0
"""A device that is no disk: what its driver sends comes back.

`python -m tests.devices.loopback SOCKET` serves it.  It has the vrings of one pair of virtio-net's,
so QEMU has a front end for it.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from blkd.loopback_device import LoopbackPart

from blkd.dataplane import DataPlane, WorkerPlan
from blkd.errors import RequestRefused
from blkd.export.frontends import FrontEnds
from blkd.host import log
from blkd.virtio.device import MAX_QUEUE_SIZE

RECEIVE, TRANSMIT = 0, 1
VERSION_1, RING_PACKED, EVENT_IDX, INDIRECT_DESC, LOG_ALL = (
    *(1 << 32, 1 << 34),
    *(1 << 29, 1 << 28, 1 << 26),
)


class LoopbackDevice:
    """The device as its driver sees it; plays `virtio.device.Device`."""

    queues = 2
    queue_size = MAX_QUEUE_SIZE
    features = VERSION_1 | RING_PACKED | EVENT_IDX | INDIRECT_DESC | LOG_ALL
    generation = 0
    changing = range(0)
    flaws: Mapping[int, str] = {}

    def config(self, _offset: int, size: int) -> bytes:
        return bytes(size)

    def write_config(self, offset: int, _data: bytes) -> None:
        raise RequestRefused(f"nothing can be written at {offset}")

    def accept(self, features: int) -> None:
        if features & ~self.features:
            raise RequestRefused(f"features {features:#x} were never offered")

    def reset(self) -> None:
        pass


class ServedLoopback:
    """The device with nothing behind it; plays `dataplane.served.ServedDevice`."""

    name = "loopback"
    longest_chain = 128
    note = None

    def __init__(self) -> None:
        self.device = LoopbackDevice()
        self.mask = 0
        """What the bytes of each message are combined with."""

    def make_part(self, _number: int, vrings: int) -> Any:
        return LoopbackPart(vrings, MAX_QUEUE_SIZE)

    @property
    def configuration(self) -> bytes:
        return bytes([self.mask])

    def recall(self, _note: bytes) -> None:
        pass


async def serve(listener: socket.socket) -> None:
    """Serve front ends, one after the other, until SIGTERM; SIGUSR1 inverts what comes later."""
    served = ServedLoopback()
    plane = DataPlane(served, WorkerPlan(1))
    front_ends = FrontEnds(served.name, listener, served.device, plane)
    plane.on_fault = front_ends.drop
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(front_ends.serve())

    configuring = set[asyncio.Task[None]]()

    def invert() -> None:
        served.mask ^= 0xFF
        configuring.add(loop.create_task(plane.configure()))

    loop.add_signal_handler(signal.SIGUSR1, invert)
    loop.add_signal_handler(signal.SIGTERM, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        await front_ends.end()
    finally:
        plane.close()


def main() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        listener.setblocking(False)
        print("listening", flush=True)  # noqa: T201 - for who starts this
        log.configure(json=True)
        asyncio.run(serve(listener))


if __name__ == "__main__":
    main()
