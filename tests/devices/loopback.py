# SPDX-License-Identifier: Apache-2.0
"""A device that is no disk: what its driver sends comes back.

`python -m tests.devices.loopback SOCKET [CONTROL]` serves it.  It has the vrings of one pair of
virtio-net's, so QEMU has a front end for it.
"""

import asyncio
import functools
import signal
import sys
from collections.abc import Mapping
from typing import Any

from blkd.loopback_device import LoopbackPart

from blkd import hosting
from blkd.dataplane import WorkerPlan
from blkd.errors import RequestRefused
from blkd.export.device_export import DeviceExport
from blkd.export.endpoint import Endpoint
from blkd.export.endpoint_config import EndpointConfig
from blkd.host import log, signals
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
    protocol_features = 0
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
    """The device with nothing behind it; plays `export.device_export.DeviceKind`."""

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

    def facts(self) -> Mapping[str, object]:
        return {"mask": self.mask}

    async def watch(self, endpoint: Endpoint) -> None:
        """Invert what comes after each SIGUSR1."""
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
        while True:
            await asked.wait()
            asked.clear()
            self.mask ^= 0xFF
            await endpoint.plane.configure()

    def close(self) -> None:
        pass


async def make(config: EndpointConfig, path: str) -> DeviceExport:
    """An export of the device at this socket."""
    export = DeviceExport(config, "loopback")
    await export.add("loopback", path, ServedLoopback(), WorkerPlan(1))
    return export


def main() -> None:
    signals.hold()
    path, control = sys.argv[1], next(iter(sys.argv[2:]), None)
    config = EndpointConfig(name="loopback", control=control)
    log.configure(json=True)

    def announce(_state: object) -> None:
        print("listening", flush=True)  # noqa: T201 - for who starts this

    hosting.run_devices(config, functools.partial(make, config, path), announce)
    signals.exit_now(0)


if __name__ == "__main__":
    main()
